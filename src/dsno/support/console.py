"""Console output of long runs: one line per stage, progress bars with rate and remaining time."""

from __future__ import annotations

import contextlib
import functools
import os
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


def is_silent() -> bool:
    """Whether this is not the first process of a launch, the one that prints for all."""
    return os.environ.get("RANK", "0") != "0"


@functools.cache
def console() -> Console:
    """Standard error; nothing is printed there by a silent process."""
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=is_silent())


def say(line: str) -> None:
    """Print one line."""
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
    """A progress bar on standard error; on a pipe, a plain line every 15 seconds instead.

    Args:
        what: label.
        total: units in all.
        done: units an earlier run already did.
        unit: name of one unit, for the rate.
    """
    if not console().is_terminal:
        yield _plain(what, total, done, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console(), transient=True, refresh_per_second=4) as bar:
        task = bar.add_task(what, total=total, completed=done, unit=unit, note="")

        def advance(units: int = 1, note: str = "") -> None:
            bar.update(task, advance=units, note=note)

        yield advance


def _plain(what: str, total: int, done: int, unit: str) -> Advance:
    start = last = time.monotonic()
    count = done
    one_at_a_time = threading.Lock()

    def advance(units: int = 1, note: str = "") -> None:
        nonlocal count, last
        with one_at_a_time:
            count += units
            now = time.monotonic()
            if now - last < 15 or count >= total or is_silent():
                return
            last = now
            rate = (count - done) / (now - start)
            left = (total - count) / rate
            line = (
                f"{what}: {count:,} of {total:,}, {rate:,.1f} {unit}/s, {left:,.0f} s left {note}"
            )
            print(line.rstrip(), file=sys.stderr, flush=True)

    return advance


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the bars and the advice of diffusers and transformers while they load or save."""
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
