"""Kernel distance, precision and recall, inception score: brute force and known answers."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from dsno.evaluation import manifold as manifolds
from dsno.evaluation.class_score import inception_score
from dsno.evaluation.kernel import kernel_distance, squared_mmd
from dsno.evaluation.manifold import manifold
from dsno.support.errors import InputError


def normal(count: int, d: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed))


# ---- kernel distance ---------------------------------------------------------------------------


def test_the_squared_mmd_is_that_of_all_pairs_of_different_rows() -> None:
    a, b = normal(7, 5), normal(11, 5, seed=1) + 0.3

    def kernel(x: Tensor, y: Tensor) -> np.ndarray:
        return polynomial_kernel(x.double(), y.double(), degree=3, gamma=1 / 5, coef0=1)

    inside_a = statistics.fmean(kernel(a, a)[~np.eye(7, dtype=bool)])
    inside_b = statistics.fmean(kernel(b, b)[~np.eye(11, dtype=bool)])
    expected = inside_a + inside_b - 2 * kernel(a, b).mean()
    assert squared_mmd(a, b) == pytest.approx(expected, rel=1e-9)


def shifted_mmd(mean: float) -> float:
    """Of N(mean, 1) and N(0, 1): (xy + 1)^3 compares the first three moments, 1, 3, 3, 1 times."""
    moments = mean, mean**2 + 1, mean**3 + 3 * mean
    return 3 * moments[0] ** 2 + 3 * (moments[1] - 1) ** 2 + moments[2] ** 2


def test_the_kernel_distance_of_gaussians_has_its_closed_form_within_its_error() -> None:
    """The error is that which repeated draws show, within what 60 of them can tell."""
    draws = [
        kernel_distance(normal(600, 1, seed=i) + 0.4, normal(900, 1, seed=1000 + i))
        for i in range(60)
    ]
    values, spread = [draw.value for draw in draws], statistics.stdev(d.value for d in draws)
    assert abs(statistics.fmean(values) - shifted_mmd(0.4)) < 3 * spread / 60**0.5
    claimed = statistics.fmean(draw.standard_error for draw in draws)
    assert claimed == pytest.approx(spread, rel=0.25)
    assert draws[0].half_width == pytest.approx(1.96 * draws[0].standard_error, rel=1e-3)


def test_the_kernel_distance_of_equal_distributions_is_zero_on_average_for_any_size() -> None:
    """It is unbiased: of 40 samples as of thousands."""
    values = [
        kernel_distance(normal(40, seed=i), normal(44, seed=500 + i)).value for i in range(60)
    ]
    assert min(values) < 0
    assert abs(statistics.fmean(values)) < 3 * statistics.stdev(values) / 60**0.5


def test_every_row_counts_once_and_the_order_does_not_come_from_the_files() -> None:
    """A folder lists class after class; subsets of it in that order would differ by class."""
    classes = torch.cat([normal(500) - 3, normal(500, seed=1) + 3])
    mixed = classes[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    found = kernel_distance(classes, mixed)
    assert abs(found.value) < 4 * found.standard_error
    assert kernel_distance(classes, mixed) == found
    assert kernel_distance(classes, mixed, seed=1) != found


def test_more_than_ten_thousand_rows_are_cut_into_subsets_of_a_thousand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    def note(a: Tensor, b: Tensor) -> float:
        sizes.append((len(a), len(b)))
        return 0.0

    monkeypatch.setattr("dsno.evaluation.kernel.squared_mmd", note)
    kernel_distance(torch.zeros(12_000, 1), torch.zeros(600, 1))
    assert sizes == [(1000, 50)] * 12
    sizes.clear()
    kernel_distance(torch.zeros(5, 1), torch.zeros(900, 1))
    assert sizes == [(3, 450), (2, 450)]


def test_a_kernel_distance_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="at least 4 samples on each side, not 3"):
        kernel_distance(normal(3), normal(50))
    with pytest.raises(InputError, match="5 and 3 features a sample"):
        kernel_distance(normal(20, 5), normal(20))


# ---- precision and recall ----------------------------------------------------------------------


def precision_and_recall(real: Tensor, made: Tensor) -> tuple[float, float]:
    return manifold(real).share(made), manifold(made).share(real)


def test_precision_is_that_of_a_search_over_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = normal(60), normal(60, seed=1) * 1.5
    search = NearestNeighbors().fit(real.double().numpy())
    radii = search.kneighbors(n_neighbors=3)[0][:, -1]  # a row is no neighbour of its own
    gaps = np.linalg.norm(made.double().numpy()[:, None] - real.double().numpy(), axis=2)
    expected = float((gaps <= radii).any(1).mean())
    assert 0.2 < expected < 0.9
    assert manifold(real).share(made) == pytest.approx(expected)
    monkeypatch.setattr(manifolds, "BLOCK", 150)  # two rows at a time
    assert manifold(real).share(made) == pytest.approx(expected)


def test_memory_is_bounded_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifolds, "BLOCK", 1000)
    sizes = [s.numel() for s, _ in manifolds._blocks(normal(64).double(), normal(64).double())]
    assert max(sizes) <= 1000
    assert sum(sizes) == 64 * 64


def test_identical_sets_cover_each_other_and_disjoint_ones_not_at_all() -> None:
    """Also where rows repeat, so that balls have no radius and rounding would decide."""
    doubled = normal(100, 8).repeat_interleave(5, 0) + 1000
    assert precision_and_recall(doubled, doubled) == (1, 1)
    exact = doubled.double()
    assert precision_and_recall(exact, torch.nextafter(exact, exact + 1)) == (1, 1)
    assert precision_and_recall(normal(100), normal(100) + 100) == (0, 0)


def test_a_dropped_mode_lowers_recall_and_not_precision() -> None:
    modes = torch.tensor([[-20.0, 0, 0], [20, 0, 0]])
    real = torch.cat([normal(400, seed=i) + modes[i] for i in (0, 1)])
    whole = torch.cat([normal(400, seed=5 + i) + modes[i] for i in (0, 1)])
    dropped = normal(800, seed=7) + modes[0]
    precision, recall = precision_and_recall(real, whole)
    assert min(precision, recall) > 0.9
    precision_dropped, recall_dropped = precision_and_recall(real, dropped)
    assert precision_dropped == pytest.approx(precision, abs=0.03)
    assert recall_dropped == pytest.approx(recall / 2, abs=0.03)  # of half of the real items
    blurred = torch.cat([real[::2], real[1::2] + 10])  # half of the samples are nowhere near
    assert precision_and_recall(real, blurred)[0] == pytest.approx(0.5, abs=0.03)


def test_no_more_rows_than_neighbours_are_refused() -> None:
    with pytest.raises(InputError, match="at least 4 samples, not 3"):
        manifold(normal(3))


# ---- inception score ---------------------------------------------------------------------------


def test_the_score_is_one_for_uncertain_answers_and_the_number_of_classes_for_varied_ones() -> None:
    assert inception_score(torch.zeros(50, 4)).value == pytest.approx(1)
    sure = 1e3 * torch.eye(4).repeat(50, 1)
    assert inception_score(sure).value == pytest.approx(4)
    assert inception_score(sure[:1].expand(50, 4)).value == pytest.approx(1)  # one class only


def test_the_score_is_the_divergence_from_the_marginal_in_each_of_ten_parts() -> None:
    logits = normal(200, 6) * 2
    p = torch.softmax(logits.double(), 1).numpy().reshape(10, 20, 6)
    parts = [math.exp(rel_entr(part, part.mean(0)).sum(1).mean()) for part in p]
    found = inception_score(logits)
    assert found.value == pytest.approx(statistics.fmean(parts), rel=1e-12)
    assert found.standard_error == pytest.approx(np.std(parts, ddof=1) / math.sqrt(10), rel=1e-9)


def test_fewer_samples_than_parts_are_refused() -> None:
    with pytest.raises(InputError, match="at least 10 samples, one for each part, not 9"):
        inception_score(torch.zeros(9, 3))
