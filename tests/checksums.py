"""What is in a folder, to compare with later or with another."""

from __future__ import annotations

from pathlib import Path

from dsno.support.files import sha256


def contents(folder: Path) -> dict[str, str]:
    """Checksum of every file, by its path in the folder."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
