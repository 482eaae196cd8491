"""The learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from dsno.recipes.choices import Decay
from dsno.recipes.schema import Optimisation


@dataclass(frozen=True)
class LearningRate:
    """rate(step), step counted from 0: linear warm-up from 0 to the peak, then a decay.

    Attributes:
        peak: what the warm-up ends at.
        steps: of the whole training.
        warmup_steps: of the warm-up.
        decay: `constant`, `cosine` to 0 at step `steps`, or `milestones`.
        milestones: steps at each of which the rate is multiplied by `gamma`.
        gamma: that factor.
    """

    peak: float
    steps: int
    warmup_steps: int
    decay: Decay
    milestones: tuple[int, ...]
    gamma: float

    @classmethod
    def of(cls, options: Optimisation) -> Self:
        """What options of a training say, whose steps and learning_rate are given."""
        assert options.learning_rate is not None
        assert options.steps is not None
        return cls(
            options.learning_rate,
            options.steps,
            options.warmup_steps,
            options.decay,
            options.milestones,
            options.gamma,
        )

    def __call__(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.decay == "milestones":
            return self.peak * self.gamma ** sum(step >= m for m in self.milestones)
        if self.decay == "constant":
            return self.peak
        part = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.peak * 0.5 * (1 + math.cos(math.pi * part))
