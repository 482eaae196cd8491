"""A file of an export, once it is known to be the one that was written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dsno.support.errors import InputError
from dsno.support.files import sha256
from dsno.support.storage import StorageDir
from dsno.trajectories.exchange.about import REMEDY, File
from dsno.trajectories.manifest import Shard


@contextlib.contextmanager
def checked(storage: StorageDir, listed: File | Shard) -> Iterator[Path]:
    """A local path of a file with the size and checksum that the index lists.

    Raises:
        InputError: if it is missing or another.
        WorkError: if the storage cannot be reached.
    """
    address = storage.at(listed.file)
    with storage.reading(listed.file) as local:
        if not local.is_file():
            raise InputError(f"{address} is missing; {REMEDY}.")
        if (size := local.stat().st_size) != listed.bytes:
            raise InputError(f"{address} has {size:,} bytes, expected {listed.bytes:,}; {REMEDY}.")
        if sha256(local) != listed.sha256:
            raise InputError(f"{address} does not match its checksum; {REMEDY}.")
        yield local
