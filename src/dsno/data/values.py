"""What the values of arrays mean: which one is black and which is white."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dsno.support.errors import InputError

Range = tuple[float, float]

TOLERANCE = 1 / 510
"""Share of a range by which rounding may leave it: half an 8-bit level."""
SIGNED = -0.25
"""Floats that go below it mean [-1, 1]. Interpolation overshoots [0, 1] by 0.2 at most, so from the
tolerance down to here both readings are possible."""
DARK = 16
"""Pixels that all lie in the lowest sixteenth of a range are masks or numbers of another range."""


def signed_values(
    values: npt.NDArray[Any], where: str, range_: Range | None
) -> tuple[npt.NDArray[np.uint8] | npt.NDArray[np.float32], str]:
    """An array of any type as bytes or float32 in [-1, 1], and what was understood of it.

    With a range, values go linearly from its ends to -1 and 1. Without, bytes are 0 .. 255, floats
    in [-1, 1] or [0, 1] and whole numbers in 0 .. 255 are taken as what their values say.

    Raises:
        InputError: if the values leave the range, are not numbers, or could mean several things.
    """
    if values.dtype.kind == "b" and range_ is None:
        return values.astype(np.uint8) * np.uint8(255), "true is white and false is black"
    if values.dtype.kind not in "biuf":
        raise InputError(
            f"The images in {where} are {values.dtype}; give uint8, or floats in [-1, 1] or [0, 1]."
        )
    low, high = float(values.min()), float(values.max())
    found = f"{values.dtype} from {low:g} to {high:g}"
    if range_ is None:
        range_ = _guessed(values.dtype, low, high, f"The images in {where} are {found}")
        if range_ == (0, 255):
            check_not_dark(int(high), where)
    black, white = range_
    understood = f"{found}, {black:g} is black and {white:g} is white"
    if values.dtype.kind in "iu" and (black, white) == (0, 255) and low >= 0 and high <= 255:
        return values.astype(np.uint8, copy=False), understood
    return scaled(values, where, range_), understood


def scaled(values: npt.NDArray[Any], where: str, range_: Range) -> npt.NDArray[np.float32]:
    """Values as float32, linear from the ends of a range to -1 and 1.

    Raises:
        InputError: if they leave the range by more than rounding.
    """
    black, white = range_
    low, high = float(values.min()), float(values.max())
    slack = TOLERANCE * (white - black)
    if not (low >= black - slack and high <= white + slack):  # also refuses NaN
        raise InputError(
            f"The values in {where} go from {low:g} to {high:g}, beyond data.range = "
            f"[{black:g}, {white:g}]; correct the range or the values."
        )
    signed = values.astype(np.float32)
    if range_ != (-1, 1):  # which is meant to stay as exact as it comes
        signed = (signed - np.float32(black)) * np.float32(2 / (white - black)) - 1
    return np.clip(signed, -1, 1)


def check_not_dark(high: int, where: str) -> None:
    """Refuse 8-bit pixels that are all but black, as class masks and other ranges are.

    Raises:
        InputError: if the highest level is from 1 to `DARK`.
    """
    if 0 < high <= DARK:
        raise InputError(
            f"The pixels in {where} reach level {high} of 255 only, which is nearly black; set "
            f"data.range=[0, {high}] if {high} is white, or data.range=[0, 255] if 255 is."
        )


def _guessed(dtype: np.dtype[Any], low: float, high: float, found: str) -> Range:
    """The range that the values leave no doubt of.

    Raises:
        InputError: if they fit several, or none.
    """
    if dtype.kind != "f":
        if dtype == np.uint8 or (low >= 0 and (127 < high <= 255 or high == 0)):
            return 0, 255
        raise InputError(
            f"{found}, and what is black and white is not known; give uint8, or set data.range, "
            "such as [0, 65535]."
        )
    if not (low >= -1 - 2 * TOLERANCE and high <= 1 + 2 * TOLERANCE):  # also refuses NaN
        raise InputError(
            f"{found}; give uint8, floats in [-1, 1] or [0, 1], or set data.range to the values of "
            "black and white, such as [0, 255]."
        )
    if low <= SIGNED:
        return -1, 1
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise InputError(
            f"{found}, which may mean [0, 1] left by interpolation or [-1, 1]; set "
            "data.range=[0, 1] or data.range=[-1, 1]."
        )
    if 0 < high <= 1 / DARK:
        raise InputError(
            f"{found}, which is nearly black in [0, 1]; set data.range to the values of black and "
            f"white, such as [0, {high:g}] or [0, 1]."
        )
    return 0, 1
