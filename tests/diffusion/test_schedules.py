"""Schedules against their formulas and diffusers' tables."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from dsno.diffusion.schedules import (
    BETA_SHAPES,
    SCHEDULES,
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    schedule_from_config,
    signal_and_noise,
)
from dsno.diffusion.time_grids import SPACINGS, Spacing, time_grid
from dsno.support.errors import InputError

INSIDE = torch.linspace(0.001, 0.999, 333, dtype=torch.float64)
CASES: list[NoiseSchedule] = [kind() for kind in SCHEDULES.values()] + [
    CosineSchedule(-6.0, 9.0),
    BetaSchedule(beta_schedule="scaled_linear", timesteps=50),
    BetaSchedule(beta_schedule="squaredcos_cap_v2", zero_terminal_snr=True),
    BetaSchedule(trained_betas=(0.1, 0.3, 0.2)),
    EDMSchedule(0.01, 10.0, rho=3.0),
]
every = pytest.mark.parametrize("schedule", CASES, ids=str)


@every
def test_log_snr_is_twice_the_log_of_the_ratio(schedule: NoiseSchedule) -> None:
    expected = 2 * (schedule.alpha(INSIDE) / schedule.sigma(INSIDE)).log()
    torch.testing.assert_close(schedule.log_snr(INSIDE), expected, atol=1e-9, rtol=1e-9)


@every
def test_noise_only_grows_with_time(schedule: NoiseSchedule) -> None:
    assert (schedule.log_snr(INSIDE).diff() < 0).all()


@every
def test_angle_is_that_of_sigma_over_alpha(schedule: NoiseSchedule) -> None:
    t = torch.cat([torch.zeros(1), INSIDE, torch.ones(1)])
    expected = torch.atan2(schedule.sigma(t), schedule.alpha(t))
    torch.testing.assert_close(schedule.angle(t), expected, atol=1e-12, rtol=1e-12)


@every
def test_float32_log_snr_keeps_its_digits_near_both_ends(schedule: NoiseSchedule) -> None:
    """At the ends themselves too, where they are finite."""
    near = torch.cat([torch.logspace(-7, -2, 40), torch.tensor([0.0])])
    t = torch.cat([near, 1 - near]).float()
    exact = schedule.log_snr(t.double())
    error = (schedule.log_snr(t).double() - exact)[exact.isfinite()].abs()
    assert error.max() < 1e-5


def test_the_naive_float32_log_snr_would_not_do() -> None:
    """Why the schedules carry closed forms: cos(angle) loses its digits at pure noise."""
    t = torch.tensor([1.0])
    angle = CosineSchedule().angle(t)
    naive = 2 * (angle.cos() / angle.sin()).log()
    assert (naive.double() - CosineSchedule().log_snr(t.double())).abs() > 1e-4


@every
def test_time_of_inverts_log_snr(schedule: NoiseSchedule) -> None:
    t = torch.cat([torch.zeros(1), INSIDE, torch.ones(1)])
    torch.testing.assert_close(schedule.time_of(schedule.log_snr(t)), t, atol=1e-9, rtol=0)


@every
def test_time_of_is_clamped_to_the_schedule(schedule: NoiseSchedule) -> None:
    beyond = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    assert schedule.time_of(beyond).tolist() == [1, 0]


@every
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_methods_keep_dtype_and_shape(schedule: NoiseSchedule, kind: torch.dtype) -> None:
    t = torch.rand(2, 3, dtype=kind)
    for method in ("alpha", "sigma", "log_snr", "angle", "time_of"):
        value = getattr(schedule, method)(t)
        assert (value.dtype, value.shape) == (kind, t.shape)


@every
def test_config_round_trip_through_json(schedule: NoiseSchedule) -> None:
    config = json.loads(json.dumps(schedule.to_config()))
    assert schedule_from_config(config) == schedule


def test_cosine_is_the_papers_formula() -> None:
    low, high = -20.0, 20.0
    b = math.atan(math.exp(-high / 2))
    a = math.atan(math.exp(-low / 2)) - b
    schedule = CosineSchedule(low, high)
    torch.testing.assert_close(schedule.alpha(INSIDE), torch.cos(a * INSIDE + b))
    torch.testing.assert_close(schedule.sigma(INSIDE), torch.sin(a * INSIDE + b))
    torch.testing.assert_close(schedule.log_snr(INSIDE), -2 * torch.tan(a * INSIDE + b).log())
    ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([20, -20], abs=1e-9)
    smallest = schedule.sigma(torch.zeros(1, dtype=torch.float64))
    assert smallest.item() == pytest.approx(4.54e-5, rel=1e-3)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("shape", BETA_SHAPES)
def test_betas_are_diffusers_at_the_discrete_steps(shape: str, zero_terminal_snr: bool) -> None:
    scheduler = DDPMScheduler(
        beta_start=0.001,
        beta_end=0.015,
        beta_schedule=shape,
        num_train_timesteps=400,
        rescale_betas_zero_snr=zero_terminal_snr,
    )
    schedule = BetaSchedule(0.001, 0.015, shape, 400, zero_terminal_snr)
    alpha = schedule.alpha(torch.arange(400, dtype=torch.float64) / 399)
    expected = scheduler.alphas_cumprod.double().sqrt()
    torch.testing.assert_close(alpha, expected, atol=2e-6, rtol=2e-4)
    sigma = schedule.sigma(torch.arange(400, dtype=torch.float64) / 399)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(400, dtype=torch.float64))


def test_ddpm_ends_where_it_is_known_to_end() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert BetaSchedule().sigma(ends)[0].item() == pytest.approx(0.01, rel=1e-9)
    assert BetaSchedule().alpha(ends)[1].item() == pytest.approx(0.0064, rel=0.01)


def test_zero_terminal_snr_is_exactly_zero_and_changes_the_start_by_nothing() -> None:
    schedule = BetaSchedule(zero_terminal_snr=True)
    one = torch.ones(1, dtype=torch.float64)
    assert schedule.alpha(one) == 0
    assert schedule.sigma(one) == 1
    assert schedule.log_snr(one) == -math.inf
    assert schedule.alpha(0 * one) == BetaSchedule().alpha(0 * one)


def test_trained_betas_are_the_chain_itself() -> None:
    schedule = BetaSchedule(trained_betas=(0.1, 0.3, 0.2))
    assert schedule.timesteps == 3
    alpha = schedule.alpha(torch.tensor([0, 0.5, 1], dtype=torch.float64))
    assert alpha.square().tolist() == pytest.approx([0.9, 0.63, 0.504])


def test_edm_sigmas_are_the_published_ladder() -> None:
    """arXiv 2206.00364, eq. 5: the 18 noise levels of its CIFAR-10 sampler."""
    i = torch.arange(18, dtype=torch.float64)
    ladder = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigma = EDMSchedule().sigma(1 - i / 17)
    torch.testing.assert_close(sigma, ladder)
    assert sigma[[0, 1, 2, 9, 17]].tolist() == pytest.approx(
        [80, 57.6, 40.8, 1.92, 0.002], rel=2e-3
    )
    assert (EDMSchedule().alpha(i) == 1).all()


def test_rectified_flow_is_the_straight_line() -> None:
    schedule = RectifiedFlowSchedule()
    torch.testing.assert_close(schedule.alpha(INSIDE), 1 - INSIDE)
    assert torch.equal(schedule.sigma(INSIDE), INSIDE)
    torch.testing.assert_close(schedule.log_snr(INSIDE), -2 * torch.logit(INSIDE))


@every
def test_time_zero_stands_for_the_clean_end(schedule: NoiseSchedule) -> None:
    t = torch.tensor([0.7, 0.0])
    alpha, sigma = signal_and_noise(schedule, t)
    assert alpha.dtype == torch.float64
    assert (alpha[1], sigma[1]) == (1, 0)
    assert (alpha[0], sigma[0]) == (schedule.alpha(t.double())[0], schedule.sigma(t.double())[0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "cosin"}, "'cosine'"),
        ({}, "Unknown noise schedule"),
        ({"name": "edm", "sigma_mim": 1.0}, "'sigma_min'"),
        ({"name": "cosine", "log_snr_min": 3.0, "log_snr_max": 3.0}, "log_snr_min < log_snr_max"),
        ({"name": "cosine", "log_snr_min": -1e-17, "log_snr_max": 0.0}, "less noise to more"),
        ({"name": "betas", "beta_schedule": "linar"}, "'linear'"),
        ({"name": "betas", "timesteps": 1}, "at least 2"),
        ({"name": "betas", "trained_betas": []}, "at least 2"),
        ({"name": "betas", "beta_end": 1.5}, "between 0 and 1"),
        ({"name": "edm", "sigma_min": 0.0}, "0 < sigma_min"),
        ({"name": "edm", "rho": -1.0}, "rho > 0"),
        ({"name": "edm", "sigma_max": "much"}, "cannot be built"),
    ],
)
def test_a_wrong_schedule_is_refused_with_the_remedy(config: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        schedule_from_config(config)


# ---------------------------------------------------------------------------------- time grids

spaced = pytest.mark.parametrize("spacing", SPACINGS)
FIVE = [*SCHEDULES.values(), lambda: BetaSchedule(zero_terminal_snr=True)]
five = pytest.mark.parametrize("make", FIVE, ids=[*SCHEDULES, "zero_terminal_snr"])


@spaced
@five
@pytest.mark.parametrize("steps", [1, 2, 7, 512])
def test_grids_fall_strictly_from_one_to_zero(spacing: str, make: Any, steps: int) -> None:
    grid = time_grid(spacing, steps, make())
    assert (grid.dtype, len(grid)) == (torch.float64, steps + 1)
    assert (grid[0], grid[-1]) == (1, 0)
    assert (grid.diff() < 0).all()


@spaced
@five
def test_place_inverts_time(spacing: str, make: Any) -> None:
    rule, u = Spacing(spacing, make()), torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(rule.position(rule.time(u)), u, atol=1e-9, rtol=0)


def test_the_papers_output_times() -> None:
    grid = time_grid("quadratic", 16, CosineSchedule())
    assert grid[[16 - 12, 16 - 8, 16 - 4, 16]].tolist() == [0.5625, 0.25, 0.0625, 0]


def test_uniform_and_quadratic_grids_are_their_formulas() -> None:
    assert time_grid("uniform", 4, EDMSchedule()).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert time_grid("quadratic", 4, EDMSchedule()).tolist() == [1, 0.5625, 0.25, 0.0625, 0]


@pytest.mark.parametrize(
    ("schedule", "low", "high"),
    [
        (CosineSchedule(), 0.002, 80.0),  # wider than Karras' range
        (EDMSchedule(), 0.002, 80.0),
        (RectifiedFlowSchedule(), 0.002, 80.0),
        (CosineSchedule(-4.0, 6.0), math.exp(-3), math.exp(2)),  # narrower
    ],
    ids=str,
)
def test_karras_grid_spreads_sigma_over_alpha(
    schedule: NoiseSchedule, low: float, high: float
) -> None:
    inner = time_grid("karras", 10, schedule)[1:-1]
    u = torch.arange(9, 0, -1, dtype=torch.float64) / 10
    expected = (low ** (1 / 7) + u * (high ** (1 / 7) - low ** (1 / 7))) ** 7
    torch.testing.assert_close(schedule.sigma(inner) / schedule.alpha(inner), expected)


def test_a_wrong_grid_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match="'quadratic'"):
        time_grid("quadratik", 4, CosineSchedule())
    for steps, says in ((0, "at least 1, not 0"), (2.5, "whole number, not 2.5")):
        with pytest.raises(InputError, match=f"number of steps of a time grid must be .*{says}"):
            time_grid("uniform", steps, CosineSchedule())
