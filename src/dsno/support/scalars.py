"""Numbers as users give them: Python's, NumPy's, or tensors without dimensions.

A bool is no number. A float with a whole value, such as 8.0, counts as that whole number.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from dsno.support.errors import InputError


def as_real(value: Any) -> float | None:
    """`value` as a float; None if it is no real number."""
    plain = _plain(value)
    return float(plain) if isinstance(plain, Real) and not isinstance(plain, bool) else None


def as_whole(value: Any) -> int | None:
    """`value` as an int; None if it is no whole number."""
    plain = _plain(value)
    if isinstance(plain, Integral):
        return None if isinstance(plain, bool) else int(plain)
    number = as_real(plain)
    return int(number) if number is not None and math.isfinite(number) and number % 1 == 0 else None


def whole(value: Any, what: str, *, least: int = 1, most: int | None = None) -> int:
    """`value` as an int of at least `least`.

    Args:
        value: what the user gave.
        what: what it is, for the error: "number of samples".
        least: the smallest allowed.
        most: the largest allowed, if there is one.

    Raises:
        InputError: if it is no whole number, or a smaller or larger one.
    """
    number = as_whole(value)
    if number is None:
        raise InputError(f"The {what} must be a whole number, not {value!r:.60}.")
    if number < least:
        raise InputError(f"The {what} must be at least {least}, not {number}.")
    if most is not None and number > most:
        raise InputError(f"The {what} must be at most {most:,}, not {number:,}.")
    return number


def _plain(value: Any) -> Any:
    """What a NumPy number, or an array or tensor without dimensions, holds."""
    return value.item() if getattr(value, "shape", None) == () else value
