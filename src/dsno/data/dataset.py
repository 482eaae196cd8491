"""A data set, in memory or decoded as its rows are asked for."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


class EncodedImages(Protocol):
    """Images that are decoded whenever they are asked for."""

    def __len__(self) -> int:
        """How many images there are."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each."""

    def decode(self, items: Sequence[int]) -> Tensor:
        """Decode images: (len(items), C, H, W), uint8."""


HASHED = 1000
"""Images of which a hash is taken at a time."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Real data.

    Attributes:
        name: of the source.
        pixels: (N, C, H, W) in memory, uint8 levels or float32 in [-1, 1], or encoded images.
        labels: (N,), int64 in [0, num_classes); None if there are none.
        num_classes: how many classes there are; None without labels.
        class_names: what the classes are called, where that is known.
        notes: what was understood of the source beyond that: the values, where the labels come
            from, what was left out and why; each a few words.
    """

    name: str
    pixels: Tensor | EncodedImages
    labels: Tensor | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.pixels)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        if isinstance(self.pixels, Tensor):
            return tuple(self.pixels.shape[1:])
        return self.pixels.shape

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels in their order, their type and shape; not of labels and names.

        Images that are decoded as they are asked for are all decoded once.
        """
        found = hashlib.sha256(str(self.sample_shape).encode())
        for items in torch.split(torch.arange(len(self)), HASHED):
            if isinstance(self.pixels, Tensor):
                some = self.pixels[items]
            else:
                some = self.pixels.decode(items.tolist())
            found.update(str(some.dtype).encode())
            found.update(some.contiguous().numpy().tobytes())
        return found.hexdigest()

    @property
    def label_frequencies(self) -> list[float] | None:
        """Share of each class; None without labels."""
        if self.labels is None or self.num_classes is None:
            return None
        counts = torch.bincount(self.labels, minlength=self.num_classes)
        return (counts / counts.sum()).tolist()

    @property
    def images(self) -> Float[Tensor, "count *shape"]:
        """All images, float32 in [-1, 1]: four bytes a value, so for small sets only.

        Raises:
            InputError: as `rows`.
        """
        if isinstance(self.pixels, Tensor):
            return _to_float(self.pixels)
        return self.rows(torch.arange(len(self)))

    def rows(
        self, items: Int64[Tensor, " rows"], flip: Bool[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows *shape"]:
        """Some images, float32 in [-1, 1].

        Args:
            items: which.
            flip: which of them to mirror left to right; none by default.

        Raises:
            InputError: if images are decoded as they are asked for and one cannot be.
        """
        if isinstance(self.pixels, Tensor):
            images = _to_float(self.pixels[items])
        else:
            images = _to_float(self.pixels.decode(items.tolist()))
        if flip is None:
            return images
        return torch.where(flip.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)


def _to_float(pixels: Tensor) -> Tensor:
    """Levels as float32 in [-1, 1]; float32 as it is."""
    if pixels.dtype != torch.uint8:
        return pixels.to(torch.float32)
    return pixels.to(torch.float32).div_(127.5).sub_(1)
