"""Replicas in threads give the bits of micro-batches in turn, on any number of cores."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.launched import training as work
from torch import Tensor, nn

from dsno.recipes.schema import Optimisation
from dsno.support import distributed
from dsno.support.errors import InputError, WorkError
from dsno.training.losses import Objective
from dsno.training.replicas import replicas_of
from dsno.training.split import micro_batches
from dsno.training.trainer import train

Weights = dict[str, Tensor]


@contextlib.contextmanager
def cores(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def two_cores() -> Iterator[None]:
    with cores(2):
        yield


class Meeting(Objective):
    """Regression by a network; from the second step on both halves of a batch must meet."""

    def __init__(self, network: nn.Module, *, meets: bool = False) -> None:
        super().__init__()
        self.model = network
        self.meet = threading.Barrier(2) if meets else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Meeting:
        twin = Meeting(copy.deepcopy(self.model, memo))
        twin.meet = self.meet  # a lock cannot be copied
        return twin

    @property
    def networks(self) -> list[nn.Module]:
        return [self.model]

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, None]:
        if self.meet is not None and int(batch["step"][0]) > 0:
            self.meet.wait(30)
        return (self.model(batch["x"]) - 1).square().mean(), None


def batches(step: int, places: range) -> dict[str, Any]:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return {
        "items": torch.tensor(places),
        "x": x[places.start : places.stop],
        "step": torch.full((len(places),), step),
    }


def fit(objective: Objective, folder: Path, make: Any = batches, **changes: Any) -> Weights:
    plan = {"steps": 3, "learning_rate": 0.01, "batch_size": 8, "decay": "constant", **changes}
    train(objective, make, Optimisation(**plan), folder, seed=0, tag="t")
    return objective.state_dict()


def network(*layers: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 4))


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("two_cores")
def test_the_halves_of_a_batch_are_computed_side_by_side(tmp_path: Path) -> None:
    found = fit(Meeting(network(), meets=True), tmp_path / "a", cpu_replicas=2)
    assert_same(found, fit(Meeting(network()), tmp_path / "b", accumulation=2))
    assert torch.get_num_threads() == 2


def test_one_core_gives_the_same_bits(tmp_path: Path) -> None:
    with cores(1):
        found = fit(Meeting(network()), tmp_path / "a", cpu_replicas=2)
        assert_same(found, fit(Meeting(network()), tmp_path / "b", accumulation=2))


def test_four_cores_train_an_operator_to_the_bits_of_one(tmp_path: Path) -> None:
    with cores(1):
        expected, history = work.fit(tmp_path / "a", accumulation=2)
    with cores(4):
        found, again = work.fit(tmp_path / "b", cpu_replicas=2)
    assert again == history
    assert_same(found, expected)


def test_distributions_are_matched_to_the_bits_of_one_core(tmp_path: Path) -> None:
    with cores(1):
        expected, history = work.match(tmp_path / "a", accumulation=2, steps=2)
    with cores(4):
        found, again = work.match(tmp_path / "b", cpu_replicas=2, steps=2)
    assert again == history
    assert_same(found, expected)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(8)])
def test_what_depends_on_the_order_of_the_halves_is_computed_in_order(
    tmp_path: Path, layer: nn.Module
) -> None:
    objectives = [Meeting(network(copy.deepcopy(layer))) for _ in range(2)]
    with cores(2):
        found = fit(objectives[0], tmp_path / "a", cpu_replicas=2)
    with cores(1):
        assert_same(found, fit(objectives[1], tmp_path / "b", accumulation=2))


@pytest.mark.usefixtures("two_cores")
def test_micro_batches_and_replicas_go_together(tmp_path: Path) -> None:
    found = fit(Meeting(network()), tmp_path / "a", cpu_replicas=2, accumulation=2)
    whole = fit(Meeting(network()), tmp_path / "b")
    for name, weight in whole.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("two_cores")
def test_stopped_and_resumed_they_end_with_the_same_bits(tmp_path: Path) -> None:
    def cut(step: int, places: range) -> dict[str, Any]:
        if step == 2:
            raise work.Stop
        return batches(step, places)

    with pytest.raises(work.Stop):
        fit(Meeting(network()), tmp_path / "a", cut, cpu_replicas=2, checkpoint_every=2)
    found = fit(Meeting(network()), tmp_path / "a", cpu_replicas=2)
    assert_same(found, fit(Meeting(network()), tmp_path / "b", cpu_replicas=2))


@pytest.mark.usefixtures("two_cores")
def test_a_loss_that_is_not_finite_names_the_items_of_its_half(tmp_path: Path) -> None:
    def broken(step: int, places: range) -> dict[str, Any]:
        found = batches(step, places)
        if step == 1 and places.start == 4:
            found["x"] = found["x"] * float("nan")
        return found

    with pytest.raises(WorkError, match=r"loss became nan at step 1 \(items 4, 5, 6, 7 of the"):
        fit(Meeting(network()), tmp_path, broken, cpu_replicas=2)


def test_a_batch_that_does_not_divide_among_replicas_is_refused() -> None:
    with pytest.raises(InputError, match="into 1 processes x 2 accumulation x 3 cpu_replicas; "):
        micro_batches(8, accumulation=2, rank=0, world_size=1, replicas=3)


@pytest.mark.parametrize(
    ("changes", "device", "processes", "expected"),
    [
        ({}, "cpu", 1, 2),
        ({}, "cuda", 1, 1),
        ({}, "cpu", 2, 1),
        ({"compile": True}, "cpu", 1, 1),
        ({"shard": True}, "cpu", 1, 1),
    ],
)
def test_replicas_count_where_one_process_trains_plainly_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, bool],
    device: str,
    processes: int,
    expected: int,
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    options = Optimisation(cpu_replicas=2, **changes)
    assert replicas_of(options, torch.device(device)) == expected
