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

from dsno.data.dataset import Dataset
from dsno.data.decode import check_size, read_pixels, sides
from dsno.data.labels import labels_of, origin_of
from dsno.data.values import signed_values
from dsno.recipes.schema import Data
from dsno.support.errors import InputError, one_of
from dsno.support.images import MODES

UNPACKED, PACKING = 2**28, 100
"""An array may take so many bytes, or more if it has a hundredth of them in its file."""
_USUAL = {
    "images": "labels",
    "samples": "class_labels",
    "arr_0": "arr_1",
    "x_train": "y_train",
    "x_test": "y_test",
}
"""Usual names of an array of images, and of its labels."""
_CHOSEN = ("images", "samples", "arr_0", "x_train")
"""Those that are taken without being named."""


def npz(path: Path, data: Data) -> Dataset:
    """Arrays of an npz file.

    Raises:
        InputError: if it is no npz file, is damaged, holds objects, or no images that can be used.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}; give the path of an npz file.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            image = _image_key(names, path, data.image_column)
            label = _label_key(names, path, image, data)
            images = read_array(archive, f"{image}.npy")
            labels = read_array(archive, f"{label}.npy") if label else None
    except InputError:
        raise
    except Exception as error:  # whatever damage makes of the readers of zip and npy
        raise InputError(
            f"{path} cannot be read as an npz file of plain arrays ({error}); write it again with "
            "numpy.savez."
        ) from error
    pixels, notes = array_pixels(images, str(path), data)
    unused = [name for name in names if name not in (image, label)]
    found = None
    if labels is not None:
        origin = f"array {label!r} of {path}"
        found = labels_of(labels, origin, len(images), data, is_asked_for=bool(data.label_column))
    notes = (f"array {image!r}", *notes, origin_of(found, path))
    if unused:
        notes = (*notes, f"left out {', '.join(unused)}")
    if found is None:
        return Dataset(path.stem, pixels, notes=notes)
    return Dataset(path.stem, pixels, found.values, found.num_classes, found.names, notes)


def _image_key(names: list[str], path: Path, given: str) -> str:
    """The name of the array of images.

    Raises:
        InputError: if it is not there, or there are several.
    """
    if given:
        return one_of(given, names, f"array of {path}")
    found = [key for key in _CHOSEN if key in names]
    if not found:
        raise InputError(
            f"{path} has no images: it has {', '.join(names) or 'nothing'}; name the array "
            f"{' or '.join(_CHOSEN)}, or set data.image_column to its name."
        )
    if len(found) > 1:
        raise InputError(
            f"{path} has the arrays {' and '.join(found)}; say which has the images, such as "
            f"data.image_column={found[0]}."
        )
    return found[0]


def _label_key(names: list[str], path: Path, image: str, data: Data) -> str:
    """The name of the array of labels; empty if there is none.

    Raises:
        InputError: if it is not there though asked for, or there are several.
    """
    if data.labels == "none":
        return ""
    if data.label_column:
        return one_of(data.label_column, names, f"array of {path}")
    partner = _USUAL.get(image)
    if partner in names:
        return partner
    # not the labels of other images that are there
    found = [key for of, key in _USUAL.items() if key in names and of not in names]
    if len(found) > 1:
        raise InputError(
            f"{path} has the arrays {' and '.join(found)}; say which has the labels, such as "
            f"data.label_column={found[0]}, or set data.labels=none."
        )
    if not found and data.labels == "file":
        raise InputError(
            f"{path} has no labels: it has {', '.join(names)}; set data.label_column to the "
            "name of their array."
        )
    return found[0] if found else ""


def read_array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
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
    values: npt.NDArray[Any], where: str, data: Data
) -> tuple[Tensor, tuple[str, ...]]:
    """An array of images as (N, C, H, W): bytes stay bytes, floats become float32 in [-1, 1].

    Floats are rounded to bytes only where they have to be resized or converted.

    Returns:
        The images, and what was understood of them.

    Raises:
        InputError: if the shape, type or range is another.
    """
    values = _channels_last(values, where, data.layout)
    _, height, width, own = values.shape
    levels, understood = signed_values(values, where, data.range)
    flattened = own - 1 if data.background and own in (2, 4) else own
    fits = data.size is None or (height, width) == sides(data.size)
    if fits and (data.channels or flattened) == own:
        check_size(where, width, height)
        return torch.from_numpy(np.ascontiguousarray(levels.transpose(0, 3, 1, 2))), (understood,)
    if levels.dtype != np.uint8:
        levels = np.round((levels + 1) * 127.5).astype(np.uint8)
        understood += ", rounded to 8 bits"

    def read(items: Sequence[int]) -> Iterable[tuple[str, Image.Image]]:
        for i in items:
            row = levels[i, ..., 0] if own == 1 else levels[i]
            yield f"{i} of {where}", Image.fromarray(np.ascontiguousarray(row))

    # the values are 0 .. 255 by now
    options = data.model_copy(update={"range": (0.0, 255.0), "unreadable": "refuse"})
    pixels = read_pixels(len(levels), read, options, keep=True)
    assert isinstance(pixels.kept, Tensor)
    return pixels.kept, (understood,)


def _channels_last(values: npt.NDArray[Any], where: str, layout: str) -> npt.NDArray[Any]:
    """Any layout of images as (N, H, W, C).

    Raises:
        InputError: if it is none, or might be several.
    """
    shape = values.shape
    fits = {
        "NHW": len(shape) == 3,
        "NHWC": len(shape) == 4 and shape[3] in MODES,
        "NCHW": len(shape) == 4 and shape[1] in MODES,
    }
    found = [name for name, is_fit in fits.items() if is_fit and layout in ("auto", name)]
    if not found or not len(values):
        raise InputError(
            f"The images in {where} have shape {shape}; expected (N, H, W), (N, H, W, C) or "
            "(N, C, H, W) with C in 1 .. 4 and N > 0"
            + (f", and data.layout = {layout}." if layout != "auto" else ".")
        )
    if len(found) > 1:
        raise InputError(
            f"The images in {where} have shape {shape}, whose channels may come before or after "
            "height and width; set data.layout=NCHW or data.layout=NHWC."
        )
    if found == ["NHW"]:
        return values[..., None]
    return values if found == ["NHWC"] else values.transpose(0, 2, 3, 1)
