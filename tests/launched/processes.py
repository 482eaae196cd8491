"""Processes of their own in a fraction of a second, to be watched, signalled and killed.

They are forked from a server that has imported the libraries (`tests.launched.preload`), which
takes a fresh interpreter seconds. Otherwise they are what `python -m dsno` and `torchrun` start.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

PRELOAD = "tests.launched.preload"


@functools.cache
def _server() -> ForkServerContext:
    """What forks: one server for each process of the tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD])
    path = os.pathsep.join(entry for entry in sys.path if entry)
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}):
        forkserver.ensure_running()
    return context


def _work(function: str, arguments: tuple[Any, ...], log: Path, environment: Any) -> None:
    """Of a forked process: call `module:function` and exit with what it returns."""
    assert PRELOAD in sys.modules, f"the server could not import {PRELOAD}"
    os.environ.update(environment)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.close(written)
    module, _, name = function.partition(":")
    sys.exit(getattr(importlib.import_module(module), name)(*arguments))


class Child:
    """A process at work.

    Args:
        function: what it does, as `module:function`; what that returns is the exit code.
        arguments: of the function.
        log: file to which standard output and standard error are appended.
        environment: variables it has besides those of the tests.
        has_children: whether it starts processes itself.
    """

    def __init__(
        self,
        function: str,
        arguments: Sequence[Any],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        has_children: bool = False,
    ) -> None:
        self.log = log
        work = (function, tuple(arguments), log, dict(environment or {}))
        self._process = _server().Process(target=_work, args=work, daemon=not has_children)
        self._process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def end(self, seconds: float = 300) -> int:
        """Wait for its end; return the exit code, -N if it was signal N that ended it."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            raise TimeoutError(f"still at work after {seconds} s; {self.log} ends: {self.said()}")
        return code

    def said(self) -> str:
        """What is in the log."""
        return self.log.read_text() if self.log.exists() else ""


def command(words: Sequence[str], log: Path) -> Child:
    """`dsno` with these words after it."""
    return Child("dsno.cli:main", [list(words)], log)


class Launch:
    """Processes that work together, in the environment that `torchrun` gives them.

    Its agent keeps the store through which they find each other; here the tests do.
    """

    def __init__(
        self,
        count: int,
        function: str,
        arguments: Sequence[Any],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        from torch.distributed import TCPStore

        self.log = log
        self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        shared = {
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(self._store.port),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            **(environment or {}),
        }
        self._ranks = [
            Child(function, arguments, log, {**shared, "RANK": str(i), "LOCAL_RANK": str(i)})
            for i in range(count)
        ]

    def is_alive(self) -> bool:
        """Whether none has ended."""
        return all(rank.is_alive() for rank in self._ranks)

    def send_signal(self, number: int) -> None:
        """Send every process a signal."""
        for rank in self._ranks:
            rank.send_signal(number)

    def end(self, seconds: float = 300) -> list[int]:
        """Wait for the end of all; return their exit codes."""
        return [rank.end(seconds) for rank in self._ranks]

    def said(self) -> str:
        """What they said together."""
        return self._ranks[0].said()


def launched_command(
    words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Launch:
    """`torchrun --nproc-per-node 2 -m dsno` with these words after it."""
    return Launch(2, "dsno.cli:main", [list(words)], log, environment)


class Alive(Protocol):
    """What may end before it is expected to."""

    def is_alive(self) -> bool:
        """Whether it has not ended."""


def wait(reached: Callable[[], bool], process: Alive, seconds: float = 300) -> None:
    """Return as soon as a running process has come to a point."""
    end = time.monotonic() + seconds
    while not reached():
        assert process.is_alive(), "the process ended before it could be stopped"
        assert time.monotonic() < end, "the process never came so far"
        time.sleep(0.001)
