"""What is wrong with a folder of trajectories is found, and mended by the command that is named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.trajectories.test_manifest import filled, manifest, tensors

from dsno.support.files import NODE
from dsno.support.storage import StorageDir
from dsno.trajectories.describe import describe, spans
from dsno.trajectories.manifest import MANIFEST, forget, record_name, save_manifest, shard_name
from dsno.trajectories.shards import write_shard
from dsno.trajectories.verify import (
    ASIDE,
    Finding,
    inspect_trajectories,
    set_aside,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten trajectories in three shards."""
    path: Path = filled(tmp_path / "trajectories")
    return path


def found(folder: Path) -> list[Finding]:
    return inspect_trajectories(StorageDir(folder))[1]


def test_nothing_is_found_where_nothing_is_wrong(folder: Path) -> None:
    assert found(folder) == []


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "bytes, not"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x11"), "checksum"),
        (lambda path: os.truncate(path, 0), "has 0 bytes"),
    ],
)
def test_every_damaged_shard_is_found(
    folder: Path, damage: Callable[[Path], object], says: str
) -> None:
    for index in (0, 2):
        damage(folder / shard_name(index))
    findings = found(folder)
    assert [(f.file, f.shard) for f in findings] == [(shard_name(0), 0), (shard_name(2), 2)]
    assert all(says in f.says and not f.is_foreign for f in findings)


def test_every_single_flipped_byte_is_found(folder: Path) -> None:
    path = folder / shard_name(2)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert [f.shard for f in found(folder)] == [2]


@pytest.mark.parametrize(
    "name", ["notes.txt", shard_name(3), "shard-1.safetensors", "partial-00000.safetensors"]
)
def test_a_file_that_does_not_belong_there_is_set_aside(folder: Path, name: str) -> None:
    (folder / name).write_text("a stranger's")
    (finding,) = found(folder)
    assert (finding.file, finding.is_foreign) == (name, True)
    assert set_aside(StorageDir(folder), [finding]) == [name]
    assert (folder / ASIDE / name).read_text() == "a stranger's"
    assert found(folder) == []


def test_a_shard_without_record_is_found(folder: Path) -> None:
    forget(folder, [1])
    (finding,) = found(folder)
    assert (finding.file, finding.shard, finding.is_foreign) == (shard_name(1), 1, True)
    assert "not listed" in finding.says


def test_a_collection_that_is_being_made_has_nothing_wrong(tmp_path: Path) -> None:
    made = manifest()
    save_manifest(tmp_path, made)
    write_shard(tmp_path, made, 1, tensors(made.items(1)))
    (tmp_path / "partial-00000.safetensors").write_text("first rows")
    (tmp_path / f".{shard_name(2)}.{NODE}.{os.getppid()}.tmp").write_text("being written")
    found, findings = inspect_trajectories(StorageDir(tmp_path))
    assert findings == []
    assert found.missing == [0, 2]
    assert (tmp_path / record_name(1)).is_file()


def test_what_a_killed_process_left_is_found(folder: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    name = f".{shard_name(2)}.{NODE}.{ended.pid}.tmp"
    (folder / name).write_text("half")
    (finding,) = found(folder)
    assert (finding.file, finding.is_foreign) == (name, True)


def test_a_description_says_what_is_there(folder: Path) -> None:
    told = describe(StorageDir(folder))
    size = sum((folder / shard_name(i)).stat().st_size for i in range(3))
    assert told["trajectories"] == "10 of 10"
    assert told["bytes"].startswith(f"{size:,}, {size / 10:,.0f} a trajectory")
    assert "not made yet" not in told
    forget(folder, [0, 2])
    assert describe(StorageDir(folder))["not made yet"] == "0:1 2:3"
    assert (folder / MANIFEST).is_file()


def test_numbers_are_told_as_ranges() -> None:
    assert spans([]) == ""
    assert spans([0, 1, 2, 7]) == "0:3 7:8"
    assert spans(list(range(0, 40, 2))).endswith("14:15 and 12 more")
