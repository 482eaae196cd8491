"""Batches made ahead of need, in threads, so that making them does not hold up training.

Threads, and not the processes of torch's `DataLoader`: what the batches are cut from is one memory
map and one cache for all, and an error reaches the trainer as it was raised. Most of the work,
drawing noise and copying rows, is done without Python's lock.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import torch

Batch = Mapping[str, Any]
"""Tensors, or mappings of tensors, with a leading batch dimension."""

AHEAD = 2
"""Batches that may wait while one is in use, besides those that are being made."""
MOST_THREADS = 8
"""More would hold more batches in memory than any card needs."""


def threads_for(device: torch.device) -> int:
    """How many threads make batches: one if training needs the cores, else one a free core."""
    if device.type == "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    own = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # all processes here do this
    return min(MOST_THREADS, max(1, own - 1))


class Prefetcher(Iterator[Batch]):
    """Iterate over the batches `make` makes of `keys`, in order, made ahead; a context manager.

    An error that making a batch raised is raised again where the batch is asked for.

    Args:
        make: from a key to its batch; called in the threads, in several at once.
        keys: of the batches.
        pin: whether to move them to page-locked memory, which reaches a GPU without waiting.
        threads: batches made at a time.
    """

    def __init__(
        self, make: Callable[[Any], Batch], keys: Iterable[Any], *, pin: bool, threads: int = 1
    ) -> None:
        self._make, self._keys, self._pin = make, iter(keys), pin
        self._threads = _pool(threads)
        self._most = threads + AHEAD
        self._ahead: deque[Future[Batch]] = deque()
        self._ask()

    def _ask(self) -> None:
        """Have batches made until enough are."""
        for key in itertools.islice(self._keys, self._most - len(self._ahead)):
            self._ahead.append(self._threads.submit(self._batch, key))

    def _batch(self, key: Any) -> Batch:
        batch: Batch = _pinned(self._make(key)) if self._pin else self._make(key)
        return batch

    def __next__(self) -> Batch:
        if not self._ahead:
            raise StopIteration
        batch = self._ahead.popleft()
        self._ask()
        return batch.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads; torch's own do not divide the work of one of several further."""
    if threads == 1:
        return ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    before, begun = torch.get_num_threads(), threading.Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # takes the number there is, and would later overwrite ours
        torch.set_num_threads(1)
        begun.wait()

    pool = ThreadPoolExecutor(threads, "prefetch", begin)
    for _ in range(threads):
        pool.submit(int)  # starts a thread, as none is idle
    begun.wait()
    torch.set_num_threads(before)  # of threads that begin later
    return pool


def _pinned(value: Any) -> Any:
    """Page-locked copies."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, Mapping):
        return {key: _pinned(item) for key, item in value.items()}
    return value
