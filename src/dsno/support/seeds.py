"""Random numbers as pure functions of (seed, stream, index).

Item i's noise and label do not depend on batch size, order, process or restart, so any worker can
make any item and an interrupted run goes on as if it had not been stopped. A counter-based
generator (Philox) is used because torch's CPU generator keeps only 32 bits of its seed: among a
million hashed seeds about a hundred pairs would then share their noise.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

# One stream per use: adding a use never changes the numbers of another.
NOISE: Final = 0
LABEL: Final = 1
BATCH: Final = 2
TRAINING: Final = 3
WEIGHTS: Final = 4
SPLIT: Final = 5
SAMPLE: Final = 6
SAMPLE_LABEL: Final = 7
GUIDANCE: Final = 8
PROMPT: Final = 9
SAMPLE_GUIDANCE: Final = 10
SAMPLE_PROMPT: Final = 11
FLIP: Final = 12
LABEL_DROPOUT: Final = 13
TEACHER_NOISE: Final = 14
TEACHER_TIME: Final = 15
PREVIEW: Final = 16
SUBSET: Final = 17
MATCHING_NOISE: Final = 18
MATCHING_TIME: Final = 19
RENOISE: Final = 20
FAKE_NOISE: Final = 21
FAKE_TIME: Final = 22


def generator(seed: int, stream: int, index: int = 0) -> np.random.Generator:
    """The generator of one item; `index` moves Philox's counter by 2^64 blocks."""
    key = np.array([seed % 2**64, stream], np.uint64)  # of a list numpy would make floats
    return np.random.Generator(np.random.Philox(key=key, counter=[0, index, 0, 0]))


def _generators(seed: int, stream: int, items: Iterable[int]) -> Iterator[np.random.Generator]:
    """`generator` of each item in turn; to be drawn from before the next is asked for.

    It is one generator, put to the start of each item: making one takes as long as a small image.
    """
    drawn = generator(seed, stream)
    start = drawn.bit_generator.state
    for item in items:
        start["state"]["counter"][1] = item
        drawn.bit_generator.state = start
        yield drawn


def item_noise(
    seed: int, items: Iterable[int], shape: Sequence[int], *, stream: int = NOISE
) -> Tensor:
    """Unit normal noise, one row per item: (len(items), *shape), float32."""
    numbers = list(items)
    rows = np.empty((len(numbers), *shape), np.float32)
    for row, drawn in zip(rows, _generators(seed, stream, numbers), strict=True):
        drawn.standard_normal(out=row, dtype=np.float32)  # other threads run meanwhile
    return torch.from_numpy(rows)


def item_labels(
    seed: int, items: Iterable[int], probabilities: Sequence[float], *, stream: int = LABEL
) -> Tensor:
    """Class labels drawn from `probabilities`, one per item: (len(items),), int64."""
    edges = np.cumsum(np.asarray(probabilities, dtype=np.float64))
    edges /= edges[-1]
    draws = [drawn.random() for drawn in _generators(seed, stream, items)]
    labels = np.searchsorted(edges, draws, side="right")
    return torch.from_numpy(np.minimum(labels, len(edges) - 1).astype(np.int64))


def batch_items(
    seed: int, step: int, batch_size: int, count: int, *, shard: int = 1, window: int | None = None
) -> Tensor:
    """The items of one training step, cut in order from an endless sequence of epochs.

    Epoch e is a permutation of range(count) seeded by (seed, e). With a window it is one of the
    shards, and of the items among each `window` consecutive ones of them, so that no more need to
    be at hand at a time.

    Args:
        seed: of the order.
        step: of training.
        batch_size: items of a step.
        count: items in all.
        shard: items of a shard.
        window: shards at a time; None for all.

    Returns:
        (batch_size,), int64.
    """
    first, last = step * batch_size, (step + 1) * batch_size
    pieces = []
    for epoch in range(first // count, (last - 1) // count + 1):
        order = _epoch_order(seed, epoch, count, shard, window)
        pieces.append(order[max(first - epoch * count, 0) : last - epoch * count])
    return torch.from_numpy(np.concatenate(pieces))


@functools.lru_cache(maxsize=2)  # the current epoch and the one a batch may straddle
def _epoch_order(seed: int, epoch: int, count: int, shard: int, window: int | None) -> np.ndarray:
    drawn = generator(seed, BATCH, epoch)
    shards = -(-count // shard)
    if window is None or window >= shards:
        return drawn.permutation(count)
    order = drawn.permutation(shards)
    groups = np.split(order, range(window, shards, window))
    rows = [(group[:, None] * shard + np.arange(shard)).flatten() for group in groups]
    return np.concatenate([drawn.permutation(group[group < count]) for group in rows])


def torch_seed(seed: int, stream: int, index: int = 0) -> int:
    """A seed for torch's own generators, drawn from (seed, stream, index)."""
    return int(generator(seed, stream, index).integers(2**63))
