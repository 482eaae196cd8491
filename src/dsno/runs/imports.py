"""`dsno import`: convert a teacher or trajectories made elsewhere to a folder of our format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsno.recipes.load import load_section
from dsno.recipes.schema import Collect, Teacher
from dsno.runs.build import imported_teacher, summary
from dsno.support.errors import InputError
from dsno.support.storage import StorageDir
from dsno.teachers.load import is_trajectories
from dsno.teachers.own import own_teacher
from dsno.teachers.store import save_teacher
from dsno.trajectories.exchange.about import INDEX, is_export
from dsno.trajectories.exchange.restore import restore
from dsno.trajectories.lmdb import import_lmdb


def import_source(source: str, folder: Path, options: Sequence[str]) -> str:
    """Read a teacher or trajectories and write them to `folder`; return what was done.

    A teacher denoises once before it is written, so that one that cannot work is noticed now.

    Args:
        source: see `dsno.teachers.load.read_teacher`; also an adapter (.py), the authors' LMDB,
            or a folder or URL that `dsno trajectories export` wrote.
        folder: new, empty, or one an interrupted import left.
        options: key=value, of the recipe's `teacher` section, or `collect` for trajectories.

    Raises:
        InputError: if the source cannot be read, or the folder holds something else.
    """
    storage = StorageDir(source)
    if is_export(storage):
        return _exported(storage, folder, options)
    if any(name.endswith((".tar", ".parquet")) for name in storage.names()):
        raise InputError(
            f"{source} holds shards but no {INDEX}, which is written last; run the same `dsno "
            "trajectories export` again to finish it."
        )
    if is_trajectories(source):
        return _trajectories(source, folder, options)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; give a new one to --out.")
    if source.endswith(".py"):
        if options:
            raise InputError("An adapter says everything itself: it takes no KEY=VALUE.")
        teacher = own_teacher(Path(source))
    else:
        spec = load_section(Teacher, "teacher", {"source": source}, options)
        teacher = imported_teacher(spec)
    save_teacher(teacher, folder)
    return f"Wrote {summary(teacher)} to {folder}.\nNext: dsno run distill teacher.source={folder}"


def _exported(source: StorageDir, folder: Path, options: Sequence[str]) -> str:
    if options:
        raise InputError("Exported trajectories say everything themselves: they take no KEY=VALUE.")
    manifest = restore(source, folder)
    return f"Wrote {manifest.count:,} trajectories of {len(manifest.times)} states to {folder}."


def _trajectories(source: str, folder: Path, options: Sequence[str]) -> str:
    spec = load_section(Collect, "collect", {"source": source}, options)
    manifest = import_lmdb(
        Path(source),
        folder,
        slices=spec.slices,
        spacing=spec.grid if any(o.startswith("grid=") for o in options) else None,
        dtype=spec.dtype,
        shard_size=spec.shard_size,
    )
    return f"Wrote {manifest.count:,} trajectories of {len(manifest.times)} states to {folder}."
