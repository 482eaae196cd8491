"""The layers of EDM's networks: residual blocks, resampling and embeddings of the time.

Their parameters and buffers have the names of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsno.support.errors import InputError


@dataclass(frozen=True)
class BlockStyle:
    """What all residual blocks of one network share.

    Attributes:
        embedding: width of the embedding.
        dropout: before the second convolution.
        skip_scale: factor of every sum.
        eps: of the group normalisations.
        taps: of the resampling filter.
        project: whether the skip of a resampling block is always projected.
        adaptive: whether the embedding enters as scale and shift rather than as a sum.
        head_channels: channels per attention head; None for one head.
    """

    embedding: int
    dropout: float
    skip_scale: float
    eps: float
    taps: tuple[float, ...]
    project: bool
    adaptive: bool
    head_channels: int | None

    def heads(self, channels: int) -> int:
        """Attention heads at a width; none below one head's channels, as in ADM."""
        return 1 if self.head_channels is None else channels // self.head_channels


def _resample(x: Tensor, kernel: Tensor, *, up: bool, padding: int) -> Tensor:
    """Filter every channel with the same kernel (1, 1, k, k) and double or halve the size."""
    # a buffer may stay in float32 where a library casts the weights alone
    each = kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)
    if up:  # three of four pixels put in are zero
        return functional.conv_transpose2d(
            x, 4 * each, stride=2, padding=padding, groups=x.shape[1]
        )
    return functional.conv2d(x, each, stride=2, padding=padding, groups=x.shape[1])


def _kernel(taps: Sequence[float]) -> Tensor:
    row = torch.tensor(taps, dtype=torch.float32)
    row = row / row.sum()
    return (row[:, None] * row)[None, None]


class Resample(nn.Module):
    """Double or halve the size with a filter."""

    resample_filter: Tensor

    def __init__(self, taps: Sequence[float], *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.padding = (len(taps) - 1) // 2
        self.register_buffer("resample_filter", _kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        """Return x at twice or half its size."""
        return _resample(x, self.resample_filter, up=self.up, padding=self.padding)


class ResampleConv(nn.Conv2d):
    """Double or halve the size with a filter, then convolve."""

    resample_filter: Tensor

    def __init__(
        self, channels: int, out_channels: int, size: int, taps: Sequence[float], *, up: bool
    ) -> None:
        super().__init__(channels, out_channels, size, padding=size // 2)
        self.up = up
        self.margin = (len(taps) - 1) // 2
        self.register_buffer("resample_filter", _kernel(taps))

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input` at its new size."""
        return super().forward(
            _resample(input, self.resample_filter, up=self.up, padding=self.margin)
        )


class ConvDown(nn.Conv2d):
    """Convolve, then halve the size, padding once for both."""

    resample_filter: Tensor

    def __init__(self, channels: int, out_channels: int, size: int, taps: Sequence[float]) -> None:
        super().__init__(channels, out_channels, size, padding=size // 2 + (len(taps) - 1) // 2)
        self.register_buffer("resample_filter", _kernel(taps))

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input` at half its size."""
        bias = None if self.bias is None else self.bias[:, None, None]
        wide = functional.conv2d(input, self.weight, padding=self.padding)
        half = _resample(wide, self.resample_filter, up=False, padding=0)
        return half if bias is None else half + bias


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Up to 32 groups of at least 4 channels."""
    groups = min(32, channels // 4)
    if groups == 0 or channels % groups:
        raise InputError(
            f"A width of {channels} channels cannot be normalised in {groups} groups; "
            "use multiples of 4 up to 128 channels, and of 32 above."
        )
    return nn.GroupNorm(groups, channels, eps=eps)


class UNetBlock(nn.Module):
    """A residual block, with self-attention behind it where there is some.

    Args:
        channels: at the input.
        out_channels: at the output.
        style: what the network's blocks share.
        resize: `up`, `down`, or empty to keep the resolution.
        attention: whether there is self-attention.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        style: BlockStyle,
        *,
        resize: str = "",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.resize = resize
        self.style = style
        self.heads = style.heads(out_channels) if attention else 0
        if self.heads and out_channels % self.heads:
            raise InputError(
                f"A width of {out_channels} channels cannot be split among {self.heads} attention "
                "heads."
            )
        self.norm0 = group_norm(channels, style.eps)
        self.conv0 = self._conv(channels, out_channels, 3)
        self.affine = nn.Linear(style.embedding, out_channels * (2 if style.adaptive else 1))
        self.norm1 = group_norm(out_channels, style.eps)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip: nn.Module | None = None
        if channels != out_channels or (resize and style.project):
            self.skip = self._conv(channels, out_channels, 1)
        elif resize:
            self.skip = Resample(style.taps, up=resize == "up")
        if self.heads:
            self.norm2 = group_norm(out_channels, style.eps)
            self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = nn.Conv2d(out_channels, out_channels, 1)

    def _conv(self, channels: int, out_channels: int, size: int) -> nn.Module:
        if not self.resize:
            return nn.Conv2d(channels, out_channels, size, padding=size // 2)
        return ResampleConv(channels, out_channels, size, self.style.taps, up=self.resize == "up")

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the block's output for x (B, C, H, W) and the embedding (B, E)."""
        style = self.style
        h: Tensor = self.conv0(functional.silu(self.norm0(x)))
        modulation = self.affine(embedding)[:, :, None, None]
        if style.adaptive:
            scale, shift = modulation.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + modulation)
        h = functional.dropout(functional.silu(h), style.dropout, self.training)
        h = (self.conv1(h) + (x if self.skip is None else self.skip(x))) * style.skip_scale
        return (h + self._attend(h)) * style.skip_scale if self.heads else h

    def _attend(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # a head's channels hold the query, key and value of each feature side by side
        packed = self.qkv(self.norm2(x)).reshape(
            batch, self.heads, channels // self.heads, 3, height * width
        )
        query, key, value = packed.transpose(2, 4).unbind(3)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.proj(mixed.transpose(2, 3).reshape(x.shape))
        return result


class PositionalEmbedding(nn.Module):
    """Sines and cosines of a number at geometrically falling frequencies.

    Args:
        channels: of the embedding, half sines, half cosines.
        endpoint: whether the last frequency is 1e-4 itself rather than the one before it.
        sines_first: the order of the two halves.
    """

    def __init__(self, channels: int, *, endpoint: bool, sines_first: bool) -> None:
        super().__init__()
        self.count = channels // 2
        self.intervals = self.count - 1 if endpoint else self.count
        self.sines_first = sines_first

    def forward(self, number: Tensor) -> Tensor:
        """Return (B, channels) for (B,)."""
        step = torch.arange(self.count, dtype=number.dtype, device=number.device)
        phase = number[:, None] * torch.pow(1e-4, step / self.intervals)
        halves = (phase.sin(), phase.cos())
        return torch.cat(halves if self.sines_first else halves[::-1], dim=1)


class FourierEmbedding(nn.Module):
    """Sines and cosines of a number at random frequencies, which belong to the weights."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, number: Tensor) -> Tensor:
        """Return (B, channels) for (B,): sines, then cosines."""
        phase = number[:, None] * (2 * math.pi * self.freqs).to(number.dtype)
        return torch.cat([phase.sin(), phase.cos()], dim=1)
