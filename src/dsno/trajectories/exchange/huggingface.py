"""A Hugging Face data set: Parquet files that `datasets.load_dataset(folder)` opens.

States are columns of nested lists. README.md, the data set's card, names them as the `Array2D` ..
`Array5D` of `datasets`, which gives them their shape.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from dsno.diffusion.conditions import PROMPT
from dsno.support.errors import InputError
from dsno.trajectories.exchange.about import INDEX, About
from dsno.trajectories.exchange.layout import Layout, Part
from dsno.trajectories.exchange.state_arrays import Arrays
from dsno.trajectories.manifest import Shard
from dsno.trajectories.prompts import Prompts

ITEM, TEXT = "index", "prompt"
"""Columns beside the arrays: which trajectory it is, and its prompt."""
DIMENSIONS = range(2, 6)
"""Of the arrays that `datasets` has."""
GROUP = 2**24
"""Numbers in a row group, at most: what is held in memory at a time."""


class HuggingFace(Layout):
    """A Parquet file a shard, uncompressed, as noise does not become smaller."""

    name: ClassVar[str] = "huggingface"

    def refusal(self, about: About) -> str:
        """Why it cannot express such trajectories."""
        most = max(len(shape) - 1 for _, shape in about.arrays(1).values())
        if most in DIMENSIONS or most == 1:
            return ""
        return f"arrays of {most} dimensions, as the library `datasets` has at most 5"

    def file(self, index: int, count: int) -> str:
        """Name of file `index` of `count`, as the Hub names those of a split."""
        return f"train-{index:05d}-of-{count:05d}.parquet"

    def size(self, about: About, count: int, prompts: Prompts | None) -> int:
        """Bytes that a file of so many trajectories takes at most."""
        specs = about.arrays(count).values()
        numbers = sum(int(np.prod(shape)) for _, shape in specs)
        text = 0 if prompts is None else max(len(text.encode()) for text in prompts.texts)
        # Beside a number there are at most 3 bits that say how deep in the lists it begins.
        values = sum(int(np.prod(shape)) * dtype.itemsize for dtype, shape in specs)
        return values + numbers * 3 // 8 + count * (text + 16) + 2**16

    def write(
        self, path: Path, about: About, parts: Iterable[Part], prompts: Prompts | None
    ) -> None:
        """Write one shard."""
        arrow, parquet = _library()
        (part,) = parts
        with parquet.ParquetWriter(
            path, _schema(arrow, about), compression="none", use_dictionary=False
        ) as writer:
            for rows in _groups(about, len(part.items)):
                chosen = {name: array[rows] for name, array in part.arrays.items()}
                columns = {ITEM: np.array(part.items[rows]), **chosen}
                made = {name: _nested(arrow, array) for name, array in columns.items()}
                if prompts is not None:
                    texts = [prompts.texts[i] for i in chosen[PROMPT]]
                    made[TEXT] = arrow.array(texts, arrow.string())
                writer.write_table(arrow.table(made, schema=_schema(arrow, about)))

    def read(self, path: Path, about: About, items: range, prompts: Prompts | None) -> Arrays:
        """The arrays of a file."""
        arrow, parquet = _library()
        specs = about.arrays(len(items))
        found = {name: np.empty(shape, dtype) for name, (dtype, shape) in specs.items()}
        try:
            with parquet.ParquetFile(path) as file:
                _check_schema(file, _schema(arrow, about), len(items))
                start = 0
                for number in range(file.num_row_groups):
                    table = file.read_row_group(number)
                    rows = slice(start, start + len(table))
                    _check_rows(table, items[rows], prompts)
                    for name, (dtype, shape) in specs.items():
                        flat = _flat(table.column(name), name)
                        size = len(table) * int(np.prod(shape[1:]))
                        if len(flat) != size:
                            raise InputError(
                                f"Column {name!r} has {len(flat):,} numbers, expected {size:,}."
                            )
                        found[name][rows] = flat.astype(dtype).reshape(-1, *shape[1:])
                    start = rows.stop
        except (arrow.ArrowException, OSError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"It is not a whole Parquet file ({error}).") from None
        return found

    def extras(self, about: About, shards: Sequence[Shard]) -> dict[str, str]:
        """The card, which says which files are the data."""
        m = about.manifest
        solver = ", ".join(f"{key} {value}" for key, value in m.solver.items())
        card = {
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [{"split": "train", "path": "train-*.parquet"}],
                }
            ],
            "dataset_info": {"features": _features(about)},
            "tags": ["dsno", "diffusion", "distillation", "trajectories"],
        }
        text = (
            f"# {m.count:,} trajectories of a diffusion model\n\n"
            f"Solved by {solver}; states at t = 1, {', '.join(f'{t:.6g}' for t in m.times)} "
            f"({about.dtype}), where t = 1 is noise and t = 0 (`latent`) is data. `{INDEX}` has "
            "the noise schedule, the seed and the checksums. Read it with "
            '`datasets.load_dataset(FOLDER, split="train")`, or back into dsno with '
            "`dsno import FOLDER --out DIR`.\n"
        )
        return {"README.md": f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n\n{text}"}


def _library() -> tuple[Any, Any]:
    """Pyarrow and its Parquet.

    Raises:
        InputError: if they are not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise InputError(
            "Hugging Face data sets need the library `datasets`; install it with "
            "pip install 'dsno[data]'."
        ) from None


def _groups(about: About, count: int) -> Iterator[slice]:
    one = sum(int(np.prod(shape)) for _, shape in about.arrays(1).values())
    rows = max(1, GROUP // one)
    return (slice(first, min(first + rows, count)) for first in range(0, count, rows))


def _schema(arrow: Any, about: About) -> Any:
    """Columns and their types."""
    columns: dict[str, Any] = {ITEM: arrow.int64()}
    for name, (dtype, shape) in about.arrays(1).items():
        columns[name] = arrow.from_numpy_dtype(dtype)
        for _ in shape[1:]:
            columns[name] = arrow.list_(columns[name])
    if about.manifest.prompts is not None:
        columns[TEXT] = arrow.string()
    return arrow.schema(list(columns.items()))


def _features(about: About) -> list[dict[str, Any]]:
    """The columns as a card names them: lists of lists get their shape there."""
    found: list[dict[str, Any]] = [{"name": ITEM, "dtype": "int64"}]
    for name, (dtype, shape) in about.arrays(1).items():
        if len(shape) == 2:
            found.append({"name": name, "list": str(dtype)})
        elif len(shape) > 2:
            array = {"shape": list(shape[1:]), "dtype": str(dtype)}
            found.append({"name": name, "dtype": {f"array{len(shape) - 1}_d": array}})
        else:
            found.append({"name": name, "dtype": str(dtype)})
    if about.manifest.prompts is not None:
        found.append({"name": TEXT, "dtype": "string"})
    return found


def _nested(arrow: Any, array: np.ndarray[Any, Any]) -> Any:
    """Rows of numbers, or of lists of lists of them."""
    made = arrow.array(np.ascontiguousarray(array).reshape(-1))
    for axis in range(array.ndim - 1, 0, -1):
        lists = int(np.prod(array.shape[:axis]))
        edges = np.arange(0, (lists + 1) * array.shape[axis], array.shape[axis], dtype=np.int32)
        made = arrow.ListArray.from_arrays(edges[: lists + 1], made)
    return made


def _flat(column: Any, name: str) -> np.ndarray[Any, Any]:
    """All numbers of a column, in order.

    Raises:
        InputError: if there are gaps among them.
    """
    array = column.combine_chunks()
    while True:
        array = getattr(array, "storage", array)  # of a column that `datasets` knows
        if array.null_count:
            raise InputError(f"Column {name!r} has gaps.")
        if not hasattr(array, "flatten") or not hasattr(array, "offsets"):
            break
        array = array.flatten()
    return np.asarray(array.to_numpy(zero_copy_only=False))


def _check_schema(file: Any, expected: Any, count: int) -> None:
    """Refuse other columns, types or numbers of rows, before any is read."""
    schema: Mapping[str, str] = {field.name: _type(field.type) for field in file.schema_arrow}
    wanted = {field.name: _type(field.type) for field in expected}
    if schema != wanted:
        raise InputError(f"It has columns {schema!r:.300}, expected {wanted}.")
    if file.metadata.num_rows != count:
        raise InputError(f"It has {file.metadata.num_rows:,} rows, expected {count:,}.")


def _type(found: Any) -> str:
    """A column's type by its numbers and how deep they lie; a child's name does not matter."""
    found, depth = getattr(found, "storage_type", found), 0
    while hasattr(found, "value_type"):
        found, depth = found.value_type, depth + 1
    return f"{'list of ' * depth}{found}"


def _check_rows(table: Any, items: range, prompts: Prompts | None) -> None:
    """Refuse trajectories that belong elsewhere, or other prompts than the index has."""
    if table.column(ITEM).to_pylist() != list(items):
        raise InputError(f"Column {ITEM!r} does not count the trajectories {items}.")
    if prompts is not None:
        indices = table.column(PROMPT).to_pylist()
        if not all(i is not None and 0 <= i < len(prompts.texts) for i in indices):
            raise InputError(f"Column {PROMPT!r} has others than the {len(prompts.texts)} prompts.")
        if table.column(TEXT).to_pylist() != [prompts.texts[i] for i in indices]:
            raise InputError(f"Column {TEXT!r} is not what {PROMPT!r} says.")
