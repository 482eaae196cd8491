"""Distances between sets of features. Pure functions, float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dsno.support.errors import InputError


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of features, float64, and how many there were."""

    mean: Tensor
    covariance: Tensor
    count: int


def moments(features: Float[Tensor, "n d"]) -> Moments:
    """Mean and unbiased covariance.

    Raises:
        InputError: for fewer than two rows or values that are not finite.
    """
    x = features.double()
    if len(x) < 2:
        raise InputError(f"A covariance needs at least 2 samples, not {len(x)}.")
    if not bool(torch.isfinite(x).all()):
        raise InputError("Some features are not finite: the sampler made NaN or infinite values.")
    mean = x.mean(0)
    centred = x - mean
    return Moments(mean, centred.T @ centred / (len(x) - 1), len(x))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    The trace of the root is the sum of square roots of the eigenvalues of A^(1/2) B A^(1/2), which
    is symmetric, so no complex or non-converging matrix root appears.

    Source: Dowson & Landau 1982; Heusel et al., arXiv 1706.08500.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    inner = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    total = gap + a.covariance.trace() + b.covariance.trace() - 2 * inner
    return float(total.clamp(min=0))
