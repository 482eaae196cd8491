"""Folders near and far: files whole or not there, and errors that say what to do."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

from dsno.support.errors import InputError, WorkError
from dsno.support.storage import StorageDir, as_storage

_numbers = itertools.count()


@pytest.fixture(params=["path", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorageDir:
    """An empty place of each kind."""
    if request.param == "path":
        return StorageDir(tmp_path / "a")
    if request.param == "file":
        return StorageDir(f"file://{tmp_path}/a")
    return StorageDir(f"memory://test_places/{next(_numbers)}/")


def write(place: StorageDir, name: str, text: str) -> None:
    with place.writing(name) as temporary:
        temporary.write_text(text)


def write_half(place: StorageDir, name: str) -> None:
    with place.writing(name) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError


def test_a_file_comes_back_as_it_was_written(place: StorageDir, tmp_path: Path) -> None:
    assert place.names() == []
    assert place.size("b") is None
    write(place, "b", "one")
    write(place, "a", "two")
    write(place, "b", "three")
    assert place.names() == ["a", "b"]
    assert place.size("b") == 5
    with place.reading("b") as local:
        assert local.read_text() == "three"
    place.copy_to("a", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "two"


def test_a_missing_file_is_a_missing_path(place: StorageDir, tmp_path: Path) -> None:
    with place.reading("b") as local:
        assert not local.exists()
    (tmp_path / "copy").write_text("of an earlier one")
    place.copy_to("b", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    place.delete("b")


def test_a_deleted_file_is_gone(place: StorageDir) -> None:
    write(place, "b", "one")
    place.delete("b")
    assert place.names() == []


def test_a_write_that_fails_leaves_what_was_there(place: StorageDir) -> None:
    write(place, "b", "one")
    with pytest.raises(ZeroDivisionError):
        write_half(place, "b")
    assert place.names() == ["b"]
    with place.reading("b") as local:
        assert local.read_text() == "one"


def test_what_another_process_wrote_is_seen(place: StorageDir) -> None:
    assert place.names() == []
    write(StorageDir(str(place)), "b", "one")
    assert place.names() == ["b"]
    assert place.size("b") == 3


def test_a_place_is_named_as_it_was_given(tmp_path: Path) -> None:
    assert str(StorageDir(tmp_path)) == str(tmp_path)
    assert StorageDir("memory://a/b/").at("c") == "memory://a/b/c"
    assert as_storage(tmp_path).path == tmp_path
    assert StorageDir("memory://a").path is None


def test_an_unknown_kind_of_place_is_refused() -> None:
    with pytest.raises(InputError, match=r"nosuch://a/b is not an address that can be written to"):
        StorageDir("nosuch://a/b")


def test_a_kind_of_place_whose_package_is_missing_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"s3://a/b needs a package that is not installed: .*s3fs"):
        StorageDir("s3://a/b")


def test_a_place_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    place = StorageDir("memory://test_places/broken")

    def fail(*_: Any, **__: Any) -> None:
        raise TimeoutError("no route to host")

    monkeypatch.setattr(type(place._fs), "put_file", fail)
    with pytest.raises(WorkError, match=r"broken/b cannot be reached \(no route to host\)"):
        write(place, "b", "one")
