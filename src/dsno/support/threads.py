"""Worker threads, each with a batch of its own, so that a small network uses every core of a CPU.

torch spreads single operations over its threads. Those of a small network are too short for that:
two threads are no faster than one. Whole batches side by side are, as torch computes without
Python's lock, and each comes out as it would alone.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import nn

Item = TypeVar("Item")
Found = TypeVar("Found")
Model = TypeVar("Model")

MOST = 8
"""Batches side by side, each of which takes its memory. Further cores share the operations."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says how much processor time a container gets: microseconds, in so many others."""


def cores(quota: Path = QUOTA) -> int:
    """Cores that this process may keep busy: torch's threads, or a container's quota if less.

    torch's threads are the cores that the process may run on, or what OMP_NUM_THREADS says.
    """
    threads = torch.get_num_threads()
    try:
        time, period = quota.read_text().split()
        return max(1, min(threads, int(time) // int(period)))
    except (OSError, ValueError):  # no Linux, no container, or "max": no quota
        return threads


class Workers:
    """Threads that work side by side; a context manager.

    Meanwhile torch's threads are divided among them. Where there is one, it is the calling thread,
    and nothing is divided.

    Args:
        device: where the work is computed; any but a CPU keeps itself busy and gets one worker.
        most: how many there are, if there are as many cores.
        threads: torch's, of each worker; an equal share of all if None.

    Attributes:
        count: how many there are.
    """

    def __init__(
        self, device: torch.device, most: int = MOST, *, threads: int | None = None
    ) -> None:
        available = cores()
        self.count = max(1, min(most, available)) if device.type == "cpu" else 1
        self._before = torch.get_num_threads()
        share = available // self.count if self.count > 1 else self._before
        self._threads = share if threads is None else threads
        self._pool: ThreadPoolExecutor | None = None
        self._handed_out: _Until[Any] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether one of them met an error, for long work that the others may leave then."""
        return self._handed_out is not None and self._handed_out.error is not None

    def __enter__(self) -> Self:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        if self.count > 1:
            # a thread has a number of its own, which it needs before its first operation
            start = functools.partial(torch.set_num_threads, self._threads)
            self._pool = ThreadPoolExecutor(self.count, "worker", start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        torch.set_num_threads(self._before)

    def map(self, work: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        """What `work` makes of each item, in their order; its first error is raised again."""
        found: dict[int, Found] = {}

        def one(index: int) -> None:
            found[index] = work(items[index])

        self.share(one, range(len(items)))
        return [found[index] for index in range(len(items))]

    def share(self, work: Callable[[Item], Any], items: Iterable[Item]) -> None:
        """Let every worker take the next item when it has finished one.

        After an error, or Ctrl-C in the calling thread, none takes another, and the error is raised
        again once each has finished the item in hand.

        Args:
            work: what is done with an item.
            items: taken from by one worker at a time.
        """
        if self._pool is None:
            for item in items:
                work(item)
            return
        handed_out = self._handed_out = _Until(iter(items))

        def take_all() -> None:
            try:
                for item in handed_out:
                    work(item)
            except BaseException as error:
                handed_out.stop(error)

        futures = [self._pool.submit(take_all) for _ in range(self.count)]
        try:
            # not one long wait, in which a signal that another thread got would not be seen
            while wait(futures, timeout=1).not_done:
                pass
        except BaseException as error:
            handed_out.stop(error)
        if handed_out.error is not None:
            raise handed_out.error


class _Until(Iterator[Item]):
    """Items for several threads, until the first error of one of them."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items, self._lock = items, threading.Lock()
        self.error: BaseException | None = None

    def __next__(self) -> Item:
        with self._lock:
            if self.error is not None:
                raise StopIteration
            return next(self._items)

    def stop(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error


def per_thread(model: Model) -> Callable[[], Model]:
    """A function that gives each thread a copy of a model; the calling one has the model itself.

    A network may keep what it computes between its layers, as `dsno.operator.batch_plan` does, so
    no two threads may run one. Copies share the weights.
    """
    local = threading.local()
    local.model = model

    def mine() -> Model:
        if not hasattr(local, "model"):
            local.model = with_same_weights(model)
        found: Model = local.model
        return found

    return mine


def with_same_weights(model: Model) -> Model:
    """A copy of a network, or of an object that holds networks, with the same tensors as weights.

    Gradients are each copy's own.
    """
    held = [model, *getattr(model, "__dict__", {}).values()]
    memo: dict[int, Any] = {}
    for module in held:
        if isinstance(module, nn.Module):
            memo |= {id(b): b for b in module.buffers()}
            memo |= {id(p): _alias(p) for p in module.parameters() if id(p) not in memo}
    return copy.deepcopy(model, memo)


def _alias(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
