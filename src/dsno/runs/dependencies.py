"""What a result depends on, as it is recorded: files by a hash of what is in them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from dsno.support.files import fingerprint, sha256


def content_hash(path: Path) -> str:
    """A hash of a file, or of the weights of a student in a folder; empty if there are none."""
    if path.is_file():
        return _hash(path)
    found = {file.name: _hash(file) for file in path.glob("model/*.safetensors")}
    return fingerprint(found) if found else ""


def _hash(path: Path) -> str:
    stat = path.stat()
    return _hash_once(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _hash_once(path: str, size: int, changed: int) -> str:
    return sha256(Path(path))[:16]


def changes(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The keys whose values differ, as `key old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(set(old) | set(new)):
            found += changes(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if old == new else [f"{prefix} {old} -> {new}"]
