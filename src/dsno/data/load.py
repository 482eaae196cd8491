"""Images and labels in: the real data a teacher learns and an evaluation compares with.

| source        | what it reads                                                                 |
|---------------|-------------------------------------------------------------------------------|
| `digits`      | scikit-learn's 1,797 handwritten digits, 8x8; nothing to download             |
| `folder`      | image files; sub-folders, where there are any, are the classes in sorted order |
| `huggingface` | a data set of the Hub, parquet files, or what `save_to_disk` wrote            |
| `npz`         | the arrays `images` and, if there are any, `labels`                           |

Pixels are 8-bit and become pixel / 127.5 - 1; floats stay as exact as they come. Nothing here runs
code that comes with the data, and nothing is unpickled.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from dsno.data.arrays import array_pixels, npz
from dsno.data.dataset import SIZES, Dataset
from dsno.data.folder import folder
from dsno.data.huggingface import huggingface
from dsno.recipes.choices import DataSource
from dsno.support.errors import InputError, one_of
from dsno.support.images import MODES

OPTIONS: dict[DataSource, tuple[str, ...]] = {
    "digits": (),
    "folder": ("path",),
    "huggingface": ("path", "split", "image_column", "label_column"),
    "npz": ("path",),
}


def load_data(
    source: str,
    path: str = "",
    *,
    split: str = "train",
    size: int | None = None,
    channels: int | None = None,
    image_column: str = "",
    label_column: str = "",
) -> Dataset:
    """Load a data set.

    A set of at most `IN_MEMORY` bytes is decoded here, a larger one as its rows are asked for.
    What was loaded last is remembered, so files must not change while a process runs.

    Args:
        source: one of `OPTIONS`.
        path: of the folder or file; for `huggingface` also a name on the Hub.
        split: of a Hugging Face data set; slices such as `train[:1000]` as that library has them.
        size: resize the shorter side to it (bicubic, antialiased) and crop the centre to a square;
            by default all images must have one size.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; by default as the first image
            (a palette counts as RGB), and an image with more is refused rather than cut down.
        image_column: of a Hugging Face data set; found by its type or usual name by default.
        label_column: likewise.

    Raises:
        InputError: for an unknown source, an option it does not take, or data that are missing,
            damaged or of a kind this package cannot work with.
    """
    source = one_of(source, OPTIONS, "data source")
    given = {
        "path": path != "",
        "split": split != "train",
        "image_column": image_column != "",
        "label_column": label_column != "",
    }
    for option, is_given in given.items():
        if is_given and option not in OPTIONS[source]:
            raise InputError(f"The data source {source!r} takes no {option}; leave it out.")
    if source != "digits" and not path:
        raise InputError(f"The data source {source!r} needs a path; say where the images are.")
    if size is not None and size not in SIZES:
        raise InputError(
            f"Images of {SIZES[0]} to {SIZES[-1]} pixels a side are supported, not size {size}."
        )
    if channels is not None and channels not in MODES:
        raise InputError(f"Images have 1 to 4 channels, not {channels}.")
    found = Path(path).expanduser()
    if path and (source != "huggingface" or found.exists()):
        path = str(found.absolute())
    return _load(source, path, split, size, channels, image_column, label_column)


@functools.lru_cache(maxsize=2)  # what is trained on, and what is compared with
def _load(
    source: str,
    path: str,
    split: str,
    size: int | None,
    channels: int | None,
    image_column: str,
    label_column: str,
) -> Dataset:
    if source == "digits":
        return _digits(size, channels)
    if source == "folder":
        return folder(Path(path), size, channels)
    if source == "npz":
        return npz(Path(path), size, channels)
    return huggingface(path, split, size, channels, image_column, label_column)


def _digits(size: int | None, channels: int | None) -> Dataset:
    from sklearn.datasets import load_digits  # seconds to import

    digits = load_digits()
    pixels = digits.images[..., None] / 8 - 1  # 0 .. 16 before
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return Dataset("digits", array_pixels(pixels, "the digits", size, channels), labels, 10)
