"""What every method is made of: the coefficients at a time, a step, and the step with D frozen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from dsno.diffusion.schedules import NoiseSchedule, signal_and_noise


@dataclass(frozen=True)
class Node:
    """One time of the step grid with its coefficients, in double precision."""

    t: Tensor
    alpha: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        """log(alpha / sigma); infinite at the ends of some schedules."""
        if self.alpha == 0:
            return -math.inf
        return math.inf if self.sigma == 0 else math.log(self.alpha / self.sigma)

    @property
    def angle(self) -> float:
        """atan2(sigma, alpha)."""
        return math.atan2(self.sigma, self.alpha)


@dataclass(frozen=True)
class Visit:
    """A start of an earlier step: the time, the state there and its denoised estimate."""

    node: Node
    state: Tensor
    denoised: Tensor


@dataclass
class Step:
    """What a step function may use: the denoiser, both ends and what multistep methods noted."""

    denoise: Callable[[Tensor, Node], Tensor]
    start: Node
    end: Node
    visits: list[Visit] = field(default_factory=list)

    @property
    def is_last(self) -> bool:
        """Whether the step ends at the clean sample."""
        return self.end.sigma == 0


StepFunction = Callable[[Tensor, Step], Tensor]
"""(state at the step's start, step) -> state at its end."""


def jump(x: Tensor, denoised: Tensor, start: Node, end: Node) -> Tensor:
    """The exact solution over a step if D were constant."""
    ratio = end.sigma / start.sigma
    return ratio * x + (end.alpha - start.alpha * ratio) * denoised


def nodes(schedule: NoiseSchedule, times: Tensor) -> list[Node]:
    """The coefficients at every time; t = 0 is the clean end, alpha = 1 and sigma = 0."""
    alphas, sigmas = signal_and_noise(schedule, times)
    return [
        Node(t, a, s)
        for t, a, s in zip(times.double(), alphas.tolist(), sigmas.tolist(), strict=True)
    ]
