"""Samplers: who makes samples, from which noise and labels, at what cost."""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import Any

import pytest
import torch
from tests.devices import DEVICE, Crossings
from tests.evaluation.mixture import SHAPE, Student, draws, nothing
from torch import Tensor, nn

from dsno.diffusion.analytic import Gaussian, GaussianMixture
from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import Denoiser, Preconditioning
from dsno.diffusion.schedules import CosineSchedule
from dsno.evaluation.features.plain import PLAIN_SPACES, plain_space
from dsno.evaluation.reference import rows_of
from dsno.evaluation.samplers import (
    Sampler,
    dial_sampler,
    draw,
    samplers_of,
    student_sampler,
    teacher_sampler,
)
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.recipes.schema import Curve, Evaluate
from dsno.support import seeds
from dsno.support.threads import MOST


@pytest.mark.parametrize("labelled", [False, True])
def test_samples_do_not_depend_on_the_batch_size(teacher: GaussianMixture, labelled: bool) -> None:
    sampler = teacher_sampler(teacher, "dpm++2m", 4, "uniform")
    whole = draw(sampler, draws(64, labelled), 50, nothing)
    for size in (1, 7, 50):
        assert torch.equal(draw(sampler, draws(size, labelled), 50, nothing), whole)
    assert torch.equal(draw(sampler, draws(7, labelled), 20, nothing), whole[:20])


def test_two_cores_make_two_batches_at_a_time_and_the_same_samples(
    teacher: GaussianMixture,
) -> None:
    meet = threading.Barrier(2)

    class Half(Student):
        """Keeps what it was given, as a lifted network keeps its batch."""

        def __deepcopy__(self, memo: dict[int, Any]) -> Half:
            return Half(self._sample)

        def sample(self, noise: Tensor, condition: Condition | None = None) -> Tensor:
            self.given = noise
            meet.wait(30)
            return self.given / 2

    samplers = (
        student_sampler(Half(lambda noise: noise)),
        teacher_sampler(teacher, "dpm++2m", 4, "uniform"),
    )
    noise = seeds.item_noise(3, range(40), SHAPE, stream=seeds.SAMPLE)
    alone = draw(samplers[1], draws(10), 40, nothing)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        student, solved = (draw(sampler, draws(10), 40, nothing) for sampler in samplers)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(student, noise / 2)
    assert torch.equal(solved, alone)


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


class Solved(Student):
    """An operator that knows the exact states of one Gaussian, at two trained times."""

    def __init__(self, teacher: Gaussian) -> None:
        super().__init__(lambda noise: self(noise)[:, -1])
        self.teacher, self.asked = teacher, [0.0625, 0.0]
        self.preconditioning = Preconditioning(teacher.schedule, "v_prediction")

    slices = 2
    times = property(lambda self: torch.tensor(self.asked, dtype=torch.float64))

    def forward(self, noise: Tensor, condition: Any = None, times: Any = None) -> Tensor:
        one = torch.ones((), dtype=torch.float64)
        start = noise * self.teacher.schedule.sigma(one)
        known = self.times if times is None else times
        return torch.stack([self.teacher.flow(start, one, t) for t in known], 1)


@pytest.mark.parametrize("trained", [0.0625, 0.25])  # the latter is too noisy to go on from
def test_the_dial_is_the_teachers_solver_from_the_students_state(trained: float) -> None:
    teacher = Gaussian(torch.tensor([0.7, -0.3]), torch.tensor([0.5, 0.8]), CosineSchedule())
    student, noise = Solved(teacher), torch.randn(4, 2, dtype=torch.float64)
    student.asked[0] = trained
    plan = Evaluate(dial=(3, 1, 2, 40), baseline_steps=1)
    found = [s for s in samplers_of(teacher, student, plan) if s.name == "dsno"]
    t = 0.0625 if trained == 0.0625 else 2 / math.pi * math.atan(0.2)
    where = f"from t = {t:.3g}"
    assert [s.key for s in found] == [
        ("dsno", 1, None),
        *(("dsno", n, where) for n in (2, 3, 40)),
    ]
    assert len({s.slug for s in found}) == 4
    (x,) = student(noise, times=torch.tensor([t])).unbind(1)
    one_step = found[1].generate(noise, None)
    torch.testing.assert_close(one_step, teacher(x, torch.tensor(t)), atol=1e-4, rtol=0)
    exact = student.sample(noise)
    errors = [float((s.generate(noise, None) - exact).abs().max()) for s in found[1:]]
    assert errors[0] > errors[1] > 10 * errors[2]


def test_a_student_of_one_slice_is_measured_in_one_step(teacher: GaussianMixture) -> None:
    student = Solved(teacher)
    student.slices = 1
    plan = Evaluate(dial=(2,), baseline_steps=1)
    assert [s.name for s in samplers_of(teacher, student, plan)] == ["dsno", "ddim"]


def test_the_student_is_asked_for_its_state_at_zero() -> None:
    sampler = student_sampler(Student(lambda noise: noise + 1))
    assert (sampler.name, sampler.nfe) == ("dsno", 1)
    assert torch.equal(sampler.generate(torch.zeros(2, *SHAPE), None), torch.ones(2, *SHAPE))


class Thrice(nn.Module):
    """F = 3.03 x by float32; notes the types it computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        self.linear.weight = nn.Parameter(3.03 * torch.eye(2))
        self.types: list[torch.dtype] = []

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        product: Tensor = self.linear(x)
        self.types.append(product.dtype)
        return product


# By hand: one step is the network's F at t = 0, 3.03 or, in eight bits, 3.03125; two are F of the
# state (F + 0.2) / sqrt(1.04), whose noise is a fifth of its signal.
@pytest.mark.parametrize(
    ("who", "exact", "half"),
    [("student", 3.03, 3.03125), ("teacher", 3.03, 3.03125), ("dial", 9.597, 9.625)],
)
def test_a_sampler_in_bf16_computes_its_network_so_and_its_states_in_float32(
    who: str, exact: float, half: float
) -> None:
    network = Thrice()
    teacher = Denoiser(network, CosineSchedule(), prediction_type="sample", sample_shape=SHAPE)
    operator = DSNO.from_teacher(teacher, LiftConfig((), slices=2))
    lifted = operator.lifted.network
    seen = {"student": [lifted], "teacher": [network], "dial": [lifted, network]}[who]
    noise, settings = torch.ones(1, *SHAPE), []

    def decode(states: Tensor) -> Tensor:
        settings.append(torch.get_float32_matmul_precision())
        return states

    made = {}
    for precision in ("exact", "bf16"):
        sampler = (
            teacher_sampler(teacher, "ddim", 1, "uniform", decode, precision=precision)
            if who == "teacher"
            else student_sampler(operator, decode, precision=precision)
            if who == "student"
            else dial_sampler(operator, teacher, 2, decode, precision=precision)
        )
        made[sampler.precision] = sampler.generate(noise, None)
        assert sampler.threads == (1 if precision == "bf16" else MOST)
    atol = 1e-3 if who == "dial" else 1e-6  # the schedules end near t = 0
    assert torch.allclose(made["exact"], torch.tensor(exact), atol=atol, rtol=0)
    assert torch.allclose(made["bf16"], torch.tensor(half), atol=atol, rtol=0)
    for one in seen:
        assert (one.types[-1], one.types[0]) == (torch.bfloat16, torch.float32)
    assert settings == ["highest", "highest"]  # what follows the network is as exact as ever


def test_precision_is_part_of_what_a_sampler_is(teacher: GaussianMixture) -> None:
    plan = Evaluate(dial=(2,), curves=(Curve(solver="dpm++2m", steps=(2,)),), precision="tf32")
    student = Solved(Gaussian(torch.zeros(2), torch.ones(2), CosineSchedule()))
    found = [(s.key, s.slug) for s in samplers_of(teacher, student, plan)[:3]]
    assert found == [
        (("dsno", 1, None, "tf32"), "dsno-1-tf32"),
        (("dsno", 2, "from t = 0.0625", "tf32"), "dsno-2-from-t-=-0.0625-tf32"),
        (("dpm++2m", 2, "uniform", "tf32"), "dpmpp2m-2-uniform-tf32"),
    ]


def test_nothing_is_copied_back_before_samples_and_features_are_there() -> None:
    """What is drawn goes to the device; the rest stays there until a batch is asked for."""
    on_device = dataclasses.replace(draws(4), device=DEVICE)
    sampler = student_sampler(Student(lambda noise: noise / 2))
    spaces = [plain_space(name, DEVICE) for name in PLAIN_SPACES]
    with Crossings() as crossings:
        for _ in range(2):  # the device does not keep what all samplers of an evaluation start from
            rows = rows_of(spaces, sampler.generate(*on_device.batch(range(4))))
    assert [(name, row.shape) for name, row in rows.items()] == [
        ("pixels.features", (4, 4)),
        ("thumbnail.features", (4, 4)),
    ]
    assert crossings.up == [((4, *SHAPE), torch.float32)] * 2
    assert (crossings.down, crossings.reads) == ([], 0)
