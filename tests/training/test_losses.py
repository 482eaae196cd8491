"""Losses against their definitions, the paper's weights, and the optimum they must have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsno.diffusion.denoisers import PREDICTION_TYPES, Denoiser
from dsno.diffusion.schedules import SCHEDULES, BetaSchedule, CosineSchedule
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.support.errors import InputError
from dsno.training.losses import (
    DISTANCES,
    LOSSES,
    WEIGHTS,
    TrajectoryObjective,
    denoising_loss,
    slice_weights,
    trajectory_loss,
)

PAPER_TIMES = torch.tensor([0.5625, 0.25, 0.0625, 0.0])
SCHEDULE_OF = {
    "epsilon": BetaSchedule(),
    "v_prediction": CosineSchedule(),
    "sample": CosineSchedule(),
    "edm": SCHEDULES["edm"](),
    "flow": SCHEDULES["rectified_flow"](),
    "sample_and_epsilon": CosineSchedule(),
}
SIGMA_DATA = 0.5


def test_sqrt_snr_weights_are_the_papers() -> None:
    weights = slice_weights("sqrt_snr", CosineSchedule(), PAPER_TIMES, weight_max=1e4)
    relative = (weights / weights[0]).tolist()
    assert relative == pytest.approx([1, 2.41, 10.1, 10_000], rel=6e-3)
    assert float(weights[-1] / weights.sum()) == pytest.approx(0.9986, abs=1e-4)
    assert float(weights.mean()) == pytest.approx(1)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_weights_have_mean_one_and_are_capped(kind: str, name: str) -> None:
    weights = slice_weights(kind, SCHEDULES[name](), PAPER_TIMES, weight_max=5.0)
    assert weights.dtype == torch.float64
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights.max() / weights.min()) <= 5 + 1e-9
    if kind == "flat":
        assert weights.tolist() == [1, 1, 1, 1]


def test_weights_know_the_scale_of_the_data() -> None:
    t = torch.tensor([0.4, 0.1], dtype=torch.float64)
    schedule = SCHEDULES["edm"]()
    weights = slice_weights("sqrt_snr", schedule, t, weight_max=1e4, sigma_data=0.5)
    snr = (0.5 / schedule.sigma(t)).clamp(min=1)
    torch.testing.assert_close(weights, snr / snr.mean())


def test_unknown_weights_are_answered_with_the_closest() -> None:
    with pytest.raises(InputError, match="'sqrt_snr'"):
        slice_weights("sqrt-snr", CosineSchedule(), PAPER_TIMES, weight_max=1.0)


# |e|, e^2 and, by right triangles of sides (3, 4, 5), (5, 12, 13) and (8, 15, 17), pseudo-Huber.
@pytest.mark.parametrize(
    ("name", "error", "delta", "distance"),
    [
        ("l1", -2.5, 1.0, 2.5),
        ("l1", 0.03, 1.0, 0.03),
        ("l2", -1.5, 1.0, 2.25),
        ("l2", 0.2, 1.0, 0.04),
        ("pseudo_huber", 0.0, 0.03, 0.0),
        ("pseudo_huber", 0.04, 0.03, 0.02),
        ("pseudo_huber", -12.0, 5.0, 8.0),
        ("pseudo_huber", 8.0, 15.0, 2.0),
    ],
)
def test_distances_have_their_known_values(
    name: str, error: float, delta: float, distance: float
) -> None:
    got = DISTANCES[name](torch.tensor(error, dtype=torch.float64), delta)
    assert float(got) == pytest.approx(distance, abs=1e-12)


def test_every_distance_has_a_known_value_above() -> None:
    assert set(DISTANCES) == {"l1", "l2", "pseudo_huber"}


@pytest.mark.parametrize("name", DISTANCES)
def test_trajectory_loss_is_the_weighted_mean_over_times(name: str) -> None:
    predicted = torch.randn(3, 4, 2, 5, requires_grad=True)
    target, weights = torch.randn(3, 4, 2, 5), torch.tensor([0.1, 0.4, 1.5, 2.0]).double()
    loss, per_time = trajectory_loss(predicted, target, weights, distance=name, delta=0.2)
    errors = (predicted - target).detach().double()
    distances = DISTANCES[name](errors, 0.2)
    expected = [sum(distances[:, m].flatten().tolist()) / 30 for m in range(4)]
    assert per_time.tolist() == pytest.approx(expected, rel=1e-5)
    total = sum(w * e for w, e in zip(weights.tolist(), expected, strict=True)) / 4
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert loss.requires_grad
    assert not per_time.requires_grad


class PeakDistance(nn.Module):
    """Distance of image batches: the largest difference of a pair; remembers what it was given."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        self.given = first.detach(), second
        return (first - second).abs().amax((1, 2, 3))


def test_the_perceptual_loss_is_the_mean_distance_of_the_states_at_each_time() -> None:
    predicted = (5 * torch.randn(3, 4, 1, 2, 5)).requires_grad_()
    target, weights = torch.randn(3, 4, 1, 2, 5), torch.tensor([0.1, 0.4, 1.5, 2.0]).double()
    perceptual = PeakDistance()
    loss, per_time = trajectory_loss(
        predicted, target, weights, distance="lpips_vgg", perceptual=perceptual
    )
    peaks = [
        [(predicted[i, m] - target[i, m]).detach().abs().max().item() for i in range(3)]
        for m in range(4)
    ]
    expected = [sum(row) / 3 for row in peaks]
    assert per_time.tolist() == pytest.approx(expected, rel=1e-5)
    total = sum(w * e for w, e in zip(weights.tolist(), expected, strict=True)) / 4
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert not per_time.requires_grad
    # the states as they are: neither clipped nor rescaled
    assert perceptual.given[0].abs().max() == predicted.abs().max() > 1
    loss.backward()
    moved = predicted.grad.abs().amax((2, 3, 4))  # each peak's weight / (times x batch)
    torch.testing.assert_close(moved, (weights.float() / 12).expand(3, 4))


def test_the_perceptual_loss_without_its_network_says_what_to_give() -> None:
    states = torch.zeros(1, 1, 3, 16, 16)
    with pytest.raises(
        InputError, match=r"`train.loss` = lpips_vgg needs .* train.vgg16=PATH.*\.$"
    ):
        trajectory_loss(states, states, torch.ones(1), distance="lpips_vgg")


def test_an_unknown_loss_is_answered_with_the_closest() -> None:
    assert {*DISTANCES, "lpips_vgg"} == set(LOSSES)
    states = torch.zeros(1, 1, 2)
    with pytest.raises(InputError, match="Unknown loss 'lpips': did you mean 'lpips_vgg'"):
        trajectory_loss(states, states, torch.ones(1), distance="lpips")


# --------------------------------------------------------------------------------- denoising loss


def targets(kind: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What F should predict of a known x_0 and eps; EDM's from eq. 7 of arXiv 2206.00364."""
    x = alpha * x0 + sigma * eps
    total = (sigma**2 + SIGMA_DATA**2).sqrt()
    return {
        "epsilon": eps,
        "v_prediction": alpha * eps - sigma * x0,
        "sample": x0,
        "edm": (x0 - SIGMA_DATA**2 / total**2 * x) * total / (sigma * SIGMA_DATA),
        "flow": eps - x0,
        "sample_and_epsilon": sigma**2 * x0 - alpha * sigma * eps,
    }[kind]


class Exact(nn.Module):
    """The posterior mean of F for x_0 ~ N(0.3, 0.6^2), plus a perturbation."""

    def __init__(self, kind: str, alpha: Tensor, sigma: Tensor) -> None:
        super().__init__()
        self.kind, self.alpha, self.sigma = kind, alpha, sigma
        self.shift, self.slope = (nn.Parameter(torch.zeros(()).double()) for _ in range(2))

    def forward(self, scaled: Tensor, c_noise: Tensor) -> Tensor:
        alpha, sigma = self.alpha, self.sigma
        x = scaled * (sigma**2 + SIGMA_DATA**2).sqrt() if self.kind == "edm" else scaled
        x0 = 0.3 + alpha * 0.36 / (alpha**2 * 0.36 + sigma**2) * (x - 0.3 * alpha)
        spread = (alpha**2 * 0.36 + sigma**2).sqrt()
        perturbation = self.shift + self.slope * (x - 0.3 * alpha) / spread
        eps = (x - alpha * x0) / sigma
        if self.kind == "sample_and_epsilon":  # F takes sigma^2 of the first half
            return torch.cat([x0 + perturbation / sigma**2, eps], 1)
        return targets(self.kind, x0, eps, alpha, sigma) + perturbation


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_denoising_loss_is_the_squared_error_of_the_predicted_quantity(kind: str) -> None:
    schedule = SCHEDULE_OF[kind]

    class Wave(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            wave = x.sin() + c_noise[:, None] / 1000
            return torch.cat([wave, x.cos()], 1) if kind == "sample_and_epsilon" else wave

    denoiser = Denoiser(
        Wave(), schedule, prediction_type=kind, sample_shape=(2,), sigma_data=SIGMA_DATA
    )
    clean, noise = (torch.randn(6, 2, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([1e-4, 0.01, 0.2, 0.5, 0.8, 0.999], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    predicted = denoiser.network_output(alpha * clean + sigma * noise, t)
    expected = (predicted - targets(kind, clean, noise, alpha, sigma)).square().mean()
    torch.testing.assert_close(denoising_loss(denoiser, clean, noise, t), expected)
    single = denoising_loss(denoiser, clean.float(), noise.float(), t.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "t"), [("epsilon", 0.0), ("flow", 3e-5), ("edm", 0.0)])
def test_targets_keep_their_digits_where_the_noise_is_tiny(kind: str, t: float) -> None:
    """F = 0, so the loss is the squared target itself, which float32 would get from x - x_0."""

    class Zero(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return 0 * x

    schedule = CosineSchedule() if kind == "epsilon" else SCHEDULE_OF[kind]
    denoiser = Denoiser(
        Zero(), schedule, prediction_type=kind, sample_shape=(1,), sigma_data=SIGMA_DATA
    )
    time = torch.tensor([t])
    alpha, sigma = schedule.alpha(time.double()), schedule.sigma(time.double())
    for clean in torch.linspace(-0.9, 0.9, 12)[:, None, None]:
        noise = torch.randn(1, 1)
        target = targets(kind, clean.double(), noise.double(), alpha, sigma)
        loss = denoising_loss(denoiser, clean, noise, time)
        assert loss.item() == pytest.approx(target.square().item(), rel=3e-6)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_posterior_mean_minimises_the_denoising_loss(kind: str) -> None:
    schedule = SCHEDULE_OF[kind]
    t = torch.rand(40_000, dtype=torch.float64) * 0.9 + 0.05
    clean = 0.3 + 0.6 * torch.randn(40_000, 1, dtype=torch.float64)
    noise = torch.randn(40_000, 1, dtype=torch.float64)
    oracle = Exact(kind, schedule.alpha(t)[:, None], schedule.sigma(t)[:, None])
    denoiser = Denoiser(
        oracle, schedule, prediction_type=kind, sample_shape=(1,), sigma_data=SIGMA_DATA
    )
    best = denoising_loss(denoiser, clean, noise, t)
    best.backward()
    for parameter in oracle.parameters():
        assert abs(float(parameter.grad)) < 0.03  # zero in expectation
    for parameter in oracle.parameters():
        for size in (0.3, -0.3):
            with torch.no_grad():
                parameter.fill_(size)
                worse = denoising_loss(denoiser, clean, noise, t)
                parameter.zero_()
            # the cost of a perturbation of unit variance is its square
            assert (worse - best).item() == pytest.approx(size**2, abs=0.015)


def test_the_condition_reaches_the_network() -> None:
    class Labelled(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor) -> Tensor:
            return 0 * x + class_labels[:, None]

    denoiser = Denoiser(Labelled(), CosineSchedule(), prediction_type="sample", sample_shape=(1,))
    labels = torch.tensor([0, 3])
    loss = denoising_loss(
        denoiser,
        labels[:, None].float(),
        torch.randn(2, 1),
        torch.rand(2),
        {"class_labels": labels},
    )
    assert float(loss) == 0


def test_states_at_zero_alone_are_compared_without_computing_the_others(unet_teacher: Any) -> None:
    operator = DSNO.from_teacher(unet_teacher(), LiftConfig(["mid_block"], slices=2))
    scales, weights = torch.tensor([0.5, 2.0]), torch.tensor([0.4, 1.6])
    objective = TrajectoryObjective(operator, scales, weights)
    noise, states = torch.randn(3, 1, 8, 8), torch.randn(3, 2, 1, 8, 8)
    rows: list[int] = []
    operator.lifted.network.conv_out.register_forward_hook(
        lambda module, args, output: rows.append(len(output))
    )
    loss, per_time = objective({"noise": noise, "states": states[:, -1:]})
    assert per_time is None
    _, every = objective({"noise": noise, "states": states})
    assert loss.item() == pytest.approx(every[-1].item(), rel=1e-5)
    assert rows == [3, 6]
    loss.backward()
    assert all(p.grad is not None for p in operator.parameters())  # what DDP expects
