"""The closed-form teachers, which everything else is measured against."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsno.diffusion.analytic import Gaussian, GaussianMixture, mixture_flow_1d
from dsno.diffusion.schedules import SCHEDULES, BetaSchedule, NoiseSchedule
from dsno.support.errors import InputError

MEANS, STDS = torch.tensor([[-1.5], [0.3], [2.0]]), torch.tensor([[0.3], [0.6], [0.2]])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0])
schedules = pytest.mark.parametrize("name", SCHEDULES)


def mixture(schedule: NoiseSchedule) -> GaussianMixture:
    return GaussianMixture(MEANS, STDS, schedule, WEIGHTS)


def velocity(mix: GaussianMixture, x: Tensor, t: float) -> Tensor:
    """dx/dt = alpha' D + sigma' (x - alpha D) / sigma, with the derivatives by autograd."""
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    alpha, sigma = mix.schedule.alpha(time), mix.schedule.sigma(time)
    d_alpha, d_sigma = (
        torch.autograd.grad(f, time)[0] if f.requires_grad else torch.zeros(()).double()
        for f in (alpha, sigma)
    )
    with torch.no_grad():
        d = mix(x, time.detach())
        return d_alpha * d + d_sigma * (x - alpha * d) / sigma


@schedules
@pytest.mark.parametrize("t", [0.15, 0.4, 0.7, 0.95])
def test_the_denoiser_is_the_posterior_mean_by_quadrature(name: str, t: float) -> None:
    schedule, time = SCHEDULES[name](), torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    x0 = torch.linspace(-6, 6, 120_001, dtype=torch.float64)
    prior = sum(
        w / s * torch.exp(-0.5 * ((x0 - m) / s) ** 2)
        for w, m, s in zip(WEIGHTS.double(), MEANS.double(), STDS.double(), strict=True)
    )
    x = alpha * torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None] + 0.5 * sigma
    exponent = -0.5 * ((x - alpha * x0) / sigma) ** 2
    joint = prior * torch.exp(exponent - exponent.max(1, keepdim=True).values)
    expected = torch.trapezoid(x0 * joint, x0) / torch.trapezoid(joint, x0)
    got = mixture(schedule)(x, time)[:, 0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_a_time_per_row_is_that_rows_time() -> None:
    mix, x = mixture(SCHEDULES["cosine"]()), torch.randn(3, 1)
    t = torch.tensor([0.2, 0.5, 1.0])
    rows = [mix(x[i : i + 1], t[i]) for i in range(3)]
    torch.testing.assert_close(mix(x, t), torch.cat(rows))


@schedules
@pytest.mark.parametrize("t", [0.0, 1e-3, 0.5, 1.0])
def test_image_sized_mixtures_neither_overflow_nor_vanish(name: str, t: float) -> None:
    """d = 3072: densities are exp(-thousands); only a log-sum-exp survives."""
    means = 0.8 * torch.randn(5, 3, 32, 32)
    schedule, time = SCHEDULES[name](), torch.tensor(t, dtype=torch.float64)
    mix = GaussianMixture(means, torch.tensor(0.1), schedule)
    x0 = means[[3, 1]].double() + 0.1 * torch.randn(2, 3, 32, 32).double()
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    x = alpha * x0 + sigma * torch.randn_like(x0)
    denoised = mix(x.float(), time)
    assert denoised.dtype == torch.float32
    assert denoised.isfinite().all()
    if t <= 0.5:  # the components are so far apart that one owns each row
        own = means[[3, 1]].double()
        expected = own + alpha * 0.01 / (alpha**2 * 0.01 + sigma**2) * (x - alpha * own)
        torch.testing.assert_close(denoised.double(), expected, atol=1e-5, rtol=1e-5)
    elif alpha < 1e-4:  # nothing is known but the mean
        assert (denoised - means.mean(0)).abs().max() < 1e-2


def test_class_labels_select_a_component() -> None:
    schedule, x = SCHEDULES["cosine"](), torch.randn(4, 1).double()
    labels, t = torch.tensor([2, 0, 1, 2]), torch.tensor(0.6)
    got = mixture(schedule)(x, t, {"class_labels": labels})
    for row, k in enumerate(labels):
        alone = Gaussian(MEANS[k], STDS[k], schedule)
        torch.testing.assert_close(got[row : row + 1], alone(x[row : row + 1], t))


@schedules
def test_the_gaussian_flow_solves_the_ode(name: str) -> None:
    schedule = SCHEDULES[name]()
    gaussian = Gaussian(torch.tensor([0.7, -0.3]), torch.tensor([0.5, 1.4]), schedule)
    x, h = torch.randn(5, 2).double(), 1e-5
    for t in (0.2, 0.5001, 0.9):
        after, before = (
            gaussian.flow(x, *torch.tensor([t, t + step], dtype=torch.float64)) for step in (h, -h)
        )
        slope = velocity(gaussian, x, t)
        torch.testing.assert_close((after - before) / (2 * h), slope, rtol=2e-4, atol=2e-4)


@schedules
def test_the_gaussian_flow_composes_and_ends_at_the_data(name: str) -> None:
    schedule = SCHEDULES[name]()
    gaussian = Gaussian(torch.tensor([0.7, -0.3]), torch.tensor([0.5, 1.4]), schedule)
    t = torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64)
    x = torch.randn(20_000, 2).double()
    alpha, sigma = schedule.alpha(t[0]), schedule.sigma(t[0])
    x1 = alpha * (gaussian.means + gaussian.stds * x) + sigma * torch.randn_like(x)
    direct = gaussian.flow(x1, t[0], t[2])
    by_way = gaussian.flow(gaussian.flow(x1, t[0], t[1]), t[1], t[2])
    torch.testing.assert_close(direct, by_way)
    torch.testing.assert_close(direct.mean(0), gaussian.means[0], atol=0.04, rtol=0)
    torch.testing.assert_close(direct.std(0), gaussian.stds[0], atol=0.03, rtol=0)


@pytest.mark.parametrize("name", ["cosine", "edm", "rectified_flow"])
def test_the_quantile_flow_agrees_with_a_fine_runge_kutta(name: str) -> None:
    schedule = SCHEDULES[name]()
    mix, start, end, steps = mixture(schedule), 0.95, 0.3, 400
    x = schedule.sigma(torch.tensor(start)) * torch.linspace(-1.5, 1.5, 9).double()[:, None]
    y, h = x.clone(), (end - start) / steps
    for i in range(steps):
        t = start + i * h
        k1 = velocity(mix, y, t)
        k2 = velocity(mix, y + h / 2 * k1, t + h / 2)
        k3 = velocity(mix, y + h / 2 * k2, t + h / 2)
        k4 = velocity(mix, y + h * k3, t + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    times = torch.tensor([start, end], dtype=torch.float64)
    torch.testing.assert_close(mixture_flow_1d(mix, x[:, 0], *times), y[:, 0], atol=1e-6, rtol=0)


def test_the_quantile_flow_of_one_component_is_the_gaussian_flow() -> None:
    schedule = BetaSchedule(zero_terminal_snr=True)
    gaussian = Gaussian(torch.tensor(0.7), torch.tensor(0.5), schedule)  # samples are scalars
    x, t = torch.linspace(-3, 3, 13).double(), torch.tensor([1.0, 0.0])
    torch.testing.assert_close(mixture_flow_1d(gaussian, x, *t), gaussian.flow(x, *t))


def test_scalar_samples_are_denoised_like_vectors_of_one() -> None:
    schedule, x, t = SCHEDULES["cosine"](), torch.randn(4), torch.tensor(0.4)
    scalar = GaussianMixture(MEANS[:, 0], STDS[:, 0], schedule, WEIGHTS)
    assert scalar.sample_shape == ()
    torch.testing.assert_close(scalar(x, t), mixture(schedule)(x[:, None], t)[:, 0])


def test_samples_have_the_mixtures_moments() -> None:
    drawn = mixture(SCHEDULES["cosine"]()).sample(40_000, torch.Generator().manual_seed(1))
    share = WEIGHTS / WEIGHTS.sum()
    mean = (share * MEANS[:, 0]).sum()
    variance = (share * (STDS[:, 0] ** 2 + MEANS[:, 0] ** 2)).sum() - mean**2
    assert drawn.shape == (40_000, 1)
    assert drawn.mean().item() == pytest.approx(mean.item(), abs=0.03)
    assert drawn.var().item() == pytest.approx(variance.item(), rel=0.03)


@pytest.mark.parametrize(
    ("stds", "weights"),
    [
        (torch.zeros(3, 1), None),
        (STDS, torch.tensor([1.0, 0.0, 1.0])),
        (STDS, torch.tensor([1.0, 1.0])),
    ],
)
def test_an_impossible_mixture_is_refused(stds: Tensor, weights: Tensor | None) -> None:
    with pytest.raises(InputError, match="positive"):
        GaussianMixture(MEANS, stds, SCHEDULES["cosine"](), weights)
