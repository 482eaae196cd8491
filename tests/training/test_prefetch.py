"""Batches made ahead in threads: their order, their errors and their end."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from dsno.training import prefetch
from dsno.training.prefetch import AHEAD, Batch, Prefetcher, threads_for


def batch(key: int) -> Batch:
    return {"items": torch.tensor([key])}


def take(prefetched: Prefetcher, count: int) -> list[int]:
    """The next batches; waiting for one that never comes is an error."""
    found: list[int] = []

    def fill() -> None:
        found.extend(int(next(prefetched)["items"]) for _ in range(count))

    reader = threading.Thread(target=fill, daemon=True)
    reader.start()
    reader.join(5)
    assert not reader.is_alive()
    return found


def running() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_batches_come_in_order_and_few_are_made_ahead() -> None:
    made: list[int] = []

    def make(key: int) -> Batch:
        made.append(key)
        return batch(key)

    with Prefetcher(make, range(100), pin=False) as prefetched:
        assert take(prefetched, 5) == [0, 1, 2, 3, 4]
        deadline = time.monotonic() + 5
        while len(made) < 6 + AHEAD and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)  # for more than there may be
        assert made == list(range(6 + AHEAD))  # nobody asked for the last ones yet


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_thread_is_raised_where_its_batch_is_asked_for(
    kind: type[BaseException],
) -> None:
    error = kind("the third batch")

    def make(key: int) -> Batch:
        if key == 2:
            raise error
        return batch(key)

    with Prefetcher(make, range(9), pin=False) as prefetched:
        assert take(prefetched, 2) == [0, 1]
        with pytest.raises(kind) as raised:
            next(prefetched)
    assert raised.value is error  # its class, text and traceback are those of the thread


def test_the_batches_end_with_their_keys() -> None:
    with Prefetcher(batch, range(2), pin=False) as prefetched:
        assert [int(b["items"]) for b in prefetched] == [0, 1]


def test_the_thread_ends_with_the_block_and_makes_no_more() -> None:
    before, made, gate, begun = running(), [], threading.Event(), threading.Event()

    def make(key: int) -> Batch:
        made.append(key)
        if key == 1:
            begun.set()
            assert gate.wait(5)
        return batch(key)

    def open_the_gate() -> None:
        while not prefetched._ahead[-1].cancelled():
            time.sleep(0.01)
        gate.set()

    with Prefetcher(make, range(10**9), pin=False) as prefetched:
        take(prefetched, 1)
        assert begun.wait(5)
        assert len(running()) == len(before) + 1
        threading.Thread(target=open_the_gate, daemon=True).start()
    assert running() == before
    assert made == [0, 1]  # those that waited for the thread are dropped


def test_as_many_batches_are_made_at_a_time_as_there_are_threads() -> None:
    together = threading.Barrier(3, timeout=5)

    def make(key: int) -> Batch:
        together.wait()  # an error unless three are being made
        if key % 3 == 0:
            time.sleep(0.02)  # those after it are there first
        return batch(key)

    with Prefetcher(make, range(9), pin=False, threads=3) as prefetched:
        assert take(prefetched, 9) == list(range(9))


def test_torch_divides_the_work_of_one_of_several_threads_no_further() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Prefetcher(
            lambda _: {"threads": torch.get_num_threads()}, range(6), pin=False, threads=3
        ) as made:
            assert [b["threads"] for b in made] == [1] * 6
            assert torch.get_num_threads() == 2
        with Prefetcher(
            lambda _: {"threads": torch.get_num_threads()}, range(2), pin=False
        ) as made:
            assert [b["threads"] for b in made] == [2] * 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("device", "cores", "processes", "threads"),
    [
        ("cpu", 64, 1, 1),
        ("cuda", 1, 1, 1),
        ("cuda", 4, 1, 3),
        ("cuda", 16, 4, 3),
        ("cuda", 64, 1, 8),
    ],
)
def test_a_gpus_batches_are_made_on_the_cores_that_are_free(
    monkeypatch: pytest.MonkeyPatch, device: str, cores: int, processes: int, threads: int
) -> None:
    monkeypatch.setattr(prefetch.sys, "platform", "linux")
    monkeypatch.setattr(prefetch.os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert threads_for(torch.device(device)) == threads
