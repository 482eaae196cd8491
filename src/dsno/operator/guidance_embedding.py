"""A scalar as an input of the student: here the guidance scale it is to imitate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ScalarEmbedding(nn.Module):
    """One number per sample -> one vector per sample, shared by all sites.

    Sinusoids of log(1 + max(value, 0)) at geometric frequencies (guidance scales are compared by
    ratio), then a layer with SiLU.

    Args:
        width: of the vector.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.bands = width // 2
        self.mix = nn.Linear(2 * self.bands, width)

    def forward(self, value: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """Embed the values, in the layer's dtype."""
        position = torch.arange(self.bands, device=value.device, dtype=torch.float32) / self.bands
        frequencies = torch.exp(position * math.log(200.0))
        phases = torch.log1p(value.float().clamp(min=0))[:, None] * frequencies
        waves = torch.cat([phases.cos(), phases.sin()], 1)
        return nn.functional.silu(self.mix(waves.to(self.mix.weight.dtype)))


class SiteShifts(nn.Module):
    """A bias per channel behind each site, linear in the embedding; zero at first.

    Starting at zero, the lifted network starts as the one without the input.
    """

    def __init__(self, channels: Sequence[int], width: int = 128) -> None:
        super().__init__()
        self.embedding = ScalarEmbedding(width)
        self.shifts = nn.ModuleList(nn.Linear(width, c) for c in channels)
        for layer in self.shifts:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def at(self, site: int, embedding: Tensor, like: Tensor, channel_dim: int) -> Tensor:
        """The shift of a site, shaped to be added to its output `like`."""
        shift: Tensor = self.shifts[site](embedding)
        shape = [shift.shape[0], *[1] * (like.ndim - 1)]
        shape[channel_dim] = shift.shape[1]
        return shift.reshape(shape).to(like.dtype)
