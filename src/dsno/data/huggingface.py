"""A data set of the Hugging Face Hub, parquet files, or what `save_to_disk` wrote."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dsno.data.dataset import Dataset, checked_labels, opened, read_pixels
from dsno.support.errors import InputError, one_of

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


def huggingface(
    path: str, split: str, size: int | None, channels: int | None, image: str, label: str
) -> Dataset:
    """A Hugging Face data set."""
    rows = _hugging_rows(path, split)
    if not len(rows):
        raise InputError(f"The split {split!r} of {path} is empty; give another.")
    image, label = _image_column(rows, path, image), _label_column(rows, path, label)
    encoded = rows.select_columns([image]).with_format("arrow")

    def read(items: Sequence[int]) -> Iterable[tuple[str, Image.Image]]:
        # a range is a slice of the table, which a list would copy
        part = encoded[items.start : items.stop] if isinstance(items, range) else encoded[items]
        for i, value in zip(items, part.column(0).to_pylist(), strict=True):
            yield f"{i} of {path}", opened(f"{i} of {path}", _file(value, f"{i} of {path}"))

    pixels, name = (
        read_pixels(len(rows), read, size, channels),
        Path(path.removesuffix(".parquet")).name,
    )
    if not label:
        return Dataset(name, pixels)
    column = rows.select_columns([label]).with_format("arrow")[:].column(0)
    names = getattr(rows.features[label], "names", None)
    classes = len(names) if names else None
    labels = checked_labels(column.to_numpy(), f"column {label!r} of {path}", len(rows), classes)
    return Dataset(
        name, pixels, labels, classes or int(labels.max()) + 1, tuple(names) if names else None
    )


def _file(value: Any, name: str) -> Path | bytes:
    """The file in a cell of an image column: its bytes, or where it lies.

    Raises:
        InputError: if there is neither.
    """
    found = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
    if not found:
        raise InputError(f"The image {name} is empty; leave such rows out.")
    return found if isinstance(found, bytes) else Path(found)


def _hugging_rows(path: str, split: str) -> Any:
    """The rows of a split.

    Raises:
        InputError: if the library is not installed or cannot load them.
    """
    try:
        library = importlib.import_module("datasets")
    except ModuleNotFoundError:
        raise InputError(
            "Hugging Face data sets need the library `datasets`; install it with "
            "pip install 'dsno[data]'."
        ) from None
    place = Path(path)
    local = place.is_absolute()
    if (local and not place.exists()) or not (
        local or re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) and place.suffix != ".parquet"
    ):
        raise InputError(
            f"There is nothing at {path}; give a folder, a parquet file or a name on the Hub."
        )
    try:
        if place.suffix == ".parquet" and place.is_file():
            return library.load_dataset("parquet", data_files=path, split=split)
        if local and any((place / n).exists() for n in ("state.json", "dataset_dict.json")):
            return _saved_rows(library.load_from_disk(path), path, split)
        return library.load_dataset(path, split=split)
    except InputError:
        raise
    except Exception as error:  # the library's errors have no common base
        raise InputError(_refusal(path, split, local, error)) from error


def _saved_rows(saved: Any, path: str, split: str) -> Any:
    """The rows of a split of what `save_to_disk` wrote: one split, or a mapping of them.

    Raises:
        InputError: if the split is not there.
    """
    splits = dict(saved) if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    return splits[one_of(split, splits, f"split of {path}")]


def _refusal(path: str, split: str, local: bool, error: Exception) -> str:
    """The sentence for data the library cannot load."""
    lost = isinstance(error, ConnectionError | TimeoutError)
    if not local and (lost or type(error).__module__.startswith(("httpx", "requests"))):
        return (
            f"The data set {path!r} cannot be reached on the Hub, and it is no folder here; check "
            "the name and the connection, or give a local path."
        )
    # a failure while the tables are made says why in its cause
    cause = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
    return (
        f"The split {split!r} of the data set {path} cannot be loaded ({cause[0].rstrip('.')}); "
        "check the path and the split."
    )


def _image_column(rows: Any, path: str, given: str) -> str:
    """The column of images.

    Raises:
        InputError: if there is none, or more than one.
    """
    types = rows.features
    if given:
        one_of(given, types, f"column of {path}")
        if not _holds_files(types[given]):
            raise InputError(f"The column {given!r} of {path} holds no images; name another.")
        return given
    typed = [name for name in types if type(types[name]).__name__ == "Image"]
    usual = [name for name in _IMAGE_COLUMNS if name in types and _holds_files(types[name])]
    found = _narrowed(typed, usual)
    if len(found) != 1:
        raise InputError(
            f"{path} has {_several(found)} of images among {', '.join(types)}; say which is the "
            "image column."
        )
    return found[0]


def _label_column(rows: Any, path: str, given: str) -> str:
    """The column of labels; empty if there is none.

    Raises:
        InputError: if there is more than one.
    """
    types = rows.features
    if given:
        return str(one_of(given, types, f"column of {path}"))
    typed = [name for name in types if type(types[name]).__name__ == "ClassLabel"]
    found = _narrowed(typed, [name for name in _LABEL_COLUMNS if name in types])
    if len(found) > 1:
        raise InputError(
            f"{path} has {_several(found)} of labels, {', '.join(found)}; say which is the label "
            "column."
        )
    return found[0] if found else ""


def _narrowed(typed: list[str], usual: list[str]) -> list[str]:
    """Columns of the right type, narrowed to the usual names; without a type, names decide."""
    if not typed:
        return usual
    return [name for name in typed if name in usual] or typed


def _several(found: list[str]) -> str:
    return f"{len(found) or 'no'} column{'' if len(found) == 1 else 's'}"


def _holds_files(kind: Any) -> bool:
    """Whether a column's type is that of encoded images: marked so, plain bytes, or both parts."""
    if isinstance(kind, dict):
        return {"bytes", "path"} >= set(kind) and bool(kind)
    return type(kind).__name__ == "Image" or "binary" in str(getattr(kind, "dtype", ""))
