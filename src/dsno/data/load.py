"""Images and labels in: the real data a teacher learns and an evaluation compares with.

| source        | what it reads                                                                 |
|---------------|-------------------------------------------------------------------------------|
| `digits`      | scikit-learn's 1,797 handwritten digits, 8x8; nothing to download             |
| `emoji`       | some 1,900 emoji, to be resized; classes are Unicode's groups                 |
| `folder`      | image files in a folder or zip file, with classes by sub-folders or a file    |
| `huggingface` | a data set of the Hub, parquet files, or what `save_to_disk` wrote            |
| `npz`         | an array of images and, if there is one, of labels                            |

Pixels are 8-bit and become pixel / 127.5 - 1; floats stay as exact as they come. What a source does
not say is taken from it only where it leaves no doubt, one line says what was understood, and an
option decides otherwise. Nothing here runs code that comes with the data, and nothing is unpickled.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from dsno.data.arrays import array_pixels, npz
from dsno.data.credits import CREDITS
from dsno.data.dataset import Dataset
from dsno.data.emoji import emoji
from dsno.data.folder import folder
from dsno.data.huggingface import huggingface
from dsno.data.labels import labels_of
from dsno.data.summary import summary
from dsno.recipes.choices import DataSource
from dsno.recipes.load import load_section
from dsno.recipes.schema import Data
from dsno.support.console import say
from dsno.support.errors import InputError, one_of

_COMMON = ("size", "channels", "classes", "random_flip")
OPTIONS: dict[DataSource, tuple[str, ...]] = {
    "digits": (),
    "emoji": ("background",),
    "folder": (
        *("path", "split", "label_column", "labels"),
        *("range", "background", "frames", "unreadable"),
    ),
    "huggingface": (
        *("path", "split", "image_column", "label_column", "labels"),
        *("range", "background", "frames", "unreadable"),
    ),
    "npz": ("path", "image_column", "label_column", "labels", "range", "layout", "background"),
}
"""What each source takes besides `_COMMON`."""
_LABELS = {"huggingface": ("none",), "npz": ("none", "file")}
"""What `labels` may be where not everything makes sense."""


def load_data(source: str, path: str = "", **options: Any) -> Dataset:
    """Load a data set.

    Args:
        source: `digits`, `emoji`, `folder`, `huggingface` or `npz`.
        path: of the folder or file; for `huggingface` also a name on the Hub.
        options: the other fields of `dsno.recipes.schema.Data`, which says what they mean.

    Raises:
        InputError: as `read_data`, or for an option that does not exist.
    """
    one_of(source, OPTIONS, "data source")
    return read_data(load_section(Data, "data", {"source": source, "path": path, **options}, ()))


def read_data(data: Data) -> Dataset:
    """Load the data that a recipe's section names, and say in one line what was understood.

    A set of at most `IN_MEMORY` bytes is decoded here, a larger one as its rows are asked for.
    What was loaded last is remembered, so files must not change while a process runs.

    Raises:
        InputError: for an option that the source does not take, or data that are missing, damaged,
            of a kind this package cannot work with, or that could mean several things.
    """
    taken = (*OPTIONS[data.source], *_COMMON, "source")
    for name, field in Data.model_fields.items():
        if name not in taken and getattr(data, name) != field.default:
            raise InputError(f"The data source {data.source!r} takes no {name}; leave it out.")
    if data.source not in CREDITS and not data.path:
        raise InputError(f"The data source {data.source!r} needs a path; say where the images are.")
    known = _LABELS.get(data.source)
    if known is not None and data.labels not in ("auto", *known):
        raise InputError(
            f"The data source {data.source!r} takes no labels={data.labels}; known are auto, "
            f"{', '.join(known)}."
        )
    found = Path(data.path).expanduser()
    if data.path and (data.source != "huggingface" or found.exists()):
        data = data.model_copy(update={"path": str(found.absolute())})
    return _load(data.model_copy(update={"random_flip": False}))  # which is training's


@functools.lru_cache(maxsize=2)  # what is trained on, and what is compared with
def _load(data: Data) -> Dataset:
    if data.source == "digits":
        loaded = _digits(data)
    elif data.source == "emoji":
        loaded = emoji(data)
    elif data.source == "folder":
        loaded = folder(Path(data.path), data)
    elif data.source == "npz":
        loaded = npz(Path(data.path), data)
    else:
        loaded = huggingface(data.path, data)
    say(summary(loaded))
    return loaded


def _digits(data: Data) -> Dataset:
    from sklearn.datasets import load_digits  # seconds to import

    digits = load_digits()
    options = data.model_copy(update={"range": (0.0, 16.0)})
    pixels, notes = array_pixels(digits.images[..., None], "the digits", options)
    labels = labels_of(digits.target, "the digits", len(pixels), data)
    assert labels is not None  # every digit has one
    return Dataset("digits", pixels, labels.values, labels.num_classes, labels.names, notes)
