"""Training by the clock: the product's own loop, ended by time instead of by steps."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsno.recipes.schema import Optimisation
from dsno.training.losses import Objective
from dsno.training.prefetch import Batch
from dsno.training.trainer import Batches, Preview, TrainConfig, train

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


@dataclass(frozen=True)
class TimedConfig(TrainConfig):
    """A learning rate that falls to 0 as the time runs out; the step after that asks for a stop.

    The stop is the one of SIGTERM: the loop finishes its step and saves a checkpoint.
    """

    clock: Clock = dataclasses.field(default_factory=lambda: Clock(math.inf, 0))
    asked: list[int] = dataclasses.field(default_factory=list)

    def rate(self, step: int) -> float:
        """The learning rate of a step (0-based)."""
        share = self.clock.at(step)
        if share >= 1 and not self.asked:  # a second signal would not wait for the step's end
            self.asked.append(step)
            signal.raise_signal(signal.SIGTERM)
        warm = min((step + 1) / max(self.warmup_steps, 1), 1.0)
        falling = 0.5 * (1 + math.cos(math.pi * share)) if self.decay == "cosine" else 1.0
        return self.learning_rate * warm * falling


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
        spec: how; its steps and, beyond cosine or constant, its decay do not count.
        folder: for checkpoints; new or empty.
        latest: when to end in any case, in seconds of `time.time`.
        untimed: steps that are not counted.
        seed: of the training.
        preview: sees the averaged model every `spec.log_images_every` steps.
    """
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    values = {k: v for k, v in dict(spec).items() if k in names}
    values["clip_norm"] = math.inf if spec.clip_norm is None else spec.clip_norm
    values |= {"steps": ENDLESS, "checkpoint_every": ENDLESS, "log_with": (), "seed": seed}
    clock = Clock(seconds, untimed, latest)
    label = folder.name
    try:
        train(
            objective,
            batches,
            TimedConfig(**values, clock=clock),
            folder,
            tag=label,
            label=label,
            preview=preview,
        )
    except KeyboardInterrupt:
        rate, steps = clock.rate, clock.steps + 1
    else:
        raise AssertionError("training ended before its time")
    # Where it stopped is where this one ends: it reads the checkpoint and gives its average. With
    # gradients left, torch would not prepare the optimiser for its saved state.
    objective.zero_grad(set_to_none=True)
    done = TrainConfig(**{**values, "steps": steps, "compile": False})
    model, history = train(objective, batches, done, folder, tag=label, label=label)
    return Trained(model, list(history), steps, rate)


def spread(batches: Batches, threads: int) -> Batches:
    """The same batches, each made by several threads: a batch is a function of its places."""
    if threads < 2:
        return batches
    pool = ThreadPoolExecutor(threads)

    def batch(step: int, places: range) -> Batch:
        cuts = [places.start + len(places) * i // threads for i in range(threads + 1)]
        shares = [range(a, b) for a, b in zip(cuts, cuts[1:], strict=False) if a < b]
        return _joined(list(pool.map(lambda share: batches(step, share), shares)))

    return batch


def _joined(found: list[Any]) -> Any:
    if isinstance(found[0], Tensor):
        return torch.cat(found)
    assert isinstance(found[0], Mapping)
    return {key: _joined([f[key] for f in found]) for key in found[0]}


def images_per_second(batches: Batches, size: int, seconds: float = 2.0) -> float:
    """How fast batches can be made, with nothing to use them."""
    batches(0, range(size))
    start, step = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or step == 0:
        step += 1
        batches(step, range(size))
    return step * size / spent
