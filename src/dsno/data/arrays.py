"""Images and labels in the arrays of an npz file."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dsno.data.dataset import Dataset, Size, check_size, checked_labels, read_pixels, sides
from dsno.support.errors import InputError
from dsno.support.images import MODES

UNPACKED, PACKING = 2**28, 100
"""An array may take so many bytes, or more if it has a hundredth of them in its file."""
_IMAGE_KEYS = ("images", "samples", "arr_0", "x_train")
_LABEL_KEYS = ("labels", "class_labels", "y_train", "arr_1")


def npz(path: Path, size: Size | None, channels: int | None) -> Dataset:
    """Arrays of an npz file."""
    if not path.is_file():
        raise InputError(f"There is no file {path}; give the path of an npz file.")
    images, labels = _npz_arrays(path)
    pixels = array_pixels(images, str(path), size, channels)
    if labels is None:
        return Dataset(path.stem, pixels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    checked = checked_labels(labels, str(path), len(images), None)
    return Dataset(path.stem, pixels, checked, int(checked.max()) + 1)


def _npz_arrays(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """The images and labels under their usual names.

    Raises:
        InputError: if it is no npz file, is damaged, holds objects or no images.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            image = next((key for key in _IMAGE_KEYS if key in names), None)
            label = next((key for key in _LABEL_KEYS if key in names), None)
            images = None if image is None else _array(archive, f"{image}.npy")
            labels = None if label is None else _array(archive, f"{label}.npy")
    except Exception as error:  # whatever damage makes of the readers of zip and npy
        raise InputError(
            f"{path} cannot be read as an npz file of plain arrays ({error}); write it again with "
            "numpy.savez."
        ) from error
    if images is None:
        raise InputError(
            f"{path} has no images: it has {', '.join(names) or 'nothing'}; name the array "
            f"{' or '.join(_IMAGE_KEYS)}."
        )
    return images, labels


def _array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """One array of an npz file, allocated once its header is known to be true.

    Raises:
        ValueError: if the header lies, the array holds objects, or it is packed like a bomb.
    """
    entry = archive.getinfo(name)
    if entry.file_size > max(UNPACKED, PACKING * entry.compress_size):
        raise ValueError(f"{name} is packed {entry.file_size // max(entry.compress_size, 1)}:1")
    with archive.open(entry) as file:
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            np.lib.format.read_magic(file), np.lib.format.read_array_header_2_0
        )
        shape, _, kind = read(file)
        if kind.hasobject:
            raise ValueError(f"{name} holds objects")
        if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize > entry.file_size:
            raise ValueError(f"{name} is smaller than its shape {shape} says")
    with archive.open(entry) as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def array_pixels(
    values: npt.NDArray[Any], where: str, size: Size | None, channels: int | None
) -> Tensor:
    """An array of images as (N, C, H, W); bytes stay bytes, floats become float32 in [-1, 1].

    Floats are taken as [-1, 1] if one is negative and as [0, 1] if none is. They are rounded to
    bytes only where they have to be resized or converted.

    Raises:
        InputError: if the shape, type or range is another.
    """
    values = _channels_last(values, where)
    _, height, width, own = values.shape
    if values.dtype != np.uint8:
        values = _signed_floats(values, where)
    if (size is None or (height, width) == sides(size)) and channels in (None, own):
        check_size(where, width, height)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))
    if values.dtype != np.uint8:
        values = np.round((values + 1) * 127.5).astype(np.uint8)

    def read(items: Sequence[int]) -> Iterable[tuple[str, Image.Image]]:
        for i in items:
            row = values[i, ..., 0] if own == 1 else values[i]
            yield f"{i} of {where}", Image.fromarray(np.ascontiguousarray(row))

    pixels = read_pixels(len(values), read, size, channels, keep=True)
    assert isinstance(pixels, Tensor)  # kept
    return pixels


def _channels_last(values: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """Any layout of images as (N, H, W, C).

    Raises:
        InputError: if it is none.
    """
    shape = values.shape
    if len(shape) == 3:
        values = values[..., None]
    elif len(shape) == 4 and shape[1] in MODES and shape[3] not in MODES:
        values = values.transpose(0, 2, 3, 1)
    if values.ndim != 4 or values.shape[3] not in MODES or not len(values):
        raise InputError(
            f"The images in {where} have shape {shape}; supported are (N, H, W), (N, H, W, C) and "
            "(N, C, H, W) with C in 1 .. 4 and N > 0."
        )
    return values


def _signed_floats(values: npt.NDArray[Any], where: str) -> npt.NDArray[np.float32]:
    """Floats as float32 in [-1, 1].

    Raises:
        InputError: if they are no floats, or in no range known.
    """
    if values.dtype.kind != "f":
        raise InputError(
            f"The images in {where} are {values.dtype}; give uint8, or floats in [-1, 1] or [0, 1]."
        )
    low, high = float(values.min()), float(values.max())
    if not (low >= -1 and high <= 1):  # also refuses NaN
        raise InputError(
            f"The images in {where} are floats from {low:g} to {high:g}; give uint8, or floats in "
            "[-1, 1] or [0, 1]."
        )
    signed = values.astype(np.float32)
    return signed if low < 0 else signed * 2 - 1
