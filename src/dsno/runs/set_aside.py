"""What a run no longer stands for is moved beside it, never deleted: `student` to `student.1`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsno.support.errors import WorkError


def set_aside(folder: Path, name: str, paths: Sequence[Path]) -> Path | None:
    """Move paths to `folder/name.N`, with N one more than the largest there is.

    A path that is `folder/name` itself becomes that folder; others are moved into it. An
    interrupted call can be repeated: what it has moved is then left where it is.

    Args:
        folder: of the run.
        name: of what is set aside.
        paths: what to move, on the same file system.

    Returns:
        The new folder; None if the paths hold no file.

    Raises:
        WorkError: if it cannot be moved.
    """
    there = [path for path in paths if holds_files(path)]
    if not there:
        return None
    numbers = [int(path.name.removeprefix(f"{name}.")) for path in those_aside(folder, name)]
    target = folder / f"{name}.{max(numbers, default=0) + 1}"
    try:
        for path in there:
            if path == folder / name:
                path.rename(target)
            else:
                target.mkdir(exist_ok=True)
                path.rename(target / path.name)
    except OSError as error:
        raise WorkError(
            f"{folder / name} cannot be moved to {target} ({error.strerror}); correct this and run "
            "again."
        ) from error
    return target


def those_aside(folder: Path, name: str) -> list[Path]:
    """What was set aside of `folder/name`, the newest first."""
    found = {
        int(path.suffix[1:]): path
        for path in folder.glob(f"{name}.*")
        if path.is_dir() and path.stem == name and path.suffix[1:].isdecimal()
    }
    return [found[number] for number in sorted(found, reverse=True)]


def holds_files(path: Path) -> bool:
    """Whether a path is a file, or a folder with a file somewhere in it."""
    return path.is_file() or any(inner.is_file() for inner in path.rglob("*"))
