"""Evaluation: distances that tell good samplers from bad, and the same numbers for all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dsno.data.dataset import Dataset
from dsno.diffusion.analytic import Gaussian, GaussianMixture
from dsno.diffusion.conditions import Condition, Conditions
from dsno.diffusion.schedules import CosineSchedule
from dsno.diffusion.solvers import solve
from dsno.diffusion.time_grids import Spacing
from dsno.evaluation.evaluate import (
    Draws,
    Reference,
    Sampler,
    build_reference,
    draw,
    evaluate,
    power_spectrum,
    samplers_of,
    seconds_per_sample,
    student_sampler,
    teacher_sampler,
    usual_spaces,
)
from dsno.operator.dsno import DSNO
from dsno.recipes.schema import Curve, Evaluate
from dsno.support import seeds
from dsno.support.errors import InputError

SHAPE = (1, 2, 2)


def nothing(*_: object, **__: object) -> None:
    """Progress nobody looks at."""


@pytest.fixture(scope="module")
def teacher() -> GaussianMixture:
    """A closed-form teacher: its solver makes samples of the very data below."""
    means = torch.tensor([[[[1.0, -1.0], [0.5, 0.0]]], [[[-1.0, 1.0], [0.0, 0.5]]]])
    return GaussianMixture(means, torch.full((2, 1, 1, 1), 0.3), CosineSchedule())


@pytest.fixture(scope="module")
def data(teacher: GaussianMixture) -> Dataset:
    images = teacher.sample(3000, torch.Generator().manual_seed(0)).float()
    return Dataset("mixture", images, torch.zeros(3000, dtype=torch.int64), 2)


@pytest.fixture(scope="module")
def reference(data: Dataset) -> Reference:
    return build_reference(data, ["pixels"], seed=0)


def draws(batch_size: int = 500, labelled: bool = False) -> Draws:
    return Draws(3, SHAPE, Conditions([0.5, 0.5] if labelled else None), batch_size)


class Student(DSNO):
    """An operator of which only the samples matter."""

    def __init__(self, sample: Callable[[Tensor], Tensor]) -> None:
        nn.Module.__init__(self)
        self._sample = sample

    def sample(self, noise: Tensor, condition: Condition | None = None) -> Tensor:
        return self._sample(noise)


def exact(teacher: GaussianMixture, noise: Tensor) -> Tensor:
    return solve(teacher, noise, method="dpm++2m", steps=32).states[:, -1]


# ------------------------------------------------------------------------------- distances


def test_a_perfect_sampler_is_at_the_floor_and_noise_far_above(
    teacher: GaussianMixture, reference: Reference
) -> None:
    floor = reference.floor["pixels"]
    good = draw(teacher_sampler(teacher, "heun", 24, "uniform"), draws(), 1500, nothing)
    noise = draw(Sampler("x", "x", 1, None, lambda n, _: n), draws(), 1500, nothing)
    assert 0 < floor < 0.05
    assert reference.distances(good)["pixels"] < 3 * floor
    assert reference.distances(noise)["pixels"] > 30 * floor
    assert reference.distances(reference.data.images)["pixels"] < 1e-9


def test_more_steps_are_closer(teacher: GaussianMixture, reference: Reference) -> None:
    curve = [
        reference.distances(
            draw(teacher_sampler(teacher, "ddim", n, "uniform"), draws(), 1500, nothing)
        )["pixels"]
        for n in (1, 4, 16)
    ]
    assert curve[0] > 10 * curve[1] > 10 * curve[2]


def test_a_reference_describes_its_spaces(data: Dataset, reference: Reference) -> None:
    assert reference.records == {"pixels": {"dimension": 4}}
    assert reference.real["pixels"].count == 3000
    other = build_reference(data, ["pixels"], seed=1)
    assert other.floor != reference.floor  # other halves
    assert build_reference(data, ["pixels"], seed=0).floor == reference.floor


def test_a_sampler_that_makes_nan_is_refused(reference: Reference) -> None:
    with pytest.raises(InputError, match="not finite"):
        reference.distances(torch.full((5, *SHAPE), torch.nan))


@pytest.mark.parametrize(("shape", "plain"), [((1, 32, 32), "pixels"), ((1, 25, 41), "thumbnail")])
def test_images_of_more_than_1024_numbers_are_compared_by_thumbnails(
    shape: tuple[int, ...], plain: str
) -> None:
    images, labels = torch.zeros(2, *shape), torch.tensor([0, 1])
    assert usual_spaces(Dataset("plain", images)) == (plain,)
    assert usual_spaces(Dataset("classes", images, labels, 2)) == (plain, "classifier")


def test_classifier_features_of_vectors_are_refused() -> None:
    flat = Dataset("flat", torch.randn(100, 2), torch.zeros(100, dtype=torch.int64), 1)
    with pytest.raises(InputError, match="use the features 'pixels'"):
        build_reference(flat, ["pixels", "classifier"], seed=0)


# --------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("labelled", [False, True])
def test_samples_do_not_depend_on_the_batch_size(teacher: GaussianMixture, labelled: bool) -> None:
    sampler = teacher_sampler(teacher, "dpm++2m", 4, "uniform")
    whole = draw(sampler, draws(64, labelled), 50, nothing)
    for size in (1, 7, 50):
        assert torch.equal(draw(sampler, draws(size, labelled), 50, nothing), whole)
    assert torch.equal(draw(sampler, draws(7, labelled), 20, nothing), whole[:20])


def test_every_sampler_starts_from_the_same_noise_and_labels() -> None:
    seen: list[Tensor] = []

    def keep(noise: Tensor, condition: Condition | None) -> Tensor:
        assert condition is not None
        seen.append(condition["class_labels"])
        return noise

    both = draws(6, labelled=True)
    made = [draw(Sampler(n, n, 1, None, keep), both, 10, nothing) for n in "ab"]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], seeds.item_noise(3, range(10), SHAPE, stream=seeds.SAMPLE))
    expected = seeds.item_labels(3, range(10), [0.5, 0.5], stream=seeds.SAMPLE_LABEL)
    assert torch.equal(torch.cat(seen[:2]), expected)
    assert torch.equal(torch.cat(seen[2:]), expected)


def test_progress_counts_evaluations(teacher: GaussianMixture) -> None:
    counts: list[int] = []
    sampler = teacher_sampler(teacher, "heun", 3, "uniform")
    draw(sampler, draws(4), 10, lambda n, note: counts.append(n))
    assert sampler.nfe == 5  # the last step costs one
    assert counts == [20, 20, 10]


def test_samplers_are_the_student_and_each_distinct_curve_once(teacher: GaussianMixture) -> None:
    plan = Evaluate(
        curves=(
            Curve(solver="ddim", steps=(1, 4)),
            Curve(solver="heun", steps=(2,), spacing="karras"),
            Curve(solver="ddim", steps=(4,), spacing="quadratic"),
        ),
        baseline_steps=4,
    )
    found = [s.key for s in samplers_of(teacher, Student(lambda n: n), plan)]
    assert found == [
        ("dsno", 1, None),
        ("ddim", 1, "uniform"),
        ("ddim", 4, "uniform"),
        ("heun", 3, "karras"),
        ("ddim", 4, "quadratic"),
    ]
    other = samplers_of(
        teacher, Student(lambda n: n), plan.model_copy(update={"baseline_steps": 9})
    )
    assert [s.key for s in other] == [*found, ("ddim", 9, "uniform")]


# ------------------------------------------------------------------------------ the record


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


def test_samplers_take_turns_when_they_are_timed() -> None:
    order: list[str] = []

    def named(name: str) -> Sampler:
        def generate(noise: Tensor, _: Condition | None) -> Tensor:
            order.append(name)
            assert len(noise) == 8
            assert not torch.is_grad_enabled()
            return noise

        return Sampler(name, name, 1, None, generate)

    times = seconds_per_sample([named("a"), named("b")], draws(), rounds=3, batch=8)
    # the first is to warm up; every second round is reversed
    assert order == ["a", *"abbaab"]
    assert len(times) == 2
    assert min(times) > 0


def test_the_student_is_asked_for_its_state_at_zero() -> None:
    sampler = student_sampler(Student(lambda noise: noise + 1))
    assert (sampler.name, sampler.nfe) == ("dsno", 1)
    assert torch.equal(sampler.generate(torch.zeros(2, *SHAPE), None), torch.ones(2, *SHAPE))


def test_the_spectrum_is_the_share_of_power_of_each_temporal_mode() -> None:
    # One Gaussian at 0 with deviation 1: every trajectory stands still, all power is in mode 0.
    still = Gaussian(torch.zeros(SHAPE), torch.ones(SHAPE), CosineSchedule())
    spectrum = power_spectrum(still, Spacing("uniform", still.schedule), draws(), points=8)
    assert spectrum["modes"] == [0, 1, 2, 3, 4]
    assert spectrum["power"] == pytest.approx([1, 0, 0, 0, 0], abs=1e-3)
    moving = Gaussian(torch.full(SHAPE, 3.0), torch.ones(SHAPE), CosineSchedule())
    spectrum = power_spectrum(moving, Spacing("uniform", moving.schedule), draws(), points=8)
    assert sum(spectrum["power"]) == pytest.approx(1)
    states = solve(
        moving,
        draws().batch(range(128))[0],
        torch.arange(7, -1, -1, dtype=torch.float64) / 8,
        steps=8,
    ).states.double()
    total = states.square().mean(1).mean()  # Parseval
    constant = states.mean(1).square().mean()
    assert spectrum["power"][0] == pytest.approx(float(constant / total), rel=1e-4)
