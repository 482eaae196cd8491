"""What a long run prints where there is no terminal."""

from __future__ import annotations

import time

import pytest

from dsno.support.console import progress, say


def test_a_line_is_printed_as_it_is_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    line = "teacher: [bold]not markup[/bold] /a/path 1,797 " + "long " * 60 + "end"
    say(line)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == line + "\n"


def test_progress_on_a_pipe_is_a_plain_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress("working", 1000, done=200, unit="step") as advance:
        for _ in range(8):
            now += 10
            advance(100, note="loss 0.5")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "working: 400 of 1,000, 10.0 step/s, 60 s left loss 0.5",
        "working: 600 of 1,000, 10.0 step/s, 40 s left loss 0.5",
        "working: 800 of 1,000, 10.0 step/s, 20 s left loss 0.5",
    ]


def test_a_short_job_prints_no_progress_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working", 3) as advance:
        for _ in range(3):
            advance()
    assert capsys.readouterr() == ("", "")
