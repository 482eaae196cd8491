"""What is computed of each of many items, shared by all processes, a batch at a time.

Every finished batch is a file, so a kill costs each process the batch in hand and no more. Batches
are the same whoever works, and they are read back in their order, so nothing depends on the number
of processes. Files hold features, not images, but for the solutions that errors are measured from;
they go when their owner has what it needs.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsno.support import distributed
from dsno.support.console import Advance, progress
from dsno.support.errors import InputError
from dsno.support.files import replacing
from dsno.support.threads import MOST, Workers
from dsno.support.transfers import Arrival, runs_ahead

Results = Mapping[str, Tensor]
"""Arrays by name, joined along their first dimension in the order of the items."""


@dataclass(frozen=True)
class Work:
    """Something to compute of items 0 .. count - 1.

    Attributes:
        name: of its folder.
        label: for the progress bar.
        count: items.
        batch_size: items at a time.
        run: from some items to an array of each result.
        cost: of an item, in units of the progress bar.
        threads: that may run it side by side, at most.
    """

    name: str
    label: str
    count: int
    batch_size: int
    run: Callable[[range], Results]
    cost: int = 1
    threads: int = MOST

    @property
    def batches(self) -> list[range]:
        """The items, cut into batches."""
        ends = range(0, self.count, self.batch_size)
        return [range(i, min(i + self.batch_size, self.count)) for i in ends]


class Desk:
    """A folder where work is done by all processes; without one, by this process in memory.

    Args:
        folder: on a disk that all processes see; None to keep nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def at(self, name: str) -> Path | None:
        """Where the batches of a work are."""
        return None if self.folder is None else self.folder / name

    def done(self, work: Work) -> int:
        """How many of a work's items are finished."""
        return sum(len(items) for items in work.batches if self._is_done(work, items))

    def _is_done(self, work: Work, items: range) -> bool:
        folder = self.at(work.name)
        return folder is not None and (folder / _file(items)).is_file()

    def compute(self, work: Work, advance: Advance) -> None:
        """Do what is left of a work; under a launcher every process calls this.

        On a CPU several threads of each do. Each takes the next batch when it has finished one, and
        all return together.
        """
        folder = self.at(work.name)
        if folder is None:  # it is computed as it is read
            return
        left = distributed.on_main(
            lambda: [items for items in work.batches if not self._is_done(work, items)]
        )

        device, asked = distributed.device(), deque[tuple[range, _Rows]]()

        def keep_oldest() -> None:
            items, rows = asked.popleft()
            found = rows.wait()
            with replacing(folder / _file(items)) as temporary:
                save_file(found, temporary)
            advance(len(items) * work.cost, note=work.label)

        def one(items: range) -> None:
            asked.append((items, _Rows(work, items)))
            if not runs_ahead(device) or len(asked) > 1:  # the device is never without work
                keep_oldest()

        with Workers(device, work.threads) as workers:
            workers.share(one, _taken(left, distributed.shared_total(work.name)))
        while asked:
            keep_oldest()
        distributed.wait_for_everyone()

    def results(self, work: Work, advance: Advance) -> dict[str, Tensor]:
        """Every result of a work that `compute` did, in the order of the items."""

        def one(items: range) -> dict[str, Tensor]:
            if self.folder is not None:
                return self.batch(work.name, items)
            rows = _Rows(work, items).wait()
            advance(len(items) * work.cost, note=work.label)
            return rows

        with Workers(distributed.device(), work.threads) as workers:
            found = workers.map(one, work.batches)
        return {name: torch.cat([batch[name] for batch in found]) for name in found[0]}

    def batch(self, name: str, items: range) -> dict[str, Tensor]:
        """The results of one finished batch.

        Raises:
            InputError: if its file is damaged.
        """
        folder = self.at(name)
        assert folder is not None
        path = folder / _file(items)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{path}, a finished part of an evaluation, cannot be read ({error}); delete it "
                "and run again."
            ) from None

    def clear(self, name: str) -> None:
        """Remove the files of a work."""
        folder = self.at(name)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _file(items: range) -> str:
    return f"{items.start:08d}-{items.stop:08d}.safetensors"


def _taken(batches: Sequence[range], take: Callable[[int], int]) -> Iterator[range]:
    """Those that fall to this process."""
    while (turn := take(1)) <= len(batches):
        yield batches[turn - 1]


class _Rows:
    """The results of some items, on their way to the host."""

    def __init__(self, work: Work, items: range) -> None:
        with torch.no_grad():
            found = work.run(items)
            self._arrivals = {k: Arrival(value.contiguous()) for k, value in found.items()}

    def wait(self) -> dict[str, Tensor]:
        """The results, once they are there."""
        return {name: arrival.wait() for name, arrival in self._arrivals.items()}


@contextlib.contextmanager
def shared_progress(what: str, total: int, *, done: int, unit: str) -> Iterator[Advance]:
    """A progress bar on which the first process shows the work of all."""
    count = distributed.shared_total(f"progress of {what}")
    shown, one_at_a_time = 0, threading.Lock()
    with progress(what, total, done=done, unit=unit) as advance:

        def together(units: int = 1, note: str = "") -> None:
            nonlocal shown
            with one_at_a_time:
                now = count(units)
                advance(now - shown, note=note)
                shown = now

        yield together
