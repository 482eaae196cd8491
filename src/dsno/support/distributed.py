"""The processes that share work: the rank of this one, its device, and what all agree on.

A thin layer over Accelerate's `PartialState`, so that the same command runs alone, under
`accelerate launch` or under `torchrun`, on one machine or many. Alone, everything here is free.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from dsno.support.errors import DsnoError

Result = TypeVar("Result")

# Processes wait for the slowest one after a collection: a shard may take an hour there. A process
# that died is noticed at once by the launcher, not by this limit.
PATIENCE = datetime.timedelta(hours=6)


@functools.cache
def _state() -> PartialState:
    cpu = not torch.accelerator.is_available()  # else Accelerate would not join CPU processes
    return PartialState(cpu, timeout=PATIENCE) if is_launched() else PartialState(cpu)


def is_launched() -> bool:
    """Whether a launcher (`torchrun`, `accelerate launch`) started this process as one of many."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Number of this process, from 0."""
    return int(_state().process_index)


def world_size() -> int:
    """How many processes share the work."""
    return int(_state().num_processes)


def is_main() -> bool:
    """Whether this is process 0, which alone writes what is not a shard."""
    return rank() == 0


def device() -> torch.device:
    """Where this process computes."""
    found: torch.device = _state().device
    return torch.device("cpu") if found.type == "cpu" else found  # not cpu:0, its unequal twin


def device_name() -> str:
    """Name of the device this process computes on, for messages."""
    where = device()
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type


def wait_for_everyone() -> None:
    """Return when every process has called this."""
    _state().wait_for_everyone()


def on_main(work: Callable[[], Result]) -> Result:
    """Let process 0 do something and give its result, or its `DsnoError`, to every process."""
    if world_size() == 1:
        return work()
    message: list[Any] = [None]
    if is_main():
        try:
            message = [(work(), None)]
        except DsnoError as error:
            message = [(None, error)]
    broadcast_object_list(message)
    result, failure = message[0]
    if failure is not None:
        failure.is_shared = True
        raise failure
    found: Result = result
    return found


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over the processes; alone, the tensor."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gathered(value: Any) -> list[Any]:
    """Every process's value, in their order."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def shared_total(name: str) -> Callable[[int], int]:
    """A function add(n) that adds n to a total over all processes and returns the new total.

    It starts at 0 each time this is called, by every process in the same order. Shards are assigned
    by it, in any thread: fast processes come back for more, which is all that load balancing needs.
    """
    if world_size() == 1:
        return _Total()
    # The launcher's own store; after an elastic restart it still holds the numbers of before.
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(  # type: ignore[attr-defined]
        f"dsno/{restart}/{next(_totals)}/{name}",
        dist.TCPStore(address, port, is_master=False),  # type: ignore[attr-defined]
    )
    return lambda n: int(store.add("total", n))


_totals = itertools.count()


class _Total:
    """A total of one process, for all of its threads."""

    def __init__(self) -> None:
        self._value, self._lock = 0, threading.Lock()

    def __call__(self, n: int) -> int:
        with self._lock:
            self._value += n
            return self._value
