"""Distribution matching: its gradient, what it trains, and where it leads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsno.diffusion.conditions import (
    CLASS_LABELS,
    GUIDANCE_SCALE,
    UNCONDITIONAL,
    Conditions,
)
from dsno.diffusion.denoisers import PREDICTION_TYPES, Denoiser
from dsno.diffusion.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
)
from dsno.training.matching import (
    MatchingObjective,
    Pair,
    matching_batches,
    matching_direction,
)
from dsno.training.trainer import ITEMS

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
    angle = batch["times"][:, None] * math.pi / 2
    expected = direction_of_shifted_mean(batch, angle.cos(), angle.sin()).float()
    torch.testing.assert_close(trained.model.student.shift.grad, expected)


def posterior_mean(x: Tensor, alpha: Tensor, sigma: Tensor, mean: float | Tensor) -> Tensor:
    """E[x_0 | x_t] of a normal distribution with deviation STD."""
    return mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * mean)


def direction_of_shifted_mean(batch: Mapping[str, Any], alpha: Tensor, sigma: Tensor) -> Tensor:
    """Where the student's shift goes, which moves every sample alike; fake mean too high by 0.5."""
    clean = batch["noise"]
    x = alpha * clean + sigma * batch["renoise"]
    real, fake = (posterior_mean(x, alpha, sigma, mean) for mean in (MEAN, MEAN + 0.5))
    direction: Tensor = ((fake - real) / (clean - real).abs()).mean()
    return direction


def test_the_anchor_pulls_samples_to_the_stored_ones() -> None:
    trained = objective(anchor=0.3)
    batch = matching_batches(4, (1,), UNCONDITIONAL, seed=0, times=(0.1, 0.9))(0, range(4))
    states = batch["noise"] + torch.tensor([[0.5], [-0.1], [0.2], [1.0]])
    _, parts = trained(batch | {"states": states})
    assert parts[2].item() == pytest.approx(0.3 * 0.45)
    shifts = []
    for given in (batch, batch | {"states": states}):
        trained.zero_grad(set_to_none=True)
        trained(given)[0].backward()
        shifts.append(trained.model.student.shift.grad.item())
    # of the mean absolute error: three samples lie below their targets, one above
    assert shifts[1] - shifts[0] == pytest.approx(0.3 * (1 - 3) / 4)


SCHEDULES: dict[str, NoiseSchedule] = {
    "epsilon": BetaSchedule(),
    "v_prediction": CosineSchedule(),
    "sample": CosineSchedule(),
    "edm": EDMSchedule(),
    "flow": RectifiedFlowSchedule(),
    "sample_and_epsilon": BetaSchedule(),
}


class Predicting(Normal):
    """The exact network of any prediction type, as the literature defines it."""

    def __init__(self, prediction_type: str, mean: float) -> None:
        super().__init__(mean, STD)
        self.prediction_type = prediction_type

    def forward(self, x: Tensor, angle: Tensor) -> Tensor:
        ratio = torch.tan(angle.double() * math.pi / 2000)[:, None]
        alphas = {"edm": torch.ones_like(ratio), "flow": 1 / (1 + ratio)}
        alpha = alphas.get(self.prediction_type, (1 + ratio**2).rsqrt())
        sigma, root = ratio * alpha, (ratio**2 + 0.25).sqrt()  # with sigma_data = 0.5
        if self.prediction_type == "edm":
            x = x * root
        clean = posterior_mean(x, alpha, sigma, self.mean.double())
        noise = (x - alpha * clean) / sigma
        made = {
            "epsilon": noise,
            "v_prediction": alpha * noise - sigma * clean,
            "sample": clean,
            "edm": (clean - 0.25 / root**2 * x) * root / (0.5 * sigma),
            "flow": noise - clean,
            "sample_and_epsilon": torch.cat([clean, noise], 1),
        }
        return made[self.prediction_type].to(x.dtype)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_direction_is_the_same_whatever_the_networks_predict(prediction_type: str) -> None:
    schedule = SCHEDULES[prediction_type]
    teacher, fake = (
        Denoiser(
            Predicting(prediction_type, mean).double(),
            schedule,
            prediction_type=prediction_type,
            sample_shape=(1,),
            sigma_data=0.5,
            time_input="angle",
        )
        for mean in (MEAN, MEAN + 0.5)
    )
    trained = MatchingObjective(Pair(Affine(), fake), teacher)  # type: ignore[arg-type]
    batch = matching_batches(4, (1,), UNCONDITIONAL, seed=0, times=(0.1, 0.9))(0, range(4))
    trained(batch)[0].backward()
    alpha, sigma = (f(batch["times"])[:, None] for f in (schedule.alpha, schedule.sigma))
    expected = direction_of_shifted_mean(batch, alpha, sigma).float()
    torch.testing.assert_close(trained.model.student.shift.grad, expected, rtol=1e-4, atol=1e-5)


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


class Leaning(Labelled):
    """The same with a mean that also grows with the guidance scale."""

    def forward(  # type: ignore[override]
        self, x: Tensor, angle: Tensor, class_labels: Tensor, guidance_scale: Tensor
    ) -> Tensor:
        return super().forward(x, angle, class_labels) + 0.2 * guidance_scale[:, None]


def test_each_sample_has_its_own_scale_in_both_networks() -> None:
    teacher, fake = (
        Denoiser(network, CosineSchedule(), prediction_type="sample", sample_shape=(1,))
        for network in (Labelled(), Leaning())
    )
    guidance = None, {CLASS_LABELS: torch.tensor(2)}
    trained = MatchingObjective(Pair(Affine(), fake), teacher, guidance=guidance)  # type: ignore[arg-type]
    conditions = Conditions([0.5, 0.5], guidance=(1, 4))
    batch = matching_batches(6, (1,), conditions, seed=0, times=(0.1, 0.9))(0, range(6))
    trained(batch)[0].backward()
    scale = batch["condition"][GUIDANCE_SCALE][:, None]
    assert len(scale.unique()) == 6
    conditional = torch.tensor([0.5, -1.0])[batch["condition"][CLASS_LABELS]][:, None]
    real = 0.1 + scale * (conditional - 0.1)
    found = conditional + 0.2 * scale
    expected = ((found - real) / (batch["noise"] - real).abs()).mean()
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
    assert ITEMS not in whole  # new noises are no rows of any data


def test_networks_never_run_in_training_mode() -> None:
    trained = objective().train()
    assert trained.training
    assert not any(module.training for child in trained.children() for module in child.modules())
