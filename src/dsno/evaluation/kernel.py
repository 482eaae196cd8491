"""The kernel distance (KID): an unbiased squared MMD with a polynomial kernel. Float64."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dsno.evaluation.estimate import Estimate, of_parts
from dsno.support import seeds
from dsno.support.errors import InputError

SUBSET, SUBSETS = 1000, 10
"""Rows of a subset at most, and subsets at least: fewer say little of the error."""


def kernel_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, seed: int = 0) -> Estimate:
    """Mean of the unbiased squared MMD over subsets, with k(x, y) = (x.y / d + 1)^3.

    Both sets are shuffled and cut into equally many subsets that share no row, so that every row
    counts once and the subsets' values are independent; their spread gives the standard error. The
    field draws subsets of 1,000 at random instead: the expected value is the same, as the estimate
    is unbiased whatever the size, and so it may be a little below zero.

    Source: Binkowski et al., arXiv 1801.01401, section 4.

    Args:
        a: features, for instance of the samples.
        b: features of the reference.
        seed: of the order of the rows.

    Raises:
        InputError: for fewer than four rows, or features that differ in their number.
    """
    smaller, larger = sorted((len(a), len(b)))
    if smaller < 4:
        raise InputError(f"A kernel distance needs at least 4 samples on each side, not {smaller}.")
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"The two sets have {a.shape[1]} and {b.shape[1]} features a sample; they must be "
            "computed by the same network."
        )
    count = min(max(SUBSETS, math.ceil(larger / SUBSET)), smaller // 2)
    parts = zip(_subsets(a, count, seed, 0), _subsets(b, count, seed, 1), strict=True)
    return of_parts([squared_mmd(x, y) for x, y in parts])


def squared_mmd(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy.

    Source: Gretton et al., JMLR 13 (2012), eq. 3.
    """
    n, m = len(a), len(b)
    within_a = (polynomial(a, a).sum() - polynomial_self(a).sum()) / (n * (n - 1))
    within_b = (polynomial(b, b).sum() - polynomial_self(b).sum()) / (m * (m - 1))
    return float(within_a + within_b - 2 * polynomial(a, b).mean())


def polynomial(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """The kernel (x.y / d + 1)^3 of all pairs, float64."""
    base = a.double() @ b.double().T / a.shape[1] + 1
    return base * base * base  # several times faster than a power


def polynomial_self(a: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """The kernel of every row with itself."""
    return (a.double().square().mean(1) + 1) ** 3


def _subsets(x: Tensor, count: int, seed: int, index: int) -> tuple[Tensor, ...]:
    order = seeds.generator(seed, seeds.SUBSET, index).permutation(len(x))
    return torch.tensor_split(x[torch.from_numpy(order).to(x.device)], count)
