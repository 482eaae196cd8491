"""Feature spaces without a network: pixels and thumbnails."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from dsno.evaluation.features.space import Features, Outputs, Space


def pixels(x: Tensor) -> Tensor:
    """The values themselves, (n, d): exact, for tiny samples."""
    return x.flatten(1)


def thumbnail(x: Tensor) -> Tensor:
    """Images averaged down to at most 8x8, (n, d): coarse, for samples with many pixels."""
    height, width = x.shape[-2:]
    return functional.adaptive_avg_pool2d(x, (min(height, 8), min(width, 8))).flatten(1)


PLAIN_SPACES: dict[str, Features] = {"pixels": pixels, "thumbnail": thumbnail}
"""Spaces that need no training."""
MAX_PIXELS = 1024
"""A covariance of more numbers than this is slow and badly estimated."""


def plain_space(name: str, device: torch.device) -> Space:
    """`pixels` or `thumbnail`."""
    return Space(name, functools.partial(_outputs, PLAIN_SPACES[name]), {}, device=device)


def _outputs(features: Features, images: Tensor) -> Outputs:
    return Outputs(features(images))
