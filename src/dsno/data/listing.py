"""The files below a folder or inside a zip file, by their relative names."""

from __future__ import annotations

import dataclasses
import functools
import os
import posixpath
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsno.data.decode import SUFFIXES, unreadable
from dsno.support.errors import InputError

UNPACKED, PACKING = 2**26, 100
"""A file in a zip file may take so many bytes, or more if it has a hundredth of them there."""
_JUNK = frozenset({"__MACOSX", "@eaDir"})
"""Folders of copies and thumbnails that systems make."""


@dataclass(frozen=True)
class Listing:
    """Files, of which those in one folder are looked at.

    Attributes:
        path: of the folder or zip file.
        names: of all visible files, sorted, with `/` between folders.
        hidden: names of hidden files and folders.
        prefix: what the names looked at begin with: empty, or a folder and `/`.
    """

    path: Path
    names: tuple[str, ...]
    hidden: tuple[str, ...]
    prefix: str = ""

    @functools.cached_property
    def images(self) -> list[str]:
        """Names of the images in the folder looked at, without the prefix."""
        found = (name for name in self.names if _suffix(name) in SUFFIXES)
        return [x.removeprefix(self.prefix) for x in found if x.startswith(self.prefix)]

    @functools.cached_property
    def folders(self) -> list[str]:
        """The folders in it that hold images, at any depth, in sorted order."""
        return list(dict.fromkeys(n.partition("/")[0] for n in self.images if "/" in n))

    @functools.cached_property
    def loose(self) -> list[str]:
        """Names of the images that lie in no folder."""
        return [name for name in self.images if "/" not in name]

    def under(self, folder: str) -> Listing:
        """The same files, looked at from one folder."""
        return dataclasses.replace(self, prefix=f"{self.prefix}{folder}/")

    @property
    def shown(self) -> str:
        """The folder looked at, for people."""
        return str(self.path / self.prefix)

    def file(self, name: str) -> Path | bytes:
        """A file by its full name: where it is, or its bytes if it is in a zip file.

        Raises:
            UnreadableError: if it is a device or broken link, or a zip file's content is damaged,
                locked or too large.
        """
        if self.path.is_dir():
            if not (self.path / name).is_file():
                raise unreadable(str(self.path / name), "cannot be read (it is no regular file)")
            return self.path / name
        try:
            archive = _archive(self.path, os.getpid())
            entry = archive.getinfo(name)
            if entry.file_size > max(UNPACKED, PACKING * entry.compress_size):
                raise ValueError(f"it unpacks to {entry.file_size:,} bytes")
            return archive.read(name)
        except Exception as error:  # whatever damage makes of the reader of zip files
            raise unreadable(str(self.path / name), f"cannot be read ({error})") from error

    def skipped(self, read: set[str]) -> list[str]:
        """What is not read, counted by its reason.

        Args:
            read: full names of files other than images that were.
        """
        found = []
        if self.hidden:
            found.append(f"{len(self.hidden):,} hidden (such as {self.hidden[0]})")
        others = [n for n in self.names if n.startswith(self.prefix) and n not in read]
        types = Counter(s or "without suffix" for s in map(_suffix, others) if s not in SUFFIXES)
        found += [f"{number:,} {suffix}" for suffix, number in sorted(types.items())]
        return [f"skipped {', '.join(found)}"] if found else []


def list_files(path: Path) -> Listing:
    """The files of a folder, or of a zip file.

    Raises:
        InputError: if it is neither, or is damaged.
    """
    if path.is_dir():
        names: list[str] = []
        hidden: list[str] = []
        for name, is_visible in _walk(path, "", (os.path.realpath(path),)):
            (names if is_visible else hidden).append(name)
    elif path.is_file() and path.suffix.lower() == ".zip":
        names, hidden = _zipped(path)
    else:
        raise InputError(
            f"There is no folder {path}; give the path of a folder or .zip file of images."
        )
    return Listing(path, tuple(sorted(names, key=_parts)), tuple(sorted(hidden)))


def _walk(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """Names of files below a folder, and whether they are visible; hidden folders as one."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if _is_hidden(entry.name):
                yield name, False
            elif entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in above:  # a link to a folder above has no end
                    yield from _walk(Path(entry.path), f"{name}/", (*above, real))
            else:  # what is no file is refused when it is read
                yield name, True


def _zipped(path: Path) -> tuple[list[str], list[str]]:
    """Names of the files in a zip file: visible and hidden ones.

    Raises:
        InputError: if it is damaged.
    """
    _archive.cache_clear()
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    except Exception as error:  # whatever damage makes of the reader
        raise InputError(
            f"{path} cannot be read as a zip file ({error}); make it again."
        ) from error
    visible: list[str] = []
    hidden: list[str] = []
    for name in names:
        (hidden if any(map(_is_hidden, name.split("/"))) else visible).append(name)
    return visible, hidden


@functools.lru_cache(maxsize=4)
def _archive(path: Path, process: int) -> zipfile.ZipFile:
    """A zip file that stays open: one in each process, since a fork shares the file's position."""
    return zipfile.ZipFile(path)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _JUNK


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _parts(name: str) -> list[str]:
    return name.split("/")
