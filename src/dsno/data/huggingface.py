"""A data set of the Hugging Face Hub, parquet files, or what `save_to_disk` wrote."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dsno.data.dataset import Dataset
from dsno.data.decode import opened, read_pixels, unreadable
from dsno.data.label_file import LABEL_COLUMNS
from dsno.data.labels import Labels, labels_of, origin_of
from dsno.recipes.schema import Data
from dsno.support.errors import InputError, one_of

_IMAGE_COLUMNS = ("image", "img")


def huggingface(path: str, data: Data) -> Dataset:
    """A Hugging Face data set.

    Raises:
        InputError: if it cannot be loaded, its columns are not clear, or an image cannot be used.
    """
    rows = _hugging_rows(path, data.split)
    if not len(rows):
        raise InputError(f"The split {data.split!r} of {path} is empty; set data.split to another.")
    image = _image_column(rows, path, data.image_column)
    label = "" if data.labels == "none" else _label_column(rows, path, data.label_column)
    encoded = rows.select_columns([image]).with_format("arrow")

    def read(items: Sequence[int]) -> Iterable[tuple[str, Image.Image]]:
        # a range is a slice of the table, which a list would copy
        part = encoded[items.start : items.stop] if isinstance(items, range) else encoded[items]
        for i, value in zip(items, part.column(0).to_pylist(), strict=True):
            name = f"{i} of {path}"
            yield name, opened(name, _file(value, name), data.frames)

    # before the images, which take longer
    labels = _labels(rows, path, label, data) if label else None
    pixels = read_pixels(len(rows), read, data)
    name = Path(path.removesuffix(".parquet")).name

    notes = (f"split {data.split}, column {image!r}", *pixels.notes, origin_of(labels, path))
    if labels is None:
        return Dataset(name, pixels.kept, notes=notes)
    values = pixels.of(labels.values)
    return Dataset(name, pixels.kept, values, labels.num_classes, labels.names, notes)


def _labels(rows: Any, path: str, label: str, data: Data) -> Labels | None:
    """The classes in a column.

    Raises:
        InputError: if they are no classes.
    """
    column = rows.select_columns([label]).with_format("arrow")[:].column(0)
    is_whole = str(column.type).startswith(("int", "uint")) and not column.null_count
    return labels_of(
        column.to_numpy() if is_whole else column.to_pylist(),
        f"column {label!r} of {path}",
        len(rows),
        data,
        names=getattr(rows.features[label], "names", None),
        is_asked_for=bool(data.label_column),
    )


def _file(value: Any, name: str) -> Path | bytes:
    """The file in a cell of an image column: its bytes, or where it lies.

    Raises:
        UnreadableError: if there is neither.
    """
    found = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
    if not found:
        raise unreadable(name, "is empty")
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
    file = Path(path)
    local = file.is_absolute()
    if (local and not file.exists()) or not (
        local or re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) and file.suffix != ".parquet"
    ):
        raise InputError(
            f"There is nothing at {path}; give a folder, a parquet file or a name on the Hub."
        )
    try:
        if file.suffix == ".parquet" and file.is_file():
            return library.load_dataset("parquet", data_files=path, split=split)
        if local and any((file / n).exists() for n in ("state.json", "dataset_dict.json")):
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
            raise InputError(
                f"The column {given!r} of {path} holds no images; correct data.image_column."
            )
        return given
    typed = [name for name in types if type(types[name]).__name__ == "Image"]
    usual = [name for name in _IMAGE_COLUMNS if name in types and _holds_files(types[name])]
    found = _narrowed(typed, usual)
    if len(found) != 1:
        raise InputError(
            f"{path} has {_several(found)} of images among {', '.join(types)}; name it in "
            "data.image_column."
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
    found = _narrowed(typed, [name for name in LABEL_COLUMNS if name in types])
    if len(found) > 1:
        raise InputError(
            f"{path} has {_several(found)} of labels, {', '.join(found)}; name one in "
            "data.label_column, or set data.labels=none."
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
