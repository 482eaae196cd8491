"""Looks at a model that is being trained: which one is kept, when training stops, resuming."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.test_trainer import Given, Optimisation, plan_of
from torch import Tensor, nn

from dsno.support.errors import WorkError
from dsno.training.guard import PATIENCE, Guard, Look
from dsno.training.trainer import train


def look(step: int, distance: float | None, recall: float) -> Look:
    return {"step": step, "distance": distance, "recall": recall}


def guard(measure: Any = None) -> Guard:
    return Guard(measure or (lambda _: (None, 1.0)), recall_drop=0.05)


def test_the_nearest_with_enough_recall_is_the_best() -> None:
    looks = [look(0, 3.0, 0.80), look(5, 2.0, 0.76), look(10, 1.0, 0.74), look(15, 2.5, 0.9)]
    assert guard().best(looks)["step"] == 5


def test_a_distance_of_zero_is_the_nearest() -> None:
    looks = [look(0, 3.0, 0.80), look(5, 0.0, 0.8), look(10, 1.0, 0.8)]
    assert guard().best(looks)["step"] == 5
    lost = [look(0, 0.0, 0.8), *(look(n + 1, 1.0, 0.8) for n in range(PATIENCE))]
    assert "distance 1 after 0" in str(guard().why_stop(lost))


def test_without_data_the_last_with_enough_recall_is_the_best() -> None:
    looks = [look(0, None, 0.8), look(5, None, 0.76), look(10, None, 0.74)]
    assert guard().best(looks)["step"] == 5


@pytest.mark.parametrize(
    ("bad", "says"),
    [((6.1, 0.8), "distance 6.1 after 3"), ((1.0, 0.1), "recall 0.100 after 0.800")],
)
def test_training_stops_after_several_bad_looks_in_a_row(
    bad: tuple[float, float], says: str
) -> None:
    first = look(0, 3.0, 0.8)
    worse = [look(n + 1, *bad) for n in range(PATIENCE)]
    assert guard().why_stop([first, *worse[:-1]]) is None
    assert guard().why_stop([first, look(1, 5.9, 0.8), *worse[1:]]) is None
    why = guard().why_stop([first, *worse])
    assert why is not None
    assert says in why


# --------------------------------------------------------------------------- in a training

PLAN = plan_of(
    steps=9, learning_rate=0.1, decay="constant", betas=(0.0, 0.0), checkpoint_every=2, ema_decay=0
)
"""With loss = w and no momentum the weight falls by 0.1 a step."""


def falling(model: nn.Linear) -> tuple[Tensor, None]:
    return model.weight.sum(), None


def distance_of(model: nn.Module) -> tuple[float, float]:
    return abs(model(torch.ones(1, 1).double()).item() - 0.45), 1.0


def crash() -> None:
    raise ZeroDivisionError


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def watched(
    folder: Path, plan: Optimisation = PLAN, stop: int = -1, act: Callable[[], None] = crash
) -> tuple[float, Guard]:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    found = guard(distance_of)

    def loss(_: nn.Module, step: int) -> tuple[Tensor, None]:
        if step == stop:
            act()
        return falling(model)

    def batches(step: int, places: range) -> dict[str, Any]:
        return {"items": torch.tensor(places), "step": step}

    kept, _ = train(Given(model, loss), batches, plan, folder, seed=0, tag="a", guard=found)
    assert isinstance(kept, nn.Linear)
    return kept.weight.item(), found


def test_the_best_model_is_given_back(tmp_path: Path) -> None:
    weight, found = watched(tmp_path)
    assert [seen["step"] for seen in found.looks] == [0, 2, 4, 6, 8, 9]
    assert weight == pytest.approx(0.4)  # with ema_decay 0 the average is the model
    distances = [seen["distance"] for seen in found.looks]
    assert distances == pytest.approx([0.55, 0.35, 0.15, 0.05, 0.25, 0.35])


def test_a_resumed_training_has_the_same_looks(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        watched(tmp_path, stop=5)
    weight, found = watched(tmp_path)
    assert [seen["step"] for seen in found.looks] == [0, 2, 4, 6, 8, 9]
    assert weight == pytest.approx(0.4)
    again, repeated = watched(tmp_path)  # finished: nothing is trained or looked at
    assert (again, repeated.looks) == (weight, found.looks)


def test_an_interruption_between_looks_leaves_the_best_model(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"steps": 19, "keep": 1})
    # the loss falls all the time, the distance is least after step 6
    with pytest.raises(KeyboardInterrupt):
        watched(tmp_path, plan, stop=12, act=ask_to_stop)
    assert (tmp_path / "step-00000013.pt").exists()
    weight, found = watched(tmp_path, plan)
    assert [seen["step"] for seen in found.looks] == [*range(0, 19, 2), 19]
    assert weight == pytest.approx(0.4)


def test_training_that_is_lost_stops_and_gives_back_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = PLAN.model_copy(update={"steps": 99, "checkpoint_every": 1, "learning_rate": 1.0})
    weight, found = watched(tmp_path, plan)  # 1, 0, -1: nearer, then ever farther
    assert weight == pytest.approx(0, abs=1e-6)
    assert len(found.looks) == PATIENCE + 2
    assert "samples were lost in 6 looks in a row" in capsys.readouterr().err


def test_a_damaged_best_checkpoint_is_named(tmp_path: Path) -> None:
    watched(tmp_path)
    (tmp_path / "step-00000006.pt").write_bytes(b"damaged")
    with pytest.raises(WorkError, match=r"step-00000006.pt cannot be read; remove"):
        watched(tmp_path)
