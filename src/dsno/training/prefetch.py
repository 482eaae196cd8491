"""Batches made ahead of need, in a thread, so that reading data does not hold up training.

A thread, and not the processes of torch's `DataLoader`: what the batches are cut from is one memory
map and one cache for all, and an error reaches the trainer as it was raised.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import torch

Batch = Mapping[str, Any]
"""Tensors, or mappings of tensors, with a leading batch dimension."""

AHEAD = 3
"""Batches that are made or waiting while one is in use."""


class Prefetcher(Iterator[Batch]):
    """Iterate over the batches `make` makes of `keys`, in order, made ahead; a context manager.

    An error that making a batch raised is raised again where the batch is asked for.

    Args:
        make: from a key to its batch; called in the thread.
        keys: of the batches.
        pin: whether to move them to page-locked memory, which reaches a GPU without waiting.

    Attributes:
        waited: seconds that `next` has waited for a batch so far.
    """

    def __init__(self, make: Callable[[Any], Batch], keys: Iterable[Any], *, pin: bool) -> None:
        self.waited = 0.0
        self._make, self._keys, self._pin = make, iter(keys), pin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: deque[Future[Batch]] = deque()
        self._ask()

    def _ask(self) -> None:
        """Have batches made until `AHEAD` are."""
        for key in itertools.islice(self._keys, AHEAD - len(self._ahead)):
            self._ahead.append(self._thread.submit(self._batch, key))

    def _batch(self, key: Any) -> Batch:
        batch: Batch = _pinned(self._make(key)) if self._pin else self._make(key)
        return batch

    def __next__(self) -> Batch:
        if not self._ahead:
            raise StopIteration
        batch = self._ahead.popleft()
        self._ask()
        start = time.perf_counter()
        try:
            return batch.result()
        finally:
            self.waited += time.perf_counter() - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)


def _pinned(value: Any) -> Any:
    """Page-locked copies."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, Mapping):
        return {key: _pinned(item) for key, item in value.items()}
    return value
