"""Console output of long runs: one line per stage, progress bars with rate and remaining time."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dsno.support.durations import duration
from dsno.support.verbosity import is_quiet, is_silent, is_verbose


@functools.cache
def console() -> Console:
    """Standard error; nothing is printed there by a silent process."""
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=is_silent())


def say(line: str) -> None:
    """Print one line, unless the user wants none."""
    if not is_quiet():
        console().print(line, markup=False)


def alert(line: str) -> None:
    """Print one line that every user should see."""
    console().print(line, markup=False)


class _Rate(ProgressColumn):
    """Units a second since the bar began."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        unit = str(task.fields.get("unit", "it"))
        return Text(f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2f} {unit}/s")


Advance = Callable[..., None]
"""advance(n, note=""): n more units are done; any thread may say so."""


@contextlib.contextmanager
def progress(what: str, total: int, *, done: int = 0, unit: str = "it") -> Iterator[Advance]:
    """A progress bar on standard error; on a pipe, a plain line now and then; nothing if quiet.

    Args:
        what: label.
        total: units in all.
        done: units an earlier run already did.
        unit: name of one unit, for the rate.
    """
    if is_quiet():
        yield lambda units=1, note="": None
    elif console().is_terminal:
        with _bars.shown() as bars:
            task = bars.add_task(what, total=total, completed=done, unit=unit, note="")

            def advance(units: int = 1, note: str = "") -> None:
                bars.update(task, advance=units, note=note)

            try:
                yield advance
            finally:
                bars.remove_task(task)
    else:
        yield _plain(what, total, done, unit)


class _Bars:
    """The bars of this process, in one block of lines: two blocks would overwrite each other.

    Work inside other work, in whatever thread, gets a line below the one it is part of.
    """

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._progress: Progress | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[Progress]:
        """The block, on the screen for as long as somebody has a bar in it."""
        with self._lock:
            if self._progress is None:
                self._progress = _block()
                self._progress.start()
            progress = self._progress
            self._users += 1
        try:
            yield progress
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    progress.stop()
                    self._progress = None


_bars = _Bars()


def _block() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console(),
        transient=True,
        refresh_per_second=4,
    )


FIRST, EVERY = 5, 15
"""Seconds to the first plain line, which says how long the work takes, and between others."""


def _plain(what: str, total: int, done: int, unit: str) -> Advance:
    start = time.monotonic()
    due, count = start + FIRST, done
    one_at_a_time = threading.Lock()

    def advance(units: int = 1, note: str = "") -> None:
        nonlocal count, due
        with one_at_a_time:
            count += units
            now = time.monotonic()
            if now < due or count >= total or is_silent():
                return
            due = now + EVERY
            rate = (count - done) / (now - start)
            left = duration((total - count) / rate)
            line = f"{what}: {count:,} of {total:,}, {rate:,.1f} {unit}/s, {left} left {note}"
            print(line.rstrip(), file=sys.stderr, flush=True)

    return advance


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the bars and the advice of diffusers and transformers while they load or save.

    The user hears them with --verbose.
    """
    if is_verbose():
        yield
        return
    loaded = [sys.modules[name] for name in ("diffusers", "transformers") if name in sys.modules]
    logs: list[Any] = [module.utils.logging for module in loaded]
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.disable_progress_bar()
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, level, shown in before:
            log.set_verbosity(level)
            if shown:
                log.enable_progress_bar()
