"""Time grids: where to step and where to save.

A grid is a map g from u in [0, 1] to time with g(0) = 0 and g(1) = 1; N steps lie at g(i / N).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from dsno.diffusion.schedules import NoiseSchedule
from dsno.recipes.choices import SpacingName
from dsno.support.errors import one_of
from dsno.support.scalars import whole

MOST_STEPS = 1_000_000
"""Steps of a grid at most: more is a slip of the hand, and would fill the memory."""
SPACINGS: tuple[SpacingName, ...] = get_args(SpacingName)
_KARRAS_RHO, _KARRAS_MIN, _KARRAS_MAX = 7.0, 0.002, 80.0


@dataclass(frozen=True)
class Spacing:
    """A monotone map g from u in [0, 1] to time, t = g(u), with g(0) = 0 and g(1) = 1.

    A grid of N steps is g(i / N). `uniform`: t = u (what the field calls DDIM); `quadratic`:
    t = u^2 (the paper's CIFAR-10 grid); `karras`: sigma/alpha follows the rho = 7 interpolation
    between 0.002 and 80, or the schedule's own range where that is narrower (arXiv 2206.00364,
    eq. 5), with both ends moved to t = 0 and t = 1.
    """

    name: str
    schedule: NoiseSchedule

    def __post_init__(self) -> None:
        one_of(self.name, SPACINGS, "spacing")

    @functools.cached_property
    def _karras_ends(self) -> tuple[float, float]:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        low, high = torch.exp(-self.schedule.log_snr(ends) / 2).tolist()
        return (
            max(low, _KARRAS_MIN) ** (1 / _KARRAS_RHO),
            min(high, _KARRAS_MAX) ** (1 / _KARRAS_RHO),
        )

    def time(self, u: Tensor) -> Tensor:
        """g(u), in float64."""
        u = u.double()
        if self.name == "uniform":
            return u
        if self.name == "quadratic":
            return u**2
        low, high = self._karras_ends
        t = self.schedule.time_of(-2 * _KARRAS_RHO * (low + u * (high - low)).log())
        return torch.where(u <= 0, torch.zeros_like(t), torch.where(u >= 1, torch.ones_like(t), t))

    def position(self, t: Tensor) -> Tensor:
        """The u with g(u) = t, in float64; the inverse of `time`."""
        t = t.double()
        if self.name == "uniform":
            return t
        if self.name == "quadratic":
            return t.sqrt()
        low, high = self._karras_ends
        root = torch.exp(-self.schedule.log_snr(t) / (2 * _KARRAS_RHO))
        u = ((root - low) / (high - low)).clamp(0, 1)
        return torch.where(t <= 0, torch.zeros_like(u), torch.where(t >= 1, torch.ones_like(u), u))


def time_grid(spacing: str, steps: int, schedule: NoiseSchedule) -> Tensor:
    """The `steps + 1` times 1 = t_0 > ... > t_steps = 0 of a grid, float64.

    Raises:
        InputError: for an unknown spacing, or steps that are not a whole number of at least 1.
    """
    steps = whole(steps, "number of steps of a time grid", most=MOST_STEPS)
    u = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    return Spacing(spacing, schedule).time(u)


def grid_times(spacing: Spacing, slices: int) -> Tensor:
    """The times t_m = g(m / M), m = M - 1 .. 0, falling, float64: (M,)."""
    return spacing.time(torch.arange(slices - 1, -1, -1, dtype=torch.float64) / slices)
