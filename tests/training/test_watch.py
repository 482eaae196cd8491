"""Training does not wait for its device: a step's waits are counted, on a device without data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.launched import training as work
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.schedules import BetaSchedule
from dsno.recipes.schema import Optimisation
from dsno.support import distributed
from dsno.teachers.store import denoiser_of
from dsno.training import trainer, watch
from dsno.training.losses import DenoisingObjective, Objective
from dsno.training.prefetch import Batch

# What reads a device's numbers, or makes a result whose size depends on them.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal"}


class Waits(TorchDispatchMode):
    """Counts what the host waits for, and gives zeros for what it reads from a `meta` tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self.where = "elsewhere"

    @contextmanager
    def during(self, where: str) -> Iterator[None]:
        before, self.where = self.where, where
        yield
        self.where = before

    def __torch_dispatch__(
        self, function: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        tensors = [value for value in args if isinstance(value, Tensor)]
        if name in READS and any(t.is_meta for t in tensors):
            self._note(name)
            return 0.0 if name == "_local_scalar_dense" else torch.zeros(0, dtype=torch.long)
        if name in ("_to_copy", "copy_"):
            source = tensors[-1]
            target = kwargs.get("device") if name == "_to_copy" else tensors[0].device
            goes_over = target is not None and torch.device(target).type != source.device.type
            waits = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
            if goes_over and (waits or source.is_meta):
                self._note(f"{source.device.type} to {target}")
            if goes_over and source.is_meta:
                return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        return function(*args, **kwargs)

    def _note(self, what: str) -> None:
        self.found.setdefault(self.where, []).append(what)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """What steps and looks wait for, in a training on a device whose tensors hold no numbers."""
    found = Waits()

    def counted(where: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with found.during(where):
                return method(*args)

        return call

    for name in ("_step", "_look"):
        monkeypatch.setattr(
            trainer._Training, name, counted(name, getattr(trainer._Training, name))
        )
    monkeypatch.setattr(trainer._Training, "_save", lambda _: None)
    monkeypatch.setattr(distributed, "device", lambda: torch.device("meta"))
    monkeypatch.setattr(watch.time, "perf_counter", lambda: 0.0)  # steps that take no time
    return found


def train(objective: Objective, batches: Any, steps: int, folder: Path, waits: Waits) -> None:
    plan = Optimisation(steps=steps, batch_size=8, learning_rate=1e-3, log_every=10**6)
    with waits:
        trainer.train(objective, batches, plan, folder, seed=0, tag="t")


def images(_: int, rows: range) -> Batch:
    shape = (len(rows), *work.SHAPE)
    times = torch.rand(len(rows), dtype=torch.float64)
    return {
        "items": torch.tensor(rows),
        "clean": torch.zeros(shape),
        "noise": torch.zeros(shape),
        "times": times,
    }


def test_a_step_of_the_student_waits_for_nothing(tmp_path: Path, waits: Waits) -> None:
    train(work.objective(), work.batches, 2, tmp_path, waits)
    assert "_step" not in waits.found


def test_a_step_of_the_teacher_waits_for_nothing(tmp_path: Path, waits: Waits) -> None:
    schedule = BetaSchedule()
    schedule.alpha(torch.zeros(1, device="meta"))  # its tables are copied once
    network = work.teacher().network
    denoiser = denoiser_of(network, Preconditioning(schedule, "epsilon"), work.SHAPE)
    train(DenoisingObjective(denoiser), images, 1, tmp_path, waits)
    assert "_step" not in waits.found


class Reading(Objective):
    """The mean of a linear layer's outputs, which it looks at or not."""

    def __init__(self, look: Callable[[Tensor], object] | None) -> None:
        super().__init__()
        self.model, self.look = nn.Linear(4, 4), look

    @property
    def networks(self) -> list[nn.Module]:
        return [self.model]

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, None]:
        loss = self.model(batch["x"]).mean()
        if self.look is not None:
            self.look(loss)
        return loss, None


def rows(_: int, places: range) -> Batch:
    return {"items": torch.tensor(places), "x": torch.zeros(len(places), 4)}


@pytest.mark.parametrize(
    "look",
    [
        lambda loss: loss.item(),
        lambda loss: bool(torch.isfinite(loss)),
        lambda loss: loss.tolist(),
        lambda loss: loss.cpu(),
        lambda loss: torch.zeros(1).to(loss.device),
        lambda loss: loss.reshape(1).nonzero(),
        lambda loss: loss.register_hook(lambda g: bool(g) or None),  # in the backward pass
    ],
)
def test_a_step_that_waits_is_noticed(tmp_path: Path, waits: Waits, look: Any) -> None:
    train(Reading(look), rows, 3, tmp_path, waits)
    assert len(waits.found["_step"]) == 3


def test_losses_are_looked_at_after_the_first_step_and_then_every_sixteen(
    tmp_path: Path, waits: Waits
) -> None:
    train(Reading(None), rows, 1 + 16 + 16 + 7, tmp_path, waits)
    assert waits.found["_look"] == ["meta to cpu"] * 4
    assert "_step" not in waits.found


# ------------------------------------------------------------------- when, and what is given


def keep(kept: watch.Watch, step: int, loss: float = 1.0, asked: bool = False) -> None:
    pieces = [torch.tensor([loss], dtype=torch.float64)]
    kept.keep(step, pieces, [[step]], torch.tensor(2.0), is_asked=asked)


@pytest.mark.parametrize(
    ("seconds", "interval"), [(1e-3, 16), (0.12, 8), (0.4, 2), (0.9, 1), (30.0, 1)]
)
def test_a_look_is_due_about_every_second(
    monkeypatch: pytest.MonkeyPatch, seconds: float, interval: int
) -> None:
    now = 0.0
    monkeypatch.setattr(watch.time, "perf_counter", lambda: now)
    kept, looks, since = watch.Watch(), [], 0
    for step in range(60):
        now += seconds
        since += 1
        keep(kept, step)
        if kept.is_due:
            looks.append(since)
            since = 0
            kept.look()
    assert looks[:2] == [1, 1]  # nothing is known before the first, and the second is as long
    assert set(looks[2:]) == {interval}


def test_a_look_gives_every_step_since_the_last() -> None:
    kept = watch.Watch()
    assert kept.look() == []
    pieces = [torch.tensor([2.0, 5.0, 1.0]).double(), torch.tensor([math.nan, 7.0, 2.0]).double()]
    kept.keep(
        3, pieces, [torch.tensor([1, 2]), torch.tensor([8, 9])], torch.tensor(0.5), is_asked=False
    )
    keep(kept, 4, asked=True)
    first, second = kept.look()
    assert math.isnan(first.loss)
    assert (first.step, first.per_time, first.norm, first.bad) == (3, [6.0, 1.5], 0.5, [8, 9])
    assert second == watch.Seen(4, 1.0, [], 2.0, [], True)
    assert (first.is_asked, kept.look()) == (False, [])
