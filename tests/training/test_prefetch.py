"""Batches made ahead in a thread: their order, their errors and their end."""

from __future__ import annotations

import threading

import pytest
import torch

from dsno.training.prefetch import AHEAD, Batch, Feed, fed


def batch(key: int) -> Batch:
    return {"items": torch.tensor([key])}


def take(feed: Feed, count: int) -> list[int]:
    """The next batches; a feed that stays silent is an error."""
    found: list[int] = []

    def fill() -> None:
        found.extend(int(feed.next()["items"]) for _ in range(count))

    reader = threading.Thread(target=fill, daemon=True)
    reader.start()
    reader.join(5)
    assert not reader.is_alive()
    return found


def test_batches_come_in_order_and_few_are_made_ahead() -> None:
    made: list[int] = []

    def make(key: int) -> Batch:
        made.append(key)
        return batch(key)

    with fed(make, range(100), pin=False) as feed:
        assert take(feed, 5) == [0, 1, 2, 3, 4]
    assert len(made) <= 5 + AHEAD + 1


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_thread_is_raised_where_its_batch_is_asked_for(
    kind: type[BaseException],
) -> None:
    def make(key: int) -> Batch:
        if key == 2:
            raise kind("the third batch")
        return batch(key)

    with fed(make, range(9), pin=False) as feed:
        assert take(feed, 2) == [0, 1]
        feed._thread.join(5)
        assert not feed._ready.empty()
        with pytest.raises(kind, match="the third batch"):
            feed.next()


def test_the_thread_ends_with_the_feed() -> None:
    with fed(batch, range(10**9), pin=False) as feed:
        take(feed, 1)
    assert not feed._thread.is_alive()
