"""What a long run prints, on a terminal and without one."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.errors import LiveError
from rich.live import Live

from dsno.support import console as module
from dsno.support.console import alert, progress, quiet_libraries, say
from dsno.support.verbosity import Verbosity, set_verbosity


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 100 columns."""
    text = io.StringIO()
    shown = Console(file=text, force_terminal=True, width=100, highlight=False, soft_wrap=True)
    monkeypatch.setattr(module, "console", lambda: shown)
    return text


@pytest.fixture
def quiet() -> Iterator[None]:
    set_verbosity(Verbosity.QUIET)
    yield
    set_verbosity(Verbosity.USUAL)


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
        "working: 300 of 1,000, 10.0 step/s, 70 s left loss 0.5",
        "working: 500 of 1,000, 10.0 step/s, 50 s left loss 0.5",
        "working: 700 of 1,000, 10.0 step/s, 30 s left loss 0.5",
        "working: 900 of 1,000, 10.0 step/s, 10 s left loss 0.5",
    ]


def test_a_short_job_prints_no_progress_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working", 3) as advance:
        for _ in range(3):
            advance()
    assert capsys.readouterr() == ("", "")


def test_bars_of_nested_work_stand_below_each_other(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    live: list[Live] = []

    def set_live(self: Console, one: Live) -> bool:  # as in rich 13, which refuses a second display
        if live:
            raise LiveError("Only one live display may be active at once")
        live.append(one)
        return True

    monkeypatch.setattr(Console, "set_live", set_live)
    monkeypatch.setattr(Console, "clear_live", lambda self: live.clear())

    def lines() -> list[str]:
        """Label and count of each bar in the newest picture of the display."""
        screen.seek(0)
        screen.truncate()
        live[0].refresh()
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", screen.getvalue())
        return [" ".join(found) for found in re.findall(r"(\S.*?) +[━╸╺]+ +(\d+/\d+)", plain)]

    with progress("outer", 10) as advance:
        advance(3)
        with progress("inner [of it]", 5) as further:
            further(2)
            assert lines() == ["outer 3/10", "inner [of it] 2/5"]
        assert lines() == ["outer 3/10"]
        with pytest.raises(ValueError, match="broken"), progress("next", 2):
            raise ValueError("broken")
        assert lines() == ["outer 3/10"]
    assert live == []
    with progress("again", 1):
        assert lines() == ["again 0/1"]


@pytest.mark.usefixtures("quiet")
def test_quiet_leaves_warnings_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say("teacher: a note")
    alert("Warning: samples are few.")
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress("working", 100) as advance:
        now += 60
        advance(1)
    assert capsys.readouterr() == ("", "Warning: samples are few.\n")


def test_verbose_lets_libraries_speak() -> None:
    import diffusers

    log = diffusers.utils.logging
    usual = log.get_verbosity()
    with quiet_libraries():
        assert log.get_verbosity() == log.ERROR
    assert usual != log.ERROR
    set_verbosity(Verbosity.VERBOSE)
    try:
        with quiet_libraries():
            assert log.get_verbosity() == usual
    finally:
        set_verbosity(Verbosity.USUAL)
