"""From one noise to another along the sphere."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dsno.support.errors import InputError
from dsno.support.scalars import whole

PARALLEL = 1e-6
"""Sine of an angle below which two noises have one direction, or opposite ones."""


def spherical(
    first: Float[Tensor, "batch *shape"], last: Float[Tensor, "batch *shape"], points: int
) -> Float[Tensor, "batch points *shape"]:
    """Noises from each of `first` to that of `last`, both included, at equal angles.

    A straight line between two noises leaves the sphere that nearly all unit normal noise lies
    near: its middle has 1 / sqrt(2) of their length, and a model makes grey samples of it. Noises
    of one direction, or of opposite ones, are joined by a straight line all the same, as between
    them no plane is given.

    Source: Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985, section 3.3.

    Raises:
        InputError: if the shapes differ or there are fewer than 2 points.
    """
    points = whole(points, "number of points of an interpolation", least=2)
    if first.shape != last.shape:
        raise InputError(
            f"Noises to interpolate between must have one shape, not {tuple(first.shape)} and "
            f"{tuple(last.shape)}."
        )
    rows = first.shape[0], 1, *[1] * (first.ndim - 1)
    a, b = (noise.double().flatten(1) for noise in (first, last))
    cosine = torch.nn.functional.cosine_similarity(a, b).clamp(-1, 1)
    angle = cosine.acos().reshape(rows)
    share = torch.linspace(0, 1, points, dtype=torch.float64, device=first.device)
    share = share.reshape(1, points, *[1] * (first.ndim - 1))
    sine = angle.sin()
    is_flat = sine < PARALLEL
    divisor = torch.where(is_flat, torch.ones_like(sine), sine)
    of_first = torch.where(is_flat, 1 - share, ((1 - share) * angle).sin() / divisor)
    of_last = torch.where(is_flat, share, (share * angle).sin() / divisor)
    states = of_first * first.double()[:, None] + of_last * last.double()[:, None]
    return states.to(first.dtype)
