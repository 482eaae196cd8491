"""What the steps gave, kept on the device until somebody looks: reading it makes the host wait.

A host that waits in every step cannot prepare the next one while the device computes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsno.support import distributed

MOST = 16
"""Steps between two looks at most."""
SECONDS = 1.0
"""About how long a step's result may wait for a look, unless a single step takes longer."""


@dataclass(frozen=True)
class Seen:
    """The results of one step, over all processes.

    Attributes:
        step: which, from 0.
        loss: mean over the batch.
        per_time: mean loss at each output time; empty if the step has none.
        norm: of the gradient, before clipping.
        bad: items of the pieces of this process's part whose loss is not finite.
        is_asked: whether any process was asked to stop.
    """

    step: int
    loss: float
    per_time: list[float]
    norm: float
    bad: list[int]
    is_asked: bool


@dataclass(frozen=True)
class _Kept:
    step: int
    items: Sequence[Sequence[int] | Tensor]
    values: Tensor


class Watch:
    """Results of the steps since the last look, on the device.

    All processes look after the same steps: what `is_due` depends on goes round with the losses.
    """

    def __init__(self) -> None:
        self._kept: list[_Kept] = []
        self._looked, self._interval = time.perf_counter(), 1
        self._pace = math.inf  # seconds a step of this process, unknown until the first look

    def keep(
        self,
        step: int,
        pieces: Sequence[Tensor],
        items: Sequence[Sequence[int] | Tensor],
        norm: Tensor,
        *,
        is_asked: bool,
    ) -> None:
        """Keep what a step gave; every process does so for every step.

        Args:
            step: which, from 0.
            pieces: of each piece of this process's part of the batch, the loss and, if there are
                any, the losses at each time: (1 + M,), float64, on the device.
            items: of each piece, the numbers of its rows in the data, on the CPU.
            norm: of the gradient, (), the same in every process.
            is_asked: whether this process was asked to stop.
        """
        total = pieces[0]
        for piece in pieces[1:]:
            total = total + piece
        about = [total.new_full((1,), value) for value in (float(is_asked), self._pace)]
        sums = distributed.summed(torch.cat([total / len(pieces), *about]))
        means = sums / distributed.world_size()
        own = torch.stack([piece[0] for piece in pieces])
        self._kept.append(_Kept(step, items, torch.cat([own, norm.to(means).reshape(1), means])))

    @property
    def is_due(self) -> bool:
        """Whether the results kept should be looked at now."""
        return len(self._kept) >= self._interval

    def look(self) -> list[Seen]:
        """The results of the steps since the last look, in order; the device is waited for."""
        kept, self._kept = self._kept, []
        if not kept:
            return []
        lengths = [len(step.values) for step in kept]
        values = torch.split(torch.cat([step.values for step in kept]).cpu(), lengths)
        now = time.perf_counter()
        self._pace, self._looked = (now - self._looked) / len(kept), now
        pace = float(values[-1][-1])
        self._interval = min(MOST, max(1, int(SECONDS / pace))) if pace else MOST
        return [_seen(step, row.tolist()) for step, row in zip(kept, values, strict=True)]


def _seen(kept: _Kept, values: list[float]) -> Seen:
    pieces = len(kept.items)
    own, (norm, loss, *per_time, asked, _) = values[:pieces], values[pieces:]
    bad = [
        int(item)
        for value, items in zip(own, kept.items, strict=True)
        if not math.isfinite(value)
        for item in items
    ]
    return Seen(kept.step, loss, per_time, norm, bad, asked > 0)
