"""Temporal convolution in Fourier space, in real arithmetic.

A feature u at one pixel and channel is a function of time known on M slices. The layer keeps its
lowest Fourier modes, mixes the channels of each mode with a learned complex matrix R_k and returns
to the slices:

    K u = F^-1 (R . F u),        layer(u) = u + LeakyReLU(K u)

(arXiv 2211.13449, section 4.2). It is computed as: project on the retained cosines and sines, one
real channel-mixing matrix product per mode, project back. No FFT and no complex tensor is needed,
so half precision, compilers and exporters all work.

The layer is an operator on functions of time. The M *carrier* slices lie at phases j / M of the
period and supply the Fourier coefficients. *Query* slices at any other phase only read those
coefficients, so asking for more times never changes the answer at the carriers.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsno.errors import InputError


@dataclass(frozen=True)
class Slices:
    """How a batch of B * count rows is laid out in time: for each sample, M carriers, then queries.

    Attributes:
        carriers: M.
        queries: phases of the query slices, in periods; carrier j has phase j / M.
    """

    carriers: int
    queries: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """Slices per sample."""
        return self.carriers + len(self.queries)


def modes_kept(modes: int, carriers: int) -> int:
    """How many of `modes` Fourier modes M real slices carry: min(modes, M // 2 + 1)."""
    return min(modes, carriers // 2 + 1)


@torch.inference_mode(False)  # a tensor made in inference mode could not be used in training
def _bases(
    slices: Slices, modes: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Analysis (P, M) and synthesis (count, P) matrices, P = 1 + 2 (modes - 1).

    Rows of P: DC, then cosine and minus-sine of each harmonic, i.e. real and imaginary part of the
    coefficient. The Nyquist mode has no sine; its column is zero, as in `torch.fft.irfft`.
    """
    m = slices.carriers
    phases = torch.tensor([j / m for j in range(m)] + list(slices.queries), dtype=torch.float64)
    analysis, synthesis = [torch.ones(m)], [torch.ones(slices.count).double() / m]
    for k in range(1, modes):
        nyquist = 2 * k == m
        turn = 2 * math.pi * k * phases
        weight = (1 if nyquist else 2) / m
        analysis += [turn[:m].cos(), torch.zeros(m) if nyquist else -turn[:m].sin()]
        synthesis += [
            weight * turn.cos(),
            torch.zeros(slices.count) if nyquist else -weight * turn.sin(),
        ]
    return (
        torch.stack([row.double() for row in analysis]).to(dtype=dtype, device=device),
        torch.stack([column.double() for column in synthesis], 1).to(dtype=dtype, device=device),
    )


_cached_bases = functools.lru_cache(maxsize=256)(_bases)


class FourierTemporalConv(nn.Module):
    """K u = F^-1 (R . F u) over the slices of a batch.

    Args:
        channels: C.
        modes: Fourier modes kept, the constant one included.
        slices: M the weights are made for. Any other number of carriers is accepted later, unless
            the highest kept mode is this M's Nyquist mode, whose meaning depends on M.
        channel_dim: dimension of the channels in the input: 1 for (B * count, C, ...), -1 for
            tokens (B * count, L, C).

    Attributes:
        real, imag: R, each (modes, C_in, C_out), initialised uniform in [0, 1 / C^2) as in the
            paper, so training starts near the network without temporal layers. The imaginary part
            of the constant (and Nyquist) mode has no effect on a real signal.
    """

    def __init__(self, channels: int, modes: int, slices: int, *, channel_dim: int = 1) -> None:
        super().__init__()
        if channels < 1 or modes < 1 or slices < 1:
            raise InputError(
                f"A temporal convolution needs at least one channel, mode and slice, "
                f"not {channels}, {modes}, {slices}."
            )
        self.channels, self.modes, self.slices = channels, modes_kept(modes, slices), slices
        self.channel_dim = channel_dim
        shape = (self.modes, channels, channels)
        self.real = nn.Parameter(torch.empty(shape))
        self.imag = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw R uniform in [0, 1 / C^2), both parts."""
        for part in (self.real, self.imag):
            nn.init.uniform_(part, 0, 1 / self.channels**2, generator=generator)

    def forward(self, u: Tensor, slices: Slices | None = None) -> Tensor:
        """Return K u, shaped like u: (B * count, C, ...) or (B * count, ..., C).

        Raises:
            InputError: if the rows are not a whole number of samples, or a trained Nyquist mode
                meets another number of carriers.
        """
        slices = slices or Slices(self.slices)
        if u.shape[0] % slices.count:
            raise InputError(
                f"{u.shape[0]} rows are not a whole number of samples of {slices.count} slices."
            )
        if slices.carriers != self.slices and 2 * (self.modes - 1) == self.slices:
            raise InputError(
                f"These temporal weights use the Nyquist mode of {self.slices} slices, so they "
                f"cannot run on {slices.carriers}; train with fewer modes to change the number."
            )
        modes = modes_kept(self.modes, slices.carriers)
        # tensors made under a tracer are not real ones: they must not enter the cache
        bases = _bases if torch.compiler.is_compiling() else _cached_bases
        analysis, synthesis = bases(slices, modes, u.dtype, u.device)
        tokens = self.channel_dim not in (1, 1 - u.ndim)
        rows = u.reshape(-1, slices.count, *u.shape[1:])
        carriers = rows[:, : slices.carriers].flatten(2)  # (B, M, C * N)
        spectrum = analysis @ carriers  # (B, P, C * N)
        # (B, P, C, N), or (B, P, N, C) for tokens
        shape = (-1, self.channels) if tokens else (self.channels, -1)
        spectrum = spectrum.reshape(*spectrum.shape[:2], *shape)
        mixed = self._mix_tokens(spectrum, modes) if tokens else self._mix(spectrum, modes)
        return (synthesis @ mixed.flatten(2)).reshape(u.shape)

    def _harmonics(self, modes: int, dtype: torch.dtype) -> Tensor:
        """R_k as real matrices on stacked (real, imaginary) channels: (modes - 1, 2 C, 2 C)."""
        a, b = self.real[1:modes].to(dtype), self.imag[1:modes].to(dtype)
        return torch.cat([torch.cat([a, b], 2), torch.cat([-b, a], 2)], 1)

    def _mix(self, spectrum: Tensor, modes: int) -> Tensor:
        """(B, P, C, N) -> the same: one product of (C, C) and one of (2 C, 2 C) per harmonic."""
        constant = self.real[0].to(spectrum.dtype).T @ spectrum[:, 0]
        if modes == 1:
            return constant[:, None]
        b, _, c, n = spectrum.shape
        pairs = spectrum[:, 1:].reshape(b, modes - 1, 2 * c, n)
        pairs = self._harmonics(modes, spectrum.dtype).mT @ pairs
        return torch.cat([constant[:, None], pairs.reshape(b, 2 * (modes - 1), c, n)], 1)

    def _mix_tokens(self, spectrum: Tensor, modes: int) -> Tensor:
        """(B, P, N, C) -> the same."""
        return self._mix(spectrum.mT, modes).mT


class TemporalLayer(nn.Module):
    """u + LeakyReLU(K u): what is attached behind a site of the backbone.

    With zero weights it is the identity, to the last bit.
    """

    def __init__(self, channels: int, modes: int, slices: int, *, channel_dim: int = 1) -> None:
        super().__init__()
        self.conv = FourierTemporalConv(channels, modes, slices, channel_dim=channel_dim)
        self.activation = nn.LeakyReLU()

    def forward(self, u: Tensor, slices: Slices) -> Tensor:
        """(B * count, ...) -> the same shape."""
        mixed: Tensor = self.activation(self.conv(u, slices))
        return u + mixed
