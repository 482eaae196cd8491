"""How long the device waits for data: what says whether batches are made fast enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from dsno.training.prefetch import Batch

WORTH_SAYING = 0.1
"""Share of the time from which a user is told at the end."""


class Waiting:
    """The time that a device waits for batches, in windows.

    A GPU works through what the host has prepared: while it does, the host may wait for a batch and
    no time is lost. So it is asked itself when it was at the two ends of each wait.

    Args:
        device: that trains.
        now: the clock of windows and of devices that the host waits for.

    Attributes:
        share: of the last window; None before there is one.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self.share: float | None = None
        self._is_asynchronous, self._now = device.type == "cuda", now
        self._start, self._waited = now(), 0.0
        self._ends: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._windows: list[tuple[float, float]] = []

    def next(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; how long the device waits for it is counted."""
        if self._is_asynchronous:
            begin, end = _event(), _event()
            begin.record()
            batch = next(batches)
            end.record()
            self._ends.append((begin, end))
            return batch
        start = self._now()
        batch = next(batches)
        self._waited += self._now() - start
        return batch

    def close_window(self) -> tuple[float, float]:
        """Close a window; return its seconds, and those of them that the device waited.

        All that was begun in the window must be over on the device.
        """
        waited = self._waited + sum(a.elapsed_time(b) / 1000 for a, b in self._ends)
        now = self._now()
        seconds = max(now - self._start, 1e-9)
        self._start, self._waited, self._ends = now, 0.0, []
        self._windows.append((seconds, waited))
        self.share = waited / seconds
        return seconds, waited

    def line(self, what: str) -> str | None:
        """For people: how long `what` waited, if that is worth a word.

        The first window does not count: it begins with nothing made, and perhaps with compilation.
        """
        later = self._windows[1:]
        seconds, waited = sum(s for s, _ in later), sum(w for _, w in later)
        if waited <= WORTH_SAYING * seconds:
            return None
        return (
            f"{what}: {waited / seconds:.0%} of the time was spent waiting for data; more "
            "processor cores, or data on a faster disk, would make it faster."
        )


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
