"""The Frechet distance between sets of features, and its standard error. Float64."""

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

    def to(self, device: torch.device) -> Moments:
        """The same on a device."""
        return Moments(self.mean.to(device), self.covariance.to(device), self.count)


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
    root = _root(a.covariance)
    inner = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    total = gap + a.covariance.trace() + b.covariance.trace() - 2 * inner
    return float(total.clamp(min=0))


def frechet_error(features: Float[Tensor, "n d"], samples: Moments, real: Moments) -> float:
    """Standard error of the Frechet distance: how far another draw of as many samples moves it.

    By the infinitesimal jackknife, which is what the bootstrap tends to with ever more resamples:
    the spread of the derivative of the distance by each sample's weight. With G = I - T, T the
    optimal transport map from the samples' Gaussian to the reference's, the derivative is

        2 (mean - mean_real).z + z.G z    at z = x - mean.

    The reference is taken as fixed. Where the distance is mostly bias (as small as that of the
    reference's halves) the error comes out too wide, by up to a half; the bootstrap's is wider
    still. Not meaningful where the samples' covariance is singular, nor
    is the distance there.

    Source: Efron, "Nonparametric estimates of standard error", Biometrika 68 (1981); the derivative
    of the Bures metric: Bhatia et al., arXiv 1712.01504.

    Args:
        features: of the samples.
        samples: their moments.
        real: moments of the reference.
    """
    root = _root(real.covariance)
    values, vectors = torch.linalg.eigh(root @ samples.covariance @ root)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    inverse_root = torch.where(kept, values, 1).rsqrt()  # where 0, nothing of z is left to scale
    transport = root @ (vectors * inverse_root) @ vectors.T @ root
    z = features.double() - samples.mean
    influence = z @ (2 * (samples.mean - real.mean)) + (z * (z - z @ transport)).sum(1)
    return float(influence.std() / len(z) ** 0.5)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root
