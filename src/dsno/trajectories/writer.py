"""A thread that writes what is finished while the next is made."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self


class Writer:
    """Does one piece of writing at a time, in the order given; a context manager.

    What a piece raises is raised by the next method that is called. Leaving the context waits for
    the piece in hand.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dsno-writer")
        self._pending: Future[object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)

    def start(self, work: Callable[[], object]) -> None:
        """Begin to write, once what was begun before is written."""
        self.finish()
        self._pending = self._pool.submit(work)

    def check(self) -> None:
        """Raise what the writing has raised so far."""
        if self._pending is not None and self._pending.done():
            self.finish()

    def finish(self) -> None:
        """Return when all is written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
