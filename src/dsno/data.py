"""Images and labels in: the real data a teacher learns and an evaluation compares with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsno.errors import one_of

SOURCES = ("digits",)


@dataclass(frozen=True)
class Dataset:
    """Real data in memory.

    Attributes:
        name: of the source.
        images: (N, C, H, W), float32 in [-1, 1].
        labels: (N,), int64 in [0, num_classes).
        num_classes: how many classes there are.
    """

    name: str
    images: Tensor
    labels: Tensor
    num_classes: int

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    @property
    def label_frequencies(self) -> list[float]:
        """Share of each class."""
        counts = torch.bincount(self.labels, minlength=self.num_classes)
        return (counts / counts.sum()).tolist()


def load_data(source: str) -> Dataset:
    """Load a data set: `digits` is scikit-learn's 1,797 handwritten digits of 8x8 pixels.

    Raises:
        InputError: for an unknown source.
    """
    one_of(source, SOURCES, "data source")
    from sklearn.datasets import load_digits  # seconds to import

    digits = load_digits()
    pixels = torch.from_numpy(digits.images.astype(np.float32))[:, None]  # 0 .. 16
    return Dataset(source, pixels / 8 - 1, torch.from_numpy(digits.target.astype(np.int64)), 10)
