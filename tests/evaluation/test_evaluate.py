"""The measurement of every sampler: the same noise, the same numbers for all, turns when timed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.evaluation.mixture import Student, draws
from torch import Tensor

from dsno.diffusion.analytic import GaussianMixture
from dsno.diffusion.conditions import Condition
from dsno.diffusion.solvers import solve
from dsno.evaluation.evaluate import evaluate, seconds_per_sample
from dsno.evaluation.reference import Reference
from dsno.evaluation.samplers import (
    Sampler,
)
from dsno.recipes.schema import Curve, Evaluate


def exact(teacher: GaussianMixture, noise: Tensor) -> Tensor:
    return solve(teacher, noise, method="dpm++2m", steps=32).states[:, -1]


def plan(**changes: object) -> Evaluate:
    values = {
        "samples": 400,
        "batch_size": 150,
        "features": ("pixels",),
        "curves": (Curve(solver="ddim", steps=(1, 4)), Curve(solver="dpm++2m", steps=(32,))),
        "baseline_steps": 4,
        "reference_steps": 32,
        "pictures": 5,
        "timing_rounds": 1,
    }
    return Evaluate(**{**values, **changes})  # type: ignore[arg-type]


def test_a_perfect_student_has_no_paired_error_and_beats_ddim(
    teacher: GaussianMixture, reference: Reference
) -> None:
    student = Student(lambda noise: exact(teacher, noise))
    metrics, arrays = evaluate(teacher, student, reference, draws(150), plan())
    rows = {(row["name"], row["nfe"]): row for row in metrics["samplers"]}
    assert list(rows) == [("dsno", 1), ("ddim", 1), ("ddim", 4), ("dpm++2m", 32)]
    assert rows["dsno", 1]["paired_l1"] == 0
    assert rows["dpm++2m", 32]["paired_l1"] is None  # it is the reference of the others
    assert rows["ddim", 1]["paired_l1"] > rows["ddim", 4]["paired_l1"] > 0
    assert rows["dsno", 1]["frechet_distance"] == rows["dpm++2m", 32]["frechet_distance"]
    assert rows["dsno", 1]["precision"] == rows["dpm++2m", 32]["precision"]
    assert rows["ddim", 1]["recall"]["pixels"] < 0.5 < rows["dsno", 1]["recall"]["pixels"]
    distance = rows["dsno", 1]["kernel_distance"]["pixels"]
    assert distance["value"] < 0.1 * rows["ddim", 1]["kernel_distance"]["pixels"]["value"]
    assert all("inception_score" not in row for row in rows.values())  # pixels have no logits
    assert metrics["step_equivalence"] == [
        {"solver": "ddim", "features": "pixels", "relation": ">=", "evaluations": 4},
        {"solver": "dpm++2m", "features": "pixels", "relation": "=", "evaluations": 32},
    ]
    assert metrics["samples"] == 400
    assert metrics["verdict"] == {
        "student": rows["dsno", 1]["frechet_distance"]["pixels"],
        "ddim": rows["ddim", 4]["frechet_distance"]["pixels"],
        "ddim_nfe": 4,
        "features": "pixels",
    }
    assert metrics["verdict"]["student"] < metrics["verdict"]["ddim"]
    assert metrics["reference"]["split_half_distance"] == reference.floor
    assert all(row["seconds_per_sample"] > 0 for row in metrics["samplers"])
    assert rows["dsno", 1]["relative_time"] == 1
    assert {name: len(array) for name, array in arrays.items()} == dict.fromkeys(
        ("real", "teacher", "ddim", "student"), 5
    )
    assert torch.equal(arrays["student"], arrays["teacher"])
    assert torch.equal(arrays["real"], reference.data.images[:5])


def test_a_student_that_is_off_has_exactly_that_paired_error(
    teacher: GaussianMixture, reference: Reference
) -> None:
    off = Student(lambda noise: exact(teacher, noise) + 0.25)
    metrics, _ = evaluate(teacher, off, reference, draws(150), plan(curves=()))
    assert metrics["samplers"][0]["paired_l1"] == pytest.approx(0.25, rel=1e-5)
    assert metrics["verdict"]["student"] > 4 * 0.25**2 * 0.9  # the mean alone is so far


def test_samplers_are_fast_and_what_they_are_measured_by_is_exact(
    teacher: GaussianMixture, reference: Reference
) -> None:
    seen: dict[str, set[str]] = {"solver": set(), "student": set(), "features": set()}

    def note(who: str, x: Tensor) -> Tensor:
        seen[who].add(torch.get_float32_matmul_precision())
        return x

    class Noted(GaussianMixture):
        def __call__(self, x: Tensor, t: Tensor, condition: Condition | None = None, /) -> Tensor:
            return note("solver", super().__call__(x, t, condition))

    noted = Noted(teacher.means, teacher.stds, teacher.schedule)
    space = reference.spaces["pixels"]
    features = dataclasses.replace(space, outputs=lambda x: space.outputs(note("features", x)))
    student = Student(lambda noise: note("student", exact(teacher, noise)))
    by = dataclasses.replace(reference, spaces={"pixels": features})
    fast = plan(precision="tf32", curves=(Curve(solver="dpm++2m", steps=(32,)),))
    metrics, _ = evaluate(noted, student, by, draws(150), fast)
    assert metrics["arithmetic"] == {"precision": "tf32", "compiled": False}
    assert seen == {"solver": {"highest", "high"}, "student": {"high"}, "features": {"highest"}}
    # the same solver with the same steps is another one here, and a CPU rounds no product
    rows = {(row["name"], row["nfe"]): row["paired_l1"] for row in metrics["samplers"]}
    assert rows["dpm++2m", 32] == rows["dsno", 1] == 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_samplers_take_turns_when_they_are_timed() -> None:
    order: list[str] = []

    def named(name: str, nfe: int, who: str = "ddim") -> Sampler:
        def generate(noise: Tensor, _: Condition | None) -> Tensor:
            order.append(name)
            assert len(noise) == 8
            assert not torch.is_grad_enabled()
            return noise

        return Sampler(who, name, nfe, None, generate)

    three = [named("a", 1, "dsno"), named("b", 3, "dsno"), named("c", 1)]
    times = seconds_per_sample([*three, named("d", 2)], draws(), rounds=3, batch=8)
    # the student, the student in more steps and the cheapest solver are to warm up; every second
    # round is reversed
    assert sorted(order[:3]) == [*"abc"]
    assert order[3:] == [*"abcddcbaabcd"]
    assert len(times) == 4
    assert min(times) > 0
