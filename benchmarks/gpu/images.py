"""Real images as one npz file: from parquet shards without the library `datasets`, or made up."""

from __future__ import annotations

import importlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dsno.support.errors import InputError
from dsno.support.files import replacing

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels")


def as_npz(source: Path, target: Path) -> Path:
    """An npz file as it is; a folder of parquet shards written as `target`.

    Raises:
        InputError: if there are no such data.
    """
    if source.suffix == ".npz":
        if not source.is_file():
            raise InputError(f"There is no file {source}; give images to --data.")
        return source
    shards = [source] if source.is_file() else sorted(source.glob("*.parquet"))
    if not shards:
        raise InputError(f"There are no parquet files in {source}; give images to --data.")
    parquet = _parquet()
    images: list[npt.NDArray[np.uint8]] = []
    labels: list[int] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard in shards:
            try:
                rows = parquet.read_table(shard)
                files = rows.column(_column(rows, IMAGE_COLUMNS, shard)).to_pylist()
                images += pool.map(_decoded, files)
                labels += rows.column(_column(rows, LABEL_COLUMNS, shard)).to_pylist()
            except InputError:
                raise
            except (OSError, TypeError, KeyError, ValueError) as error:
                raise InputError(f"{shard} cannot be read as images ({error}).") from None
    with replacing(target) as temporary, temporary.open("wb") as file:
        np.savez(file, images=np.stack(images), labels=np.asarray(labels, np.int64))
    return target


def _parquet() -> Any:
    """The reader of parquet files.

    Raises:
        InputError: if it is not installed.
    """
    try:
        return importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise InputError(
            "Parquet files need the library pyarrow; install it, or give an npz file to --data."
        ) from None


def _column(rows: Any, names: tuple[str, ...], shard: Path) -> str:
    found = [name for name in names if name in rows.column_names]
    if not found:
        raise InputError(
            f"{shard} has the columns {', '.join(rows.column_names)}, and none of {names}."
        )
    return found[0]


def _decoded(cell: dict[str, Any]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))


def made_up(folder: Path, count: int, classes: int = 10) -> Path:
    """A folder with a parquet shard of 32x32 images: a colour a class, brighter to one side."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    colours = draw.integers(40, 216, (classes, 3))
    ramp = np.linspace(-30, 30, 32)[None, :, None]
    cells, labels = [], []
    for index in range(count):
        label = index % classes
        noise = draw.normal(0, 10, (32, 32, 3))
        pixels = (colours[label] + ramp + noise).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        cells.append({"bytes": file.getvalue(), "path": None})
        labels.append(label)
    arrow, parquet = importlib.import_module("pyarrow"), _parquet()
    table = arrow.table({"img": cells, "label": labels})
    parquet.write_table(table, folder / "made-up.parquet")
    return folder
