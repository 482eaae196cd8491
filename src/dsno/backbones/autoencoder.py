"""The autoencoder of a latent diffusion model: from its latents to images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Latents:
    """Decodes latents as the model knows them into images.

    A diffusion model sees (encoding - shift_factor) * scaling_factor (Rombach et al., arXiv
    2112.10752, appendix G; the shift came with later models); some are normalised per channel by
    `latents_mean` and `latents_std` too. All are read from the autoencoder's own configuration.

    Args:
        vae: diffusers' `AutoencoderKL`, `VQModel` or `AutoencoderTiny`.
    """

    def __init__(self, vae: nn.Module) -> None:
        self.vae = vae

    @torch.no_grad()
    def decode(
        self, latents: Tensor, *, batch_size: int = 16, device: torch.device | None = None
    ) -> Tensor:
        """(N, c, h, w) latents -> (N, C, H, W) float32 images in [-1, 1].

        Args:
            latents: as the diffusion model knows them.
            batch_size: how many at a time.
            device: where the autoencoder computes, if its weights wait elsewhere.
        """
        first = next(self.vae.parameters())
        parts = []
        for rows in torch.split(latents, batch_size):
            encoding = self._encoding(rows.to(device or first.device, torch.float32)).to(
                first.dtype
            )
            vae: Any = self.vae
            parts.append(vae.decode(encoding, return_dict=False)[0].float().clamp(-1, 1))
        return torch.cat(parts)

    def _encoding(self, latents: Tensor) -> Tensor:
        config: Any = self.vae.config
        scale = config.get("scaling_factor") or 1.0
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            m, s = (latents.new_tensor(v).reshape(1, -1, 1, 1) for v in (mean, std))
            return latents * s / scale + m
        return latents / scale + (config.get("shift_factor") or 0.0)
