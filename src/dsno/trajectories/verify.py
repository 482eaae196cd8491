"""What is wrong with a folder of trajectories, and what it holds."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from dsno.support.errors import InputError
from dsno.support.files import is_left
from dsno.support.storage import StorageDir
from dsno.trajectories.manifest import (
    MANIFEST,
    Manifest,
    forget,
    load_manifest,
    record_index,
    shard_index,
    shard_name,
)
from dsno.trajectories.partial_shards import partial_index
from dsno.trajectories.prompts import EMBEDDED, PROMPTS, read_prompts
from dsno.trajectories.shards import damaged_shards

ASIDE = "set-aside"
"""Folder that foreign files are moved to."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with a file.

    Attributes:
        file: its name.
        says: what is wrong.
        shard: which one must be made again; None if none.
        is_foreign: whether it does not belong there.
    """

    file: str
    says: str
    shard: int | None = None
    is_foreign: bool = False


def inspect_trajectories(storage: StorageDir) -> tuple[Manifest, list[Finding]]:
    """Read every byte of a folder of trajectories; return what is wrong with it.

    Shards that are not made yet are no finding; `manifest.missing` has them.

    Raises:
        InputError: if there is no manifest, or none that can be read.
    """
    manifest = load_manifest(storage)
    listed = {shard.first // manifest.shard_size for shard in manifest.shards}
    damaged = damaged_shards(storage, manifest, reads=True)
    findings = [Finding(shard_name(i), says, i) for i, says in damaged.items()]
    try:
        read_prompts(storage, manifest)
    except InputError as error:
        findings.append(Finding(EMBEDDED, str(error)))
    for name in storage.names():
        if not _is_ours(storage, name, manifest, listed):
            findings.append(_stray(name, manifest))
    return manifest, sorted(findings, key=lambda f: f.file)


def _is_ours(storage: StorageDir, name: str, manifest: Manifest, listed: set[int]) -> bool:
    if name in (MANIFEST, PROMPTS, EMBEDDED, ASIDE):
        return True
    if _is_temporary(name):  # someone may be writing it now
        return storage.path is None or not is_left(storage.path / name)
    shard, record, part = shard_index(name), record_index(name), partial_index(name)
    if shard is not None or record is not None:
        return (shard if record is None else record) in listed
    return part is not None and part < manifest.shard_count and part not in listed


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _stray(name: str, manifest: Manifest) -> Finding:
    if _is_temporary(name):
        return Finding(name, "is what a killed process left of a file", is_foreign=True)
    index = shard_index(name)
    if index is not None and index < manifest.shard_count:
        return Finding(name, "is not listed: it was never finished, or is another's", index, True)
    return Finding(name, "does not belong to this collection", is_foreign=True)


def set_aside(storage: StorageDir, findings: list[Finding]) -> list[str]:
    """Move foreign files into a folder beside them, so that nothing of anybody's is lost.

    Returns:
        The names of those moved.

    Raises:
        InputError: for storage behind a URL.
    """
    foreign = [finding.file for finding in findings if finding.is_foreign]
    if foreign and storage.path is None:
        raise InputError(
            f"{storage} holds files that do not belong there ({', '.join(foreign)}); "
            "move them away."
        )
    for name in foreign:
        assert storage.path is not None
        target = storage.path / ASIDE / name
        target.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # its owner has just finished it
            (storage.path / name).replace(target)
    return foreign


def repair_trajectories(storage: StorageDir, findings: list[Finding]) -> list[str]:
    """Move foreign files aside and forget damaged shards, so that `collect` makes them again.

    Returns:
        The names of the files that were moved.

    Raises:
        InputError: as `set_aside`.
    """
    moved = set_aside(storage, findings)
    forget(storage, [finding.shard for finding in findings if finding.shard is not None])
    return moved
