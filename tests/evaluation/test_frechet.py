"""The Frechet distance against closed forms and scipy's matrix root."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from dsno.evaluation.frechet import Moments, frechet_distance, frechet_error, moments
from dsno.support.errors import InputError


def covariance(d: int, rank: int | None = None) -> Tensor:
    root = torch.randn(d, rank or 2 * d, dtype=torch.float64)
    return root @ root.T / root.shape[1]


def made(mean: Tensor, cov: Tensor) -> Moments:
    return Moments(mean, cov, 1000)


def by_scipy(a: Moments, b: Moments) -> float:
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    gap = (a.mean - b.mean).numpy()
    return float(gap @ gap + np.trace(a.covariance + b.covariance) - 2 * np.trace(root).real)


def test_moments_are_numpys() -> None:
    features = torch.randn(50, 4)
    got = moments(features)
    assert got.count == 50
    np.testing.assert_allclose(got.mean, features.double().numpy().mean(0))
    np.testing.assert_allclose(got.covariance, np.cov(features.double().numpy().T))


def test_moments_survive_a_large_mean() -> None:
    features = torch.randn(200, 3, dtype=torch.float64)
    shifted = moments(features + 1e6).covariance
    torch.testing.assert_close(shifted, moments(features).covariance, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("d", [1, 5, 64])
def test_covariances_that_commute_have_a_closed_form(d: int) -> None:
    """Sum over the common eigenvectors of (sqrt(a) - sqrt(b))^2."""
    turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    a, b = (torch.rand(d, dtype=torch.float64) * 3 for _ in range(2))
    mean_a, mean_b = (torch.randn(d, dtype=torch.float64) for _ in range(2))
    expected = (mean_a - mean_b).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    got = frechet_distance(made(mean_a, turn * a @ turn.T), made(mean_b, turn * b @ turn.T))
    assert got == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("d", [2, 17, 96])
def test_covariances_that_do_not_commute_agree_with_scipy(d: int) -> None:
    a = made(torch.randn(d).double(), covariance(d))
    b = made(torch.randn(d).double(), covariance(d))
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_singular_covariances_are_no_obstacle() -> None:
    """More features than samples, where a plain matrix root gives complex numbers."""
    a, b = (
        made(torch.zeros(40).double(), covariance(40, 7)),
        made(torch.zeros(40).double(), covariance(40, 9)),
    )
    distance = frechet_distance(a, b)
    assert np.isfinite(distance)
    ridge = 1e-10 * torch.eye(40)
    near = by_scipy(made(a.mean, a.covariance + ridge), made(b.mean, b.covariance + ridge))
    assert distance == pytest.approx(near, abs=1e-2)


def test_equal_sets_are_at_distance_zero() -> None:
    a = made(torch.randn(30).double(), covariance(30))
    assert 0 <= frechet_distance(a, a) < 1e-9


def test_a_shift_costs_its_square() -> None:
    features = torch.randn(500, 6)
    a, b = moments(features), moments(features + 2)
    assert frechet_distance(a, b) == pytest.approx(24, rel=1e-5)


def test_the_standard_error_is_the_spread_over_repeated_draws() -> None:
    """200 draws tell it to 5 %; a heavy tail would show an error taken from a Gaussian formula."""
    d, n = 4, 500
    real = made(torch.zeros(d).double(), covariance(d))
    drawn = []
    for _ in range(200):
        x = torch.randn(n, d) * torch.exp(0.3 * torch.randn(n, 1)) * 1.2 + 0.3
        drawn.append((frechet_distance(moments(x), real), frechet_error(x, moments(x), real)))
    values, errors = zip(*drawn, strict=True)
    assert statistics.fmean(errors) == pytest.approx(statistics.stdev(values), rel=0.2)


def test_the_standard_error_is_the_bootstraps() -> None:
    real = made(torch.zeros(3).double(), covariance(3))
    x = torch.randn(2000, 3) * 1.3 + 0.5
    again = [
        frechet_distance(moments(x[torch.randint(len(x), (len(x),))]), real) for _ in range(200)
    ]
    assert frechet_error(x, moments(x), real) == pytest.approx(statistics.stdev(again), rel=0.2)


@pytest.mark.parametrize("rank", [40, 7])
def test_the_standard_error_is_that_of_the_derivative(rank: int) -> None:
    """By differences in each sample's weight; also where pixels of the data never vary."""
    real = made(torch.randn(40).double(), covariance(40, rank))
    x = torch.randn(60, 40).double()

    def weighted(weights: Tensor) -> float:
        p = weights / weights.sum()
        mean = p @ x
        unbiased = len(x) / (len(x) - 1)
        cov = (x - mean).T @ ((x - mean) * p[:, None]) * unbiased
        return frechet_distance(Moments(mean, cov, len(x)), real)

    step, ones = 1e-4, torch.ones(len(x)).double()
    slopes = []
    for i in range(len(x)):
        nudge = torch.zeros(len(x)).double()
        nudge[i] = step
        slopes.append((weighted(ones + nudge) - weighted(ones - nudge)) / (2 * step))
    expected = statistics.stdev(slopes) * len(x) ** 0.5
    assert frechet_error(x, moments(x), real) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_refused(bad: float) -> None:
    features = torch.randn(5, 2)
    features[3, 1] = bad
    with pytest.raises(InputError, match="not finite"):
        moments(features)


def test_one_sample_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 samples, not 1"):
        moments(torch.zeros(1, 3))
