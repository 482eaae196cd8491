"""What a path, or no path, names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsno.runs.locate import name_of, newest_run
from dsno.support.errors import InputError


def test_the_run_whose_model_was_made_last_is_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no trained model in .*; give a model's folder"):
        newest_run(tmp_path / "runs")
    for age, name in enumerate(("b/student", "a/finished", "c/student", "d/teacher")):
        path = tmp_path / "runs" / name / "model_index.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, (1000 - age, 1000 - age))
    assert newest_run(tmp_path / "runs") == tmp_path / "runs" / "b"
    os.utime(tmp_path / "runs" / "a" / "finished" / "model_index.json", (2000, 2000))
    assert newest_run(tmp_path / "runs") == tmp_path / "runs" / "a"


def test_a_model_is_called_like_its_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert name_of(Path("runs/digits/finished")) == name_of(Path("runs/digits/student")) == "digits"
    assert name_of(Path("exported/mine")) == "mine"
    monkeypatch.chdir(tmp_path)
    assert name_of(Path("student")) == tmp_path.name
