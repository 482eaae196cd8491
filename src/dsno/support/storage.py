"""A folder on this machine or behind any fsspec URL (`s3://`, `gs://`, `hf://`, `memory://`).

A file is complete or absent: locally it is written under a temporary name and renamed; elsewhere it
is written here and uploaded, and a caller that must know that an upload finished records it in a
second file afterwards.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsno.support.errors import DsnoError, InputError, WorkError
from dsno.support.files import replacing


class StorageDir:
    """A folder of files.

    Args:
        where: a path or a URL.

    Attributes:
        path: of a folder on this machine; None elsewhere.

    Raises:
        InputError: for a URL whose protocol is unknown or whose package is not installed.
    """

    def __init__(self, where: Path | str) -> None:
        text = str(where).removeprefix("file://")
        self._text = text.rstrip("/") if "://" in text else text
        self.path = None if "://" in text else Path(text)
        if self.path is None:
            self._fs, self._root = _file_system(self._text)

    def __str__(self) -> str:
        return self._text

    def at(self, name: str) -> str:
        """A file's address, for messages."""
        return f"{self._text}/{name}"

    def names(self) -> list[str]:
        """Names of the files, sorted; none if the folder does not exist."""
        if self.path is not None:
            return sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []
        with self._reached(""):
            self._fs.invalidate_cache(self._root)  # others write here too
            try:
                found = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
            return sorted(str(name).rstrip("/").rpartition("/")[2] for name in found)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is no such file."""
        if self.path is not None:
            path = self.path / name
            return path.stat().st_size if path.is_file() else None
        with self._reached(name):
            self._fs.invalidate_cache(self._root)
            try:
                return int(self._fs.size(self._key(name)))
            except FileNotFoundError:
                return None

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a local path to write to; the file appears in the folder once the block succeeds.

        Raises:
            WorkError: if it cannot be written.
        """
        if self.path is not None:
            with replacing(self.path / name) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="dsno-") as folder:
            local = Path(folder) / name
            with replacing(local) as temporary:
                yield temporary
            with self._reached(name):
                self._fs.makedirs(self._root, exist_ok=True)
                self._fs.put_file(str(local), self._key(name))

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Yield a local path with the file's content; a missing file is a missing path.

        Raises:
            WorkError: if the storage cannot be reached.
        """
        if self.path is not None:
            yield self.path / name
            return
        with tempfile.TemporaryDirectory(prefix="dsno-") as folder:
            local = Path(folder) / name
            self.copy_to(name, local)
            yield local

    def copy_to(self, name: str, target: Path) -> None:
        """Copy a file here; a missing one leaves no copy."""
        with self._reached(name), contextlib.suppress(FileNotFoundError):
            if self.path is not None:
                shutil.copyfile(self.path / name, target)
            else:
                self._fs.get_file(self._key(name), str(target))
            return
        target.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.path is not None:
            (self.path / name).unlink(missing_ok=True)
            return
        with self._reached(name), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._key(name))

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _reached(self, name: str) -> Iterator[None]:
        try:
            yield
        except (DsnoError, FileNotFoundError):
            raise
        except Exception as error:  # every store has errors of its own
            raise WorkError(
                f"{self.at(name).rstrip('/')} cannot be reached ({str(error) or type(error)}); "
                "check the address, the credentials and the connection, and run again."
            ) from error


def _file_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        fs, root = url_to_fs(url)
    except ImportError as error:
        raise InputError(f"{url} needs a package that is not installed: {error}.") from None
    except ValueError as error:
        raise InputError(f"{url} is not an address that can be written to ({error}).") from None
    return fs, root.rstrip("/")


def as_storage(folder: Path | str | StorageDir) -> StorageDir:
    """`folder` as a `StorageDir`."""
    return folder if isinstance(folder, StorageDir) else StorageDir(folder)
