"""Label files beside images: `dataset.json` of StyleGAN and EDM, `metadata.csv` of Hugging Face.

| file             | content                                                                    |
|------------------|----------------------------------------------------------------------------|
| `dataset.json`   | `{"labels": [["00000/img00000000.png", 6], ...]}`; null for no labels (the |
|                  | format of `dataset_tool.py` in github.com/NVlabs/stylegan3 and NVlabs/edm) |
| `metadata.csv`   | columns `file_name` and `label` (Hugging Face's ImageFolder)               |
| `metadata.jsonl` | the same, one JSON object a line                                           |
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsno.data.decode import UnreadableError
from dsno.data.listing import Listing
from dsno.recipes.schema import Data
from dsno.support.errors import InputError, one_of

NAMES = ("dataset.json", "metadata.csv", "metadata.jsonl")
LABEL_COLUMNS = ("label", "labels", "fine_label")
MAX_BYTES = 2**28


@dataclass(frozen=True)
class LabelFile:
    """What a label file says.

    Attributes:
        name: full name in the listing.
        labels: of full image names; None if it says that there are no labels.
    """

    name: str
    labels: Mapping[str, Any] | None


def find_label_file(files: Listing, data: Data) -> LabelFile | None:
    """The label file of the folder looked at, or of one above it; None if there is none.

    A metadata file without a column of labels is none.

    Raises:
        InputError: if there are two, or one is damaged.
    """
    present = set(files.names)
    folder = files.prefix
    while True:
        found = [name for name in NAMES if folder + name in present]
        read = [_read(files, folder, name, data) for name in found]
        useful = [file for file in read if file is not None]
        if len(useful) > 1:
            raise InputError(
                f"{files.shown} has labels in {useful[0].name} and in {useful[1].name}; remove "
                "one, or set data.labels=none or data.labels=folders."
            )
        if useful or not folder:
            return useful[0] if useful else None
        folder = folder[: folder.rstrip("/").rfind("/") + 1]


def _read(files: Listing, folder: str, name: str, data: Data) -> LabelFile | None:
    """A label file; None if it has no labels and does not say so.

    Raises:
        InputError: if it cannot be read.
    """
    where = str(files.path / folder / name)
    try:
        text = _text(files, folder + name)
        if name == "dataset.json":
            pairs = _pairs(json.loads(text))
        else:
            rows = csv.DictReader(io.StringIO(text)) if name.endswith(".csv") else _lines(text)
            found = list(rows)
            column = _column(found, data, where)
            if not column:
                return None
            pairs = [(row["file_name"], row.get(column)) for row in found]
            for image, _ in pairs:
                if not isinstance(image, str):
                    raise ValueError(f"expected a file_name in every row, found {image!r:.60}")
    except UnreadableError as error:  # in an archive; its remedy is for images
        raise InputError(
            f"The label file {where} is damaged in its archive; make the archive again, or set "
            "data.labels=none or data.labels=folders."
        ) from error
    except InputError:
        raise
    except Exception as error:  # whatever damage makes of the readers
        raise InputError(
            f"The label file {where} cannot be read ({type(error).__name__}: {error}); correct it, "
            "or set data.labels=none or data.labels=folders."
        ) from error
    if pairs is None:
        return LabelFile(folder + name, None)
    labels: dict[str, Any] = {}
    for image, label in pairs:
        full = folder + image.replace("\\", "/").removeprefix("./")
        if full in labels and labels[full] != label:
            raise InputError(f"{where} has two labels for {image}; leave one.")
        labels[full] = _number(label) if name.endswith(".csv") else label
    return LabelFile(folder + name, labels)


def _text(files: Listing, name: str) -> str:
    """The text of a file.

    Raises:
        ValueError: if it is too long or no text.
    """
    content = files.file(name)
    if isinstance(content, Path):
        if content.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {content.stat().st_size:,} bytes")
        content = content.read_bytes()
    return content.decode("utf-8-sig")


def _pairs(content: Any) -> list[tuple[str, Any]] | None:
    """The names and labels of a dataset.json; None if it says that there are none.

    Raises:
        ValueError: if it has another form.
    """
    labels = content["labels"]
    if labels is None:
        return None
    for pair in labels:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(f"expected pairs of a file name and a label, found {pair!r:.60}")
    return [(name, label) for name, label in labels]


def _lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"expected an object a line, found {line[:60]!r}")
            yield row


def _column(rows: Iterable[Mapping[str, Any]], data: Data, where: str) -> str:
    """The column of labels; empty if there is none.

    Raises:
        InputError: if the one named is not there, or there are several.
        KeyError: if there is no column of file names.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if rows and "file_name" not in columns:
        raise KeyError("file_name")
    if data.label_column:
        return one_of(data.label_column, columns, f"column of {where}")
    usual = [name for name in LABEL_COLUMNS if name in columns]
    if len(usual) > 1:
        raise InputError(
            f"{where} has the columns {' and '.join(usual)}; say which has the labels, such as "
            f"data.label_column={usual[0]}."
        )
    return usual[0] if usual else ""


def _number(text: str | None) -> int | str | None:
    """A cell of a table: a number if it reads as one, None if it is empty."""
    if not text:
        return None
    return int(text) if text.isdecimal() or text == "-1" else text
