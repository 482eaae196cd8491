"""The simulated queue of shards against what can be worked out by hand."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from plan_imagenet64 import Fleet, Outcome, efficiency, flops, queue, ranges

from dsno.recipes import load_recipe

Policy = Callable[[int, float, int, Fleet, int], Outcome]
POLICIES = pytest.mark.parametrize("policy", [queue, ranges])


@POLICIES
@pytest.mark.parametrize("workers", [1, 3, 7, 10, 16])
def test_equal_workers_take_as_many_rounds_as_there_are_shards_for_each(
    policy: Policy, workers: int
) -> None:
    outcome = policy(10, 0.5, workers, Fleet(), 0)
    assert outcome == Outcome(pytest.approx(0.5 * math.ceil(10 / workers)), 0, 0)


def test_a_queue_leaves_a_straggler_less_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fleet, "paces", lambda *_: np.array([1.0, 3.0]))
    # Ranges: the slow one needs 4 x 3 h. Queue: it takes shards at 0 h and 3 h, the other 6.
    assert ranges(8, 1.0, 2, Fleet(), 0).hours == pytest.approx(12)
    assert queue(8, 1.0, 2, Fleet(), 0).hours == pytest.approx(6)


@pytest.mark.parametrize("workers", [4, 64])
def test_a_queue_is_never_far_from_the_best_there_is(workers: int) -> None:
    fleet = Fleet(spread=0.1, stragglers=0.2)
    pace = fleet.paces(workers, np.random.default_rng(5))
    best = 1000 / (1 / pace).sum()  # work shared without limit
    found = queue(1000, 1.0, workers, fleet, 5).hours
    assert best <= found <= best + pace.max()  # Graham's bound for shards of one length


@POLICIES
def test_failures_come_as_often_as_they_should_and_cost_what_they_cost(policy: Policy) -> None:
    fleet = Fleet(mtbf=50.0, restart=0.25, save=0.1)
    made = [policy(400, 1.0, 4, fleet, seed) for seed in range(60)]
    failures = np.array([m.failures for m in made])
    expected = 400 / 50  # worker hours over the mean time between failures
    assert failures.mean() == pytest.approx(expected, abs=4 * (expected / 60) ** 0.5)
    # A failure falls anywhere between two saves.
    assert sum(m.lost for m in made) / failures.sum() == pytest.approx(0.05, rel=0.1)
    if policy is queue:  # every failure stops all
        for m in made:
            assert m.hours >= 100 + 0.25 * m.failures


@POLICIES
def test_a_simulation_is_a_function_of_its_seed(policy: Policy) -> None:
    fleet = Fleet(spread=0.1, stragglers=0.1, mtbf=20.0)
    assert policy(50, 1.0, 8, fleet, 3) == policy(50, 1.0, 8, fleet, 3)
    assert policy(50, 1.0, 8, fleet, 3) != policy(50, 1.0, 8, fleet, 4)


def test_an_efficiency_is_of_perfectly_shared_work() -> None:
    assert efficiency(10, 0.5, 4, queue(10, 0.5, 4, Fleet(), 0)) == pytest.approx(10 / 12)


def test_the_plan_counts_the_papers_network() -> None:
    # The student sees four slices, and its temporal layers cost a few per cent.
    counted = flops(load_recipe("imagenet64"), 1000)
    assert counted["parameters"] / 1e6 == pytest.approx(329.2, abs=0.05)
    assert 4 < counted["student_evaluation"] / counted["teacher_evaluation"] < 4.2
    # ADM's network of the same widths at 64x64: 103.9 billion multiply-adds (its paper, table 5).
    assert counted["teacher_evaluation"] / 2e9 == pytest.approx(103.9, rel=0.1)
