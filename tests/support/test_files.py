"""Files that are whole or not there, and errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dsno.backbones.safe_loading import stored_shapes
from dsno.support.errors import InputError, WorkError
from dsno.support.files import (
    NODE,
    filling,
    fingerprint,
    read_json,
    replacing,
    require_regular,
    sha256,
    write_json,
    write_text,
)
from dsno.teachers.flax_checkpoint import read_flax
from dsno.training.lpips import load_vgg16

MEGABYTE = {"a": torch.zeros(2**18)}


def replace(path: Path, act: Callable[[Path], object]) -> None:
    with replacing(path) as temporary:
        act(temporary)


def fill(folder: Path, act: Callable[[Path], object]) -> None:
    with filling(folder) as temporary:
        act(temporary)


def failing(error: BaseException) -> Callable[[Path], None]:
    """What writes half a file, in the folder or as the file given, and then fails."""

    def act(path: Path) -> None:
        (path / "index" if path.is_dir() else path).write_text("half")
        raise error

    return act


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """No file may grow beyond 100 kB: a real failure in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_replaces_the_old_one_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    write_text(path, "zwei")
    assert path.read_text() == "zwei"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file_and_stays_itself(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as caught:
        replace(path, failing(error))
    assert caught.value is error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_what_a_killed_process_left_of_this_file_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    living, now = os.getppid(), time.time()
    for left, age in {
        f".a[1].txt.{NODE}.{ended.pid}.tmp": 0,
        f".a[1].txt.{NODE}.{living}.tmp": 0,
        ".a[1].txt.elsewhere.1.tmp": 0,
        ".a[1].txt.elsewhere.2.tmp": 2 * 86400,
        f".b.txt.{NODE}.{ended.pid}.tmp": 0,
    }.items():
        (tmp_path / left).write_text("half")
        os.utime(tmp_path / left, (now - age, now - age))
    write_text(tmp_path / "a[1].txt", "whole")
    assert set(names(tmp_path)) == {
        f".a[1].txt.{NODE}.{living}.tmp",
        ".a[1].txt.elsewhere.1.tmp",
        f".b.txt.{NODE}.{ended.pid}.tmp",
        "a[1].txt",
    }


def test_a_folder_is_filled_at_once_and_keeps_what_else_it_holds(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    (tmp_path / ".new-killed").mkdir()
    with filling(tmp_path) as temporary:
        (temporary / "model").mkdir()
        (temporary / "model" / "new").write_text("new")
        (temporary / "index").write_text("i")
        assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path) == ["checkpoints", "index", "model"]
    assert names(tmp_path / "model") == ["new"]


def test_a_failure_leaves_a_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("old")
    with pytest.raises(RuntimeError, match="bug"):
        fill(tmp_path, failing(RuntimeError("bug")))
    assert names(tmp_path) == ["index"]
    assert (tmp_path / "index").read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    ],
)
def test_a_full_disk_is_said_in_one_sentence(tmp_path: Path, error: Exception) -> None:
    says = r"^The disk is full: .*b\.txt was not written; .* again\.$"
    with pytest.raises(WorkError, match=says):
        replace(tmp_path / "b.txt", failing(error))
    with pytest.raises(WorkError, match="disk is full"):
        fill(tmp_path / "c", failing(error))
    assert names(tmp_path) == ["c"]
    assert names(tmp_path / "c") == []


def test_torch_on_a_full_disk_is_said_too(tmp_path: Path) -> None:
    # torch.save raises a RuntimeError about positions, with the system's error behind it.
    def save(_: Path) -> None:
        with open("/dev/full", "wb") as file:
            torch.save(MEGABYTE, file)

    with pytest.raises(WorkError, match="disk is full"):
        replace(tmp_path / "a.pt", save)


def test_writes_that_really_fail_leave_nothing(tmp_path: Path, small_files_only: None) -> None:
    def save_tensors(path: Path) -> None:
        save_file(MEGABYTE, path)

    def save_checkpoint(path: Path) -> None:
        with path.open("wb") as file:
            torch.save(MEGABYTE, file)

    for write in (save_tensors, save_checkpoint, lambda path: path.write_bytes(bytes(10**6))):
        with pytest.raises(WorkError, match="a cannot be written: File too large"):
            replace(tmp_path / "a", write)
        with pytest.raises(WorkError, match="cannot be written: File too large"):
            fill(tmp_path, lambda folder, write=write: write(folder / "a"))  # type: ignore[misc]
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match=r"file/a\.json cannot be written: .*"):
        write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(WorkError, match=r"file/b cannot be written: .*"):
        fill(tmp_path / "file" / "b", failing(ValueError("never reached")))


def test_json_comes_back_and_holds_no_nan(tmp_path: Path) -> None:
    value = {"a": [1, 0.1, None, "ü"]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", "record", "make it") == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == value


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "There is no record at"),
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[1]", "is not a JSON object"),
    ],
)
def test_a_bad_json_file_is_named_with_the_remedy(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_json(path, "record", "make it again")
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("; make it again.")
    assert "\n" not in str(caught.value)


def test_checksum_and_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")  # FIPS 180-2, appendix B.1
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1, "b": [2]}) != fingerprint({"a": 1, "b": [3]})
    assert os.listdir(tmp_path) == ["a"]


READERS = {
    "checksum": sha256,
    "JSON": lambda path: read_json(path, "file", "remedy"),
    "weights": lambda path: stored_shapes([path]),
    "flax checkpoint": read_flax,
    "VGG16": load_vgg16,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_refused_and_not_waited_for(reader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    raised: list[Exception] = []

    def read() -> None:
        try:
            READERS[reader](tmp_path / "pipe")
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(raised[0], OSError if reader == "checksum" else InputError)
    assert "it is not a regular file" in str(raised[0])


def test_only_what_exists_and_is_no_file_is_refused_as_not_regular(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    require_regular(tmp_path / "file")
    require_regular(tmp_path / "missing")
    for path in tmp_path, Path(os.devnull):
        with pytest.raises(OSError, match="not a regular file"):
            require_regular(path)
