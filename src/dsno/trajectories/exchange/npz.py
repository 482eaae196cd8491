"""numpy's .npz: one file a shard, one array a name; `numpy.load(file)["path"]`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np

from dsno.support.errors import InputError
from dsno.trajectories.exchange.about import About
from dsno.trajectories.exchange.layout import Layout, Part
from dsno.trajectories.exchange.npy import HEADER, read_npy
from dsno.trajectories.exchange.state_arrays import Arrays
from dsno.trajectories.prompts import Prompts

DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError)
"""What Python raises for a damaged, encrypted or unknown kind of zip."""
ENTRY = 512
"""Bytes of a zip's own about an array, at most."""


class Npz(Layout):
    """An uncompressed .npz a shard."""

    name: ClassVar[str] = "npz"

    def file(self, index: int, count: int) -> str:
        """Name of file `index`."""
        return f"{index:05d}.npz"

    def size(self, about: About, count: int, prompts: Prompts | None) -> int:
        """Bytes that a file of so many trajectories takes at most."""
        specs = about.arrays(count).values()
        return sum(int(np.prod(shape)) * dtype.itemsize + HEADER + ENTRY for dtype, shape in specs)

    def write(
        self, path: Path, about: About, parts: Iterable[Part], prompts: Prompts | None
    ) -> None:
        """Write one shard."""
        (part,) = parts
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **part.arrays)

    def read(self, path: Path, about: About, items: range, prompts: Prompts | None) -> Arrays:
        """The arrays of a file."""
        specs = {f"{name}.npy": spec for name, spec in about.arrays(len(items)).items()}
        found: Arrays = {}
        size = path.stat().st_size
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if sorted(names) != sorted(specs):
                    raise InputError(f"It holds {names!r:.200}, expected {sorted(specs)}.")
                for name, (dtype, shape) in specs.items():
                    with archive.open(name) as file:
                        found[name.removesuffix(".npy")] = read_npy(file, dtype, shape, name, size)
                        file.read(1)  # at its end the checksum is compared
        except DAMAGE as error:
            raise InputError(f"It is not a whole .npz file ({error}).") from None
        return found
