"""A stand-in for NVIDIA's Inception: the same interface, a few numbers that can be worked out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class Detector(nn.Module):
    """Bytes (n, 3, H, W) to the means of a few regions and channels, and two classes."""

    def forward(
        self, img: Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        if img.dtype != torch.uint8 or img.shape[1] != 3:
            raise RuntimeError("expected bytes of RGB images")
        x = img.float()
        upper, lower = x[:, :, : img.shape[2] // 2], x[:, :, img.shape[2] // 2 :]
        features = torch.cat([upper.mean((2, 3)), lower.mean((2, 3))[:, :2]], 1)
        if return_features:
            return features
        share = features[:, :1] / 255
        return torch.cat([share, 1 - share], 1)


def write_detector(path: Path) -> Path:
    script = torch.jit.script(Detector())
    torch.jit.save(script, str(path))
    return path


def by_numpy(levels: np.ndarray) -> np.ndarray:
    """Its features of bytes (n, H, W, 3), float64."""
    half = levels.shape[1] // 2
    upper, lower = levels[:, :half].astype(float), levels[:, half:].astype(float)
    return np.concatenate([upper.mean((1, 2)), lower.mean((1, 2))[:, :2]], 1)
