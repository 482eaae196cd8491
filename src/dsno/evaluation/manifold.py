"""Improved precision and recall: how much of one set lies within the support of another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dsno.support.errors import InputError

NEIGHBOURS = 3
BLOCK = 2**20
"""Distances in memory at a time: 8 MiB, which a cache holds."""
TIE = 1e-12
"""Rounding of a squared distance, relative to the norms: a row's copies are at distance zero."""


@dataclass(frozen=True)
class Manifold:
    """The support of a set of features: a ball around each row, up to its k-th neighbour.

    Attributes:
        points: (n, d), float64.
        radii: (n,), squared.
    """

    points: Float[Tensor, "n d"]
    radii: Float[Tensor, " n"]

    def share(self, points: Float[Tensor, "m d"]) -> float:
        """The share of some points that lie within any of the balls."""
        inside = 0
        for squared, rounding in _blocks(points.double(), self.points):
            inside += int((squared <= self.radii + rounding).any(1).sum())
        return inside / len(points)


def manifold(features: Float[Tensor, "n d"], *, neighbours: int = NEIGHBOURS) -> Manifold:
    """The support of a set, its balls reaching to the `neighbours`-th other row.

    Source: Kynkaanniemi et al., arXiv 1904.06991, section 3: its precision is
    `manifold(real).share(made)`, its recall `manifold(made).share(real)`, of equally many rows.

    Raises:
        InputError: if there are no more rows than neighbours.
    """
    if len(features) <= neighbours:
        raise InputError(
            f"Precision and recall look at {neighbours} neighbours of every sample, so they need "
            f"at least {neighbours + 1} samples, not {len(features)}."
        )
    points = features.double()
    radii = [  # the nearest row is the row itself
        squared.topk(neighbours + 1, largest=False).values[:, -1]
        for squared, _ in _blocks(points, points)
    ]
    return Manifold(points, torch.cat(radii))


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Squared distances of some rows of a to all of b, and how exact they are."""
    norms = b.square().sum(1)
    for rows in torch.split(a, max(BLOCK // len(b), 1)):
        both = rows.square().sum(1, keepdim=True) + norms
        yield torch.addmm(both, rows, b.T, alpha=-2).clamp(min=0), TIE * both
