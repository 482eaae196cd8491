"""Batches made ahead of need, in a thread, so that reading data does not hold up training."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

Batch = Mapping[str, Any]
"""Tensors, or mappings of tensors, with a leading batch dimension."""

AHEAD = 2


class Feed:
    """The batches of `make`, in order, made ahead.

    Attributes:
        waited: seconds that `next` has waited for a batch so far.
    """

    def __init__(self, make: Callable[[Any], Batch], keys: Iterable[Any], *, pin: bool) -> None:
        self.waited = 0.0
        self._ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._fill, args=(make, keys, pin), name="feed", daemon=True
        )
        self._thread.start()

    def _fill(self, make: Callable[[Any], Batch], keys: Iterable[Any], pin: bool) -> None:
        try:
            for key in keys:
                batch = make(key)
                if not self._put((_pinned(batch) if pin else batch, None)):
                    return
        except BaseException as error:  # raised again where the batch is asked for
            self._put((None, error))

    def _put(self, item: tuple[Batch | None, BaseException | None]) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return True
        return False

    def next(self) -> Batch:
        """The next batch, or the error that making it raised."""
        start = time.perf_counter()
        batch, error = self._ready.get()
        self.waited += time.perf_counter() - start
        if error is not None:
            raise error
        assert batch is not None
        return batch

    def close(self) -> None:
        """Stop making batches."""
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def fed(make: Callable[[Any], Batch], keys: Iterable[Any], *, pin: bool) -> Iterator[Feed]:
    """A `Feed` that is closed at the end."""
    feed = Feed(make, keys, pin=pin)
    try:
        yield feed
    finally:
        feed.close()


def _pinned(value: Any) -> Any:
    """Page-locked copies, which reach a GPU without waiting."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, Mapping):
        return {key: _pinned(item) for key, item in value.items()}
    return value
