"""What a result depends on, as it is recorded: files by a hash of what is in them.

A file of many gigabytes is read once: its checksum is recorded with its size and time of change,
and is taken from there while those are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsno.recipes import Recipe
from dsno.runs.records import Stamp
from dsno.support.console import say
from dsno.support.errors import InputError
from dsno.support.files import fingerprint, sha256
from dsno.teachers.load import files_of_teacher
from dsno.trajectories.exchange.about import INDEX
from dsno.trajectories.lmdb import files_of_lmdb

LARGE = 10**9
"""Bytes from which on the reader is told that a file is being read."""

ONCE_NAMES = ("data.path", "teacher.source", "collect.source")
"""Keys of which earlier versions recorded the name alone. What they name may also be something
without files to hash: a repository of the Hub, a folder of images."""


def _files_of_trajectories(path: Path) -> dict[str, Path]:
    """Of an export its index, which has the checksums of all others."""
    index = path / INDEX
    return {INDEX: index} if index.is_file() else files_of_lmdb(path)


def _files_of_student(path: Path) -> dict[str, Path]:
    return {file.name: file for file in path.glob("model/*.safetensors")}


_IN_FOLDER: Mapping[str, Callable[[Path], dict[str, Path]]] = {
    "teacher.source": files_of_teacher,
    "collect.source": _files_of_trajectories,
    "train.start_from": _files_of_student,
}


def files_of(key: str, path: Path) -> dict[str, Path]:
    """The files that count of what a recipe's key names, by their names in it; maybe none."""
    find = _IN_FOLDER.get(key)
    found = {} if find is None else find(path)
    return found or ({path.name: path} if path.is_file() else {})


def content_hash(key: str, path: Path, known: Mapping[str, Stamp]) -> str:
    """A hash of the files that a recipe's key names; empty if there are none.

    Args:
        key: `train.vgg16`, say.
        path: its value.
        known: checksums of an earlier time by the files' paths.

    Raises:
        InputError: if one cannot be read.
    """
    files = files_of(key, path)
    found = {name: stamp["sha256"][:16] for name, stamp in _stamps(files, known).items()}
    if list(files.values()) == [path]:
        return next(iter(found.values()))
    return fingerprint(found) if found else ""


def stamps(key: str, path: Path, known: Mapping[str, Stamp]) -> dict[str, Stamp]:
    """What to record of the files that a key names, by their paths; arguments: `content_hash`."""
    files = files_of(key, path)
    return {str(files[name]): stamp for name, stamp in _stamps(files, known).items()}


def collect_settings(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says of its trajectories, by the keys of `dsno.trajectories.foreign`."""
    spec = recipe.collect
    found: dict[str, Any] = {"collect.slices": spec.slices, "collect.dtype": spec.dtype}
    if spec.source or spec.count is None:
        return found
    return found | {
        "seed": recipe.seed,
        "collect.count": spec.count,
        "collect.shard_size": min(spec.shard_size, spec.count),
        "collect.solver": spec.solver,
        "collect.steps": spec.steps,
        "collect.spacing": spec.spacing,
        "collect.precision": spec.precision,
        "collect.guidance_scale": spec.guidance_scale,
        "checksum of the source": None,
    }


def _stamps(files: Mapping[str, Path], known: Mapping[str, Stamp]) -> dict[str, Stamp]:
    return {name: _stamp(file, known.get(str(file))) for name, file in files.items()}


def _stamp(file: Path, known: Stamp | None) -> Stamp:
    try:
        stat = file.stat()
        size, changed = stat.st_size, stat.st_mtime_ns
        if known is not None and (known["size"], known["changed"]) == (size, changed):
            return known
        return {"size": size, "changed": changed, "sha256": _sha256_once(str(file), size, changed)}
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}); correct this and run again."
        ) from error


@functools.lru_cache(maxsize=1024)
def _sha256_once(path: str, size: int, changed: int) -> str:
    if size >= LARGE:
        say(f"reading {path} ({size / 1e9:,.1f} GB) once, to notice when it changes.")
    return sha256(Path(path))
