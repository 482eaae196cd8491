"""One training loop, for teacher and student.

Every random draw of step n is seeded from (seed, n) and the rows of its batch are a function of
(seed, n), so a run stopped anywhere and resumed from a checkpoint is the run that never stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dsno import seeds
from dsno.console import progress, say
from dsno.errors import WorkError, one_of
from dsno.files import replacing

DECAYS = ("constant", "cosine", "milestones")

Loss = Callable[[nn.Module, int], tuple[Tensor, Tensor | None]]
"""loss(model, step) -> (scalar loss, optional values to log per output time)."""


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        steps: optimiser steps.
        learning_rate: peak learning rate.
        warmup_steps: linear warm-up from 0.
        decay: what follows it: `constant`, `cosine` to 0, or `milestones` (times `gamma` at each).
        weight_decay: decoupled (AdamW); 0 is Adam.
        betas: of Adam.
        clip_norm: largest gradient norm; infinite for no clipping.
        ema_decay: of the averaged weights, warmed up as min(decay, (1 + n) / (10 + n)).
        checkpoint_every: steps between checkpoints.
        keep: checkpoints kept.
        log_every: steps between records of the history.
        seed: of every random draw.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 0
    decay: str = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = math.inf
    ema_decay: float = 0.9999
    checkpoint_every: int = 500
    keep: int = 2
    log_every: int = 50
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step (0-based)."""
        one_of(self.decay, DECAYS, "learning-rate decay")
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.decay == "milestones":
            return self.learning_rate * self.gamma ** sum(step >= m for m in self.milestones)
        if self.decay == "constant":
            return self.learning_rate
        part = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


@dataclass
class _State:
    """Where a run stands: the step, the records so far and the sums since the last of them."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    per_time: list[Tensor] = field(default_factory=list)

    def add(self, loss: Tensor, per_time: Tensor | None, norm: Tensor) -> None:
        self.step += 1
        self.losses.append(loss)
        self.norms.append(norm)
        if per_time is not None:
            self.per_time.append(per_time)

    def close_window(self, rate: float) -> None:
        row: dict[str, Any] = {
            "step": self.step,
            "loss": float(torch.stack(self.losses).mean()),
            "learning_rate": rate,
            "gradient_norm": float(torch.stack(self.norms).mean()),
        }
        if self.per_time:
            row["per_time"] = torch.stack(self.per_time).mean(0).tolist()
        self.history.append(row)
        self.losses, self.norms, self.per_time = [], [], []


@contextlib.contextmanager
def interruption_delayed() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C and SIGTERM until the step is whole; a second Ctrl-C acts at once.

    Yields a function that tells whether to stop. Outside the main thread nothing is held back.
    """
    stop = False

    def request(signum: int, frame: Any) -> None:
        nonlocal stop
        if stop:
            raise KeyboardInterrupt
        stop = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ema_of(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average with warm-up: min(decay, (1 + n) / (10 + n)) at update n."""

    def average(averaged: Any, current: Any, updates: Tensor | int) -> None:
        n = int(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=average, use_buffers=False)


def train(
    model: nn.Module,
    loss: Loss,
    plan: Plan,
    checkpoints: Path,
    *,
    tag: str,
    label: str = "training",
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train `model`, from its newest checkpoint if there is one.

    Args:
        model: changed in place.
        loss: called with the model and the step.
        plan: how.
        checkpoints: folder of checkpoints.
        tag: identifies what is trained; a checkpoint with another tag is not used.
        label: of the progress bar.

    Returns:
        The averaged model, in eval mode, and the history: one record per `log_every` steps with
        `step`, `loss` (their mean), `per_time`, `learning_rate`, `gradient_norm`.

    Raises:
        WorkError: if the loss or its gradient is not finite; the last good checkpoint stays.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=plan.learning_rate,
        betas=plan.betas,
        weight_decay=plan.weight_decay,
        fused=True,
    )
    average = ema_of(model, plan.ema_decay)
    state = _resume(checkpoints, tag, model, average, optimizer)
    model.train()
    with (
        progress(label, plan.steps, done=state.step, unit="step") as advance,
        interruption_delayed() as interrupted,
    ):
        while state.step < plan.steps:
            state.add(*_update(model, loss, plan, state.step, optimizer, average, checkpoints))
            if state.step % plan.log_every == 0 or state.step == plan.steps:
                state.close_window(plan.rate(state.step - 1))
            advance(1, note=f"loss {state.history[-1]['loss']:.4f}" if state.history else "")
            if interrupted() or (
                state.step % plan.checkpoint_every == 0 and state.step < plan.steps
            ):
                _save(checkpoints, tag, state, model, average, optimizer, plan.keep)
            if interrupted():
                say(f"Interrupted at step {state.step:,}; the same command goes on from there.")
                raise KeyboardInterrupt
    averaged: nn.Module = average.module
    return averaged.eval(), state.history


def _update(
    model: nn.Module,
    loss: Loss,
    plan: Plan,
    step: int,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel,
    checkpoints: Path,
) -> tuple[Tensor, Tensor | None, Tensor]:
    for group in optimizer.param_groups:
        group["lr"] = plan.rate(step)
    torch.manual_seed(int(seeds.generator(plan.seed, seeds.TRAINING, step).integers(2**63)))
    value, per_time = loss(model, step)
    _require_finite("loss", value, step, checkpoints)
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
    _require_finite("gradient's norm", norm, step, checkpoints)
    optimizer.step()
    average.update_parameters(model)
    return value.detach(), per_time, norm


def _require_finite(what: str, value: Tensor, step: int, checkpoints: Path) -> None:
    if not bool(torch.isfinite(value)):
        raise WorkError(
            f"The {what} became {value.item()} at step {step}; {_last_good(checkpoints)}; "
            "lower the learning rate or the gradient norm limit (`clip_norm`) and run again."
        )


# -------------------------------------------------------------------------------- checkpoints


def _paths(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def _last_good(folder: Path) -> str:
    paths = _paths(folder)
    return f"the last good checkpoint is {paths[0]}" if paths else "there is no checkpoint yet"


def _save(
    folder: Path,
    tag: str,
    state: _State,
    model: nn.Module,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> None:
    path = folder / f"step-{state.step:08d}.pt"
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(
            {
                "tag": tag,
                "state": {f.name: getattr(state, f.name) for f in dataclasses.fields(state)},
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
            },
            file,  # not its path: torch then hides why a write failed
        )
    for old in [p for p in _paths(folder) if p <= path][keep:]:  # later ones are another tag's
        old.unlink()


def _resume(
    folder: Path,
    tag: str,
    model: nn.Module,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
) -> _State:
    """Load the newest whole checkpoint of this tag, if any."""
    for path in _paths(folder):
        try:
            saved: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if saved["tag"] != tag:
                say(f"{path.name} is from another recipe and is not used.")
                continue
            model.load_state_dict(saved["model"])
            average.load_state_dict(saved["average"])
            optimizer.load_state_dict(saved["optimizer"])
            state = _State(**saved["state"])
        except (
            TypeError,
            OSError,
            RuntimeError,
            KeyError,
            ValueError,
            EOFError,
            pickle.UnpicklingError,
        ):
            say(f"Checkpoint {path} is damaged and is not used; going back to the one before.")
            continue
        say(f"Resuming from step {state.step:,} ({path}).")
        return state
    return _State()
