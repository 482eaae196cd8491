"""Training by the clock: the product's own loop, ended by time instead of by steps."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dsno.recipes.schema import Optimisation
from dsno.training.losses import Objective
from dsno.training.trainer import Batches, Preview, train

ENDLESS = 10**9


class Clock:
    """A time box that begins when the first steps, which compile, are over.

    Args:
        seconds: of the box.
        untimed: steps before it begins.
        latest: when to end in any case, on `now`'s clock.
        now: the clock.
    """

    def __init__(
        self,
        seconds: float,
        untimed: int,
        latest: float = math.inf,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.seconds, self.untimed, self.latest, self.now = seconds, untimed, latest, now
        self.begin: float | None = None
        self.end, self.last = latest, 0.0
        self.steps = -1

    def at(self, step: int) -> float:
        """Share of the box that is over when a step begins, 0 to 1; 1 asks for an end."""
        now = self.now()
        if step > self.steps:
            self.steps, self.last = step, now
        if self.begin is None and step >= self.untimed:
            self.begin, self.end = now, min(now + self.seconds, self.latest)
        if now >= self.end:
            return 1.0
        if self.begin is None:
            return 0.0
        return (now - self.begin) / (self.end - self.begin)

    @property
    def rate(self) -> float:
        """Steps a second inside the box."""
        if self.begin is None or self.last <= self.begin:
            return 0.0
        return (self.steps - self.untimed) / (self.last - self.begin)


@dataclass
class TimedRate:
    """A learning rate that falls to 0 as the time runs out, and then asks the loop to stop.

    The stop is the one of SIGTERM: the loop finishes its step and saves a checkpoint.

    Attributes:
        clock: the time.
        peak: what the warm-up ends at.
        warmup_steps: of the warm-up, from 0.
        is_asked: whether a stop was asked for.
    """

    clock: Clock
    peak: float
    warmup_steps: int
    is_asked: bool = False

    def __call__(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        share = self.clock.at(step)
        if share >= 1 and not self.is_asked:  # a second signal would not wait for the step's end
            self.is_asked = True
            signal.raise_signal(signal.SIGTERM)
        warm = min((step + 1) / max(self.warmup_steps, 1), 1.0)
        return self.peak * warm * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Trained:
    """A training's outcome: the averaged model, its history, steps and steps a second."""

    model: nn.Module
    history: list[Any]
    steps: int
    steps_per_second: float


def train_for(
    seconds: float,
    objective: Objective,
    batches: Batches,
    spec: Optimisation,
    folder: Path,
    *,
    latest: float = math.inf,
    untimed: int = 2,
    seed: int = 0,
    preview: Preview | None = None,
) -> Trained:
    """Train for so many seconds, not counting the first `untimed` steps.

    Args:
        seconds: how long.
        objective: the model with its loss.
        batches: makes the data.
        spec: how; its steps and decay do not count.
        folder: for checkpoints; new or empty.
        latest: when to end in any case, in seconds of `time.time`.
        untimed: steps that are not counted.
        seed: of the training.
        preview: sees the averaged model every `spec.log_images_every` steps.
    """
    assert spec.learning_rate is not None
    endless = {"steps": ENDLESS, "checkpoint_every": ENDLESS, "log_with": ()}
    options = spec.model_copy(update=endless)
    clock = Clock(seconds, untimed, latest)
    rate, named = TimedRate(clock, spec.learning_rate, spec.warmup_steps), folder.name
    given: dict[str, Any] = {"seed": seed, "tag": named, "label": named}
    with contextlib.suppress(KeyboardInterrupt):
        train(objective, batches, options, folder, preview=preview, rate=rate, **given)
    # Where it stopped is where this one ends: it reads the checkpoint and gives its average. With
    # gradients left, torch would not prepare the optimiser for its saved state.
    objective.zero_grad(set_to_none=True)
    steps = clock.steps + 1
    done = options.model_copy(update={"steps": steps, "compile": False})
    model, history = train(objective, batches, done, folder, **given)
    return Trained(model, list(history), steps, clock.rate)
