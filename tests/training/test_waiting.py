"""The share of the time that a device waits for data."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsno.training.prefetch import Batch
from dsno.training.waiting import Waiting


class Clock:
    """Seconds, turned on by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def slow(clock: Clock, *seconds: float) -> Any:
    for each in seconds:
        clock.time += each
        batch: Batch = {"x": torch.zeros(1)}
        yield batch


def test_the_time_until_a_batch_is_there_is_counted_by_windows() -> None:
    clock = Clock()
    waiting, batches = Waiting(torch.device("cpu"), clock), slow(clock, 1.0, 0.5, 0.0, 0.25)
    assert waiting.share is None
    waiting.next(batches)
    clock.time += 3.0  # the step
    assert waiting.close_window() == (4.0, 1.0)
    assert waiting.share == 0.25
    for _ in range(3):
        waiting.next(batches)
        clock.time += 0.25
    assert waiting.close_window() == (1.5, 0.75)
    assert waiting.share == 0.5
    assert waiting.line("training") == (
        "training: 50% of the time was spent waiting for data; more processor cores, or data on a "
        "faster disk, would make it faster."
    )


@pytest.mark.parametrize(
    ("waits", "is_said"), [((9.0, 0.0), False), ((9.0, 0.5), False), ((0.0, 2.0), True)]
)
def test_little_waiting_and_that_at_the_start_are_not_worth_a_word(
    waits: tuple[float, float], is_said: bool
) -> None:
    clock = Clock()
    waiting, batches = Waiting(torch.device("cpu"), clock), slow(clock, *waits)
    for _ in waits:
        waiting.next(batches)
        clock.time += 8.0
        waiting.close_window()
    assert (waiting.line("training") is not None) == is_said


def test_a_gpu_that_is_busy_while_the_host_waits_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, queue = Clock(), 0.0  # when the device will have done what it was given

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time = max(clock.time, queue)

        def elapsed_time(self, other: Event) -> float:
            return 1000 * (other.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    waiting, batches = Waiting(torch.device("cuda"), clock), slow(clock, 1.0, 2.0, 3.0)
    for step in (4.0, 1.0, 1.0):  # 1 s lost, 2 s while it is busy, 3 s of which it is for 3 - 1
        waiting.next(batches)
        queue = max(clock.time, queue) + step
    clock.time = queue
    # It works from 1 to 5 and on to 6, the third batch is there at 6, and it ends at 7.
    assert waiting.close_window() == (7.0, 1.0)
