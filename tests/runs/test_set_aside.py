"""Results are moved out of the way under a new name, never over one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsno.runs.set_aside import holds_files, set_aside, those_aside
from dsno.support.errors import WorkError


def made(folder: Path, content: str) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text(content)
    return folder


def test_each_folder_gets_the_next_number(tmp_path: Path) -> None:
    for number in (1, 2):
        target = set_aside(tmp_path, "student", [made(tmp_path / "student", str(number))])
        assert target == tmp_path / f"student.{number}"
        assert not (tmp_path / "student").exists()
    (tmp_path / "student.1" / "inner" / "file").unlink()
    (tmp_path / "student.1" / "inner").rmdir()
    (tmp_path / "student.1").rmdir()
    assert set_aside(tmp_path, "student", [made(tmp_path / "student", "3")]) == (
        tmp_path / "student.3"
    )
    found = {p.name: (p / "inner" / "file").read_text() for p in tmp_path.iterdir()}
    assert found == {"student.2": "2", "student.3": "3"}


def test_what_is_set_aside_is_found_newest_first(tmp_path: Path) -> None:
    for name in ("student.2", "student.10", "student.x", "student.1.old", "student", "students.3"):
        (tmp_path / name).mkdir()
    (tmp_path / "student.4").write_text("a file of the user's")
    assert [p.name for p in those_aside(tmp_path, "student")] == ["student.10", "student.2"]


def test_single_files_are_moved_into_the_folder(tmp_path: Path) -> None:
    report = made(tmp_path / "report", "figure")
    (report / "page").write_text("page")
    (report / "numbers").write_text("numbers")
    target = set_aside(tmp_path, "report", [report / "page", report / "inner", report / "none"])
    assert target == tmp_path / "report.1"
    assert {p.name for p in target.iterdir()} == {"page", "inner"}
    assert [p.name for p in report.iterdir()] == ["numbers"]


def test_nothing_is_set_aside_where_no_file_is(tmp_path: Path) -> None:
    (tmp_path / "student" / "empty").mkdir(parents=True)
    assert not holds_files(tmp_path / "student")
    assert not holds_files(tmp_path / "none")
    assert set_aside(tmp_path, "student", [tmp_path / "student", tmp_path / "none"]) is None
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_what_cannot_be_moved_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = made(tmp_path / "student", "1")

    def rename(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(WorkError, match=r"student cannot be moved to .*student\.1 \(Permission"):
        set_aside(tmp_path, "student", [student])
    assert (student / "inner" / "file").read_text() == "1"
