"""Distribution matching: its gradient, what it trains, and where it leads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dsno.diffusion.conditions import CLASS_LABELS, UNCONDITIONAL, Conditions
from dsno.diffusion.denoisers import Denoiser
from dsno.diffusion.schedules import CosineSchedule
from dsno.training.matching import (
    MatchingObjective,
    Pair,
    matching_batches,
    matching_direction,
)

MEAN, STD = 0.7, 0.4


class Normal(nn.Module):
    """The exact E[x_0 | x_t] of a normal distribution, of which mean and deviation are weights."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.log_std = nn.Parameter(torch.tensor(std).log())

    def forward(self, x: Tensor, angle: Tensor) -> Tensor:
        alpha, sigma = (f(angle * math.pi / 2000)[:, None] for f in (torch.cos, torch.sin))
        variance = (2 * self.log_std).exp()
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)


class Affine(nn.Module):
    """A student with two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(1.0))

    def sample(self, noise: Tensor, condition: object = None) -> Tensor:
        return self.shift + self.scale * noise


def objective(**options: float) -> MatchingObjective:
    teacher = Denoiser(
        Normal(MEAN, STD), CosineSchedule(), prediction_type="sample", sample_shape=(1,)
    )
    teacher.requires_grad_(False)  # as a loaded one
    return MatchingObjective(Pair(Affine(), teacher), teacher, **options)  # type: ignore[arg-type]


def test_direction_is_the_difference_of_the_estimates_over_the_teachers_error() -> None:
    clean = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    real = torch.tensor([[0.0, 4.0], [1.0, 1.0]])  # mean errors 1.5 and 1
    fake = torch.tensor([[3.0, 1.0], [2.0, 1.0]])
    expected = torch.tensor([[2.0, -2.0], [1.0, 0.0]])
    torch.testing.assert_close(matching_direction(clean, real, fake), expected)


def test_identical_estimates_give_no_direction() -> None:
    same = torch.ones(2, 3)
    assert torch.equal(matching_direction(same, same, same), torch.zeros(2, 3))


def test_student_comes_to_the_teachers_distribution_without_data() -> None:
    """Of a normal distribution the exact denoiser is known, and so is where training must end."""
    trained = objective(fake_rate=3.0)
    groups = [
        {"params": weights, "lr": 0.05 * factor, "factor": factor}
        for weights, factor in trained.groups()
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.5, 0.99))
    batches = matching_batches(128, (1,), UNCONDITIONAL, seed=0, times=(0.02, 0.98))
    steps = 300
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * group["factor"] * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        trained(batches(step, range(128)))[0].backward()
        optimizer.step()
    student, fake = trained.model.student, trained.model.fake.network
    assert student.shift.item() == pytest.approx(MEAN, abs=0.05)
    assert abs(student.scale.item()) == pytest.approx(STD, abs=0.05)
    assert fake.mean.item() == pytest.approx(MEAN, abs=0.05)
    assert trained.teacher.network.mean.item() == pytest.approx(MEAN)


def test_gradient_of_the_sample_is_the_direction() -> None:
    trained = objective()
    batch = matching_batches(4, (1,), UNCONDITIONAL, seed=0, times=(0.1, 0.9))(0, range(4))
    trained.model.fake.network.mean.data += 0.5
    trained(batch)[0].backward()
    # the student's shift moves every sample alike
    clean = batch["noise"]
    t = batch["times"]
    alpha, sigma = (f(t * math.pi / 2)[:, None] for f in (torch.cos, torch.sin))
    x = alpha * clean + sigma * batch["renoise"]
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    real = MEAN + gain * (x - alpha * MEAN)
    fake = MEAN + 0.5 + gain * (x - alpha * (MEAN + 0.5))
    expected = ((fake - real) / (clean - real).abs()).mean()
    torch.testing.assert_close(trained.model.student.shift.grad, expected.float())


class Labelled(Normal):
    """The same with a mean of its own for each class; the last one means no class."""

    def __init__(self) -> None:
        super().__init__(0.0, STD)
        self.means = nn.Parameter(torch.tensor([0.5, -1.0, 0.1]))

    def forward(  # type: ignore[override]
        self, x: Tensor, angle: Tensor, class_labels: Tensor
    ) -> Tensor:
        mean = self.means[class_labels][:, None]
        return mean + super().forward(x, angle) * 0


def test_the_teacher_is_guided_and_the_fake_network_is_not() -> None:
    teacher = Denoiser(
        Labelled(), CosineSchedule(), prediction_type="sample", sample_shape=(1,)
    ).requires_grad_(False)
    guidance = 2.0, {CLASS_LABELS: torch.tensor(2)}
    trained = MatchingObjective(Pair(Affine(), teacher), teacher, guidance=guidance)  # type: ignore[arg-type]
    batches = matching_batches(6, (1,), Conditions([0.5, 0.5]), seed=0, times=(0.1, 0.9))
    batch = batches(0, range(6))
    trained(batch)[0].backward()
    conditional = torch.tensor([0.5, -1.0])[batch["condition"][CLASS_LABELS]][:, None]
    real = 0.1 + 2 * (conditional - 0.1)
    expected = ((conditional - real) / (batch["noise"] - real).abs()).mean()
    torch.testing.assert_close(trained.model.student.shift.grad, expected)


def test_steps_of_the_fake_network_alone_leave_the_student_as_it_is() -> None:
    trained = objective()
    batches = matching_batches(4, (1,), UNCONDITIONAL, seed=0, times=(0.1, 0.9), fake_steps=3)
    learns = []
    for step in range(6):
        trained.zero_grad(set_to_none=True)
        trained(batches(step, range(4)))[0].backward()
        assert trained.model.fake.network.mean.grad is not None
        assert trained.teacher.network.mean.grad is None
        learns.append(trained.model.student.shift.grad is not None)
    assert learns == [False, False, True, False, False, True]


def test_batch_does_not_depend_on_how_it_is_divided() -> None:
    conditions = Conditions([0.5, 0.5])
    batches = matching_batches(8, (2, 3), conditions, seed=3, times=(0.2, 0.4))
    whole, parts = batches(5, range(8)), [batches(5, range(i, i + 4)) for i in (0, 4)]
    for key in ("noise", "times", "renoise", "fake_noise", "fake_times"):
        assert torch.equal(whole[key], torch.cat([part[key] for part in parts]))
    labels = [part["condition"][CLASS_LABELS] for part in parts]
    assert torch.equal(whole["condition"][CLASS_LABELS], torch.cat(labels))
    # one time in each eighth of the range, in no order of its own
    strata = ((whole["times"] - 0.2) / 0.2 * 8).long()
    assert sorted(strata.tolist()) == list(range(8))
    assert not torch.equal(whole["noise"], batches(6, range(8))["noise"])


def test_networks_never_run_in_training_mode() -> None:
    trained = objective().train()
    assert trained.training
    assert not any(module.training for child in trained.children() for module in child.modules())
