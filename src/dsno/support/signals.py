"""Delay Ctrl-C and SIGTERM until the current work is complete."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def interruption_delayed() -> Iterator[Callable[[], bool]]:
    """Delay Ctrl-C and SIGTERM; a second one acts at once.

    Yields a function that returns whether to stop. Outside the main thread nothing is delayed.
    """
    stop = False

    def request(signum: int, frame: Any) -> None:
        nonlocal stop
        if stop:
            raise KeyboardInterrupt
        stop = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
