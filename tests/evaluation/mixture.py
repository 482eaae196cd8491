"""A teacher in closed form, whose solver makes samples of the very data it is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dsno.diffusion.analytic import GaussianMixture
from dsno.diffusion.conditions import Condition, Conditions
from dsno.diffusion.schedules import CosineSchedule
from dsno.evaluation.samplers import Draws
from dsno.operator.dsno import DSNO

SHAPE = (1, 2, 2)


def mixture() -> GaussianMixture:
    """Two Gaussians on images of 2x2 pixels."""
    means = torch.tensor([[[[1.0, -1.0], [0.5, 0.0]]], [[[-1.0, 1.0], [0.0, 0.5]]]])
    return GaussianMixture(means, torch.full((2, 1, 1, 1), 0.3), CosineSchedule())


def draws(batch_size: int = 500, labelled: bool = False) -> Draws:
    return Draws(3, SHAPE, Conditions([0.5, 0.5] if labelled else None), batch_size)


def nothing(*_: object, **__: object) -> None:
    """Progress nobody looks at."""


class Student(DSNO):
    """An operator of which only the samples matter."""

    def __init__(self, sample: Callable[[Tensor], Tensor]) -> None:
        nn.Module.__init__(self)
        self._sample = sample

    def sample(self, noise: Tensor, condition: Condition | None = None) -> Tensor:
        return self._sample(noise)
