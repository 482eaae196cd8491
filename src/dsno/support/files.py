"""Files written completely or not at all, and JSON read with a clear error."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock

from dsno.support.errors import DsnoError, InputError, WorkError

NODE = re.sub(r"\W", "-", platform.node())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` if the block succeeds.

    What a killed process left of an earlier attempt is removed.

    Raises:
        WorkError: if the disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{NODE}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            if is_left(left):
                left.unlink(missing_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        _raise_write_error(path, error)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def is_left(temporary: Path) -> bool:
    """Whether a temporary file is abandoned: its process is gone, or a day has passed."""
    with contextlib.suppress(OSError, ValueError):
        _, node, process = temporary.name.removesuffix(".tmp").rsplit(".", 2)
        if node == NODE and not _is_alive(int(process)):
            return True
        return time.time() - temporary.stat().st_mtime > 86400
    return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()  # ours: left by a failed attempt, or by an earlier process


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; move what the block put there into `folder` if it succeeds.

    Entries of the same name are replaced, others (checkpoints) stay. What a killed process left of
    an earlier attempt is removed.

    Raises:
        WorkError: if the disk is full or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".new-*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as name:
            yield Path(name)
            for entry in sorted(Path(name).iterdir()):
                target = folder / entry.name
                if target.is_dir():
                    shutil.rmtree(target)
                entry.replace(target)
    except Exception as error:
        _raise_write_error(folder, error)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it becomes `folder` if the block succeeds.

    What was there before is removed then, and what a killed process left of an earlier attempt at
    once.

    Raises:
        WorkError: if the disk is full or the folder cannot be written; nothing is left behind.
    """
    mine = f"{NODE}.{os.getpid()}.tmp"
    temporary, old = (folder.with_name(f".{folder.name}.{part}{mine}") for part in ("", "old."))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
            if is_left(left):
                shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except Exception as error:
        _raise_write_error(folder, error)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that lock the same file waiting while the block runs.

    Raises:
        WorkError: if the file cannot be written.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        _raise_write_error(path, error)
    try:
        yield
    finally:
        lock.release()


def _raise_write_error(path: Path, error: Exception) -> NoReturn:
    """Raise the sentence for a failed write, or the error itself if it is another one."""
    cause = None if isinstance(error, DsnoError) else _os_error(error)
    if cause is None:
        raise error
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        raise WorkError(
            f"The disk is full: {path} was not written; free some space and run again."
        ) from error
    raise WorkError(
        f"{path} cannot be written: {cause.strerror or cause}; "
        "give another path or make this one writable."
    ) from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The system's error behind a library's own: torch chains it, safetensors quotes its number."""
    if error is None or isinstance(error, OSError):
        return error
    if quoted := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(quoted[1])
        return OSError(number, os.strerror(number))
    return _os_error(error.__cause__ or error.__context__)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, what: str, remedy: str, *, shown: str = "") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        what: what it is, for the error: "the manifest".
        remedy: what the user should do if it is missing or damaged.
        shown: what to call the file, if `path` is a copy of it.

    Raises:
        InputError: if it is missing, not JSON or not an object.
    """
    name = shown or str(path)
    try:
        require_regular(path)
        value = json.loads(path.read_text(encoding="utf-8"), parse_int=_number)
    except FileNotFoundError:
        raise InputError(f"There is no {what} at {name}; {remedy}.") from None
    except RecursionError:
        raise InputError(f"The {what} {name} is nested too deeply; {remedy}.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"The {what} {name} cannot be read ({error}); {remedy}.") from None
    if not isinstance(value, dict):
        raise InputError(f"The {what} {name} is not a JSON object; {remedy}.")
    return value


def _number(text: str) -> int | float:
    """A whole number of JSON; one beyond 64 bits as a float, as most readers of JSON have it.

    No size or seed is so long, and Python's longer ones overflow whatever they meet.
    """
    return int(text) if len(text) < 20 else float(text)


def require_regular(path: Path) -> None:
    """Refuse folders, pipes and devices, which cannot be read or never end; not a missing file.

    Raises:
        OSError: if it is one.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written where a folder is, or will be."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse work that a disk has no room for, before it begins.

    Args:
        folder: where it is written.
        needed: bytes, at most.
        what: is to be written, for the error: "The export".

    Raises:
        WorkError: if there are fewer.
    """
    free = free_bytes(folder)
    if needed > free:
        raise WorkError(
            f"{what} takes up to {needed / 1e6:,.1f} MB, and there are {free / 1e6:,.1f} MB free "
            f"at {folder}; free some space or give another folder."
        )


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file.

    Raises:
        OSError: if it is missing, not a regular file, or cannot be read.
    """
    require_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """A short hash of JSON-able data, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
