"""Temporal convolution in Fourier space, in real arithmetic.

A feature u at one pixel and channel is a function of time known on M slices. The layer keeps its
lowest Fourier modes, mixes the channels of each mode with a learned complex matrix R_k and returns
to the slices:

    K u = F^-1 (R . F u),        layer(u) = u + LeakyReLU(K u)

(arXiv 2211.13449, section 4.2). It is computed as: project on the retained cosines and sines, mix
the channels by three real matrix products per mode, project back. No FFT and no complex tensor is
needed, so half precision, compilers and exporters all work.

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
    """Analysis (P, M) and synthesis (count, P) matrices; P = 1 for each mode without sine, else 3.

    A component is what one real (C, C) matrix acts on. The constant mode is one; so is the Nyquist
    mode, which has no sine (as in `torch.fft.irfft`). Of a harmonic with coefficient x + iy, which
    is multiplied by a + ib, they are x + y, x and y: from a (x + y), (b - a) x and (a + b) y follow
    real part (the first less the third) and imaginary part (the first plus the second), with three
    products instead of four (Gauss).
    """
    m = slices.carriers
    phases = torch.tensor([j / m for j in range(m)] + list(slices.queries), dtype=torch.float64)
    analysis: list[Tensor] = [torch.ones(m).double()]
    synthesis: list[Tensor] = [torch.ones(slices.count).double() / m]
    for k in range(1, modes):
        turn = 2 * math.pi * k * phases
        cosine, sine = turn.cos(), -turn.sin()
        x, y = cosine[:m], sine[:m]
        if 2 * k == m:
            analysis.append(x)
            synthesis.append(cosine / m)
        else:
            analysis += [x + y, x, y]
            synthesis += [2 / m * (cosine + sine), 2 / m * sine, -2 / m * cosine]
    return (
        torch.stack(analysis).to(dtype=dtype, device=device),
        torch.stack(synthesis, 1).to(dtype=dtype, device=device),
    )


_cached_bases = functools.lru_cache(maxsize=256)(_bases)


def _may_overwrite(x: Tensor) -> bool:
    """Whether a tensor that is done with can take the next result: memory that is fresh costs time.

    Autocast does not cast for such calls, transforms of `torch.func` do not allow them, and a
    compiler sees to its own memory.
    """
    kind = x.device.type
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind))
        or torch._C._are_functorch_transforms_active()
    )


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

    def forward(
        self, u: Tensor, slices: Slices | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Return K u, shaped like u: (B * count, C, ...) or (B * count, ..., C).

        With `last_only` it is returned at the last carrier alone: (B, C, ...) or (B, ..., C).

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
        if last_only:
            synthesis = synthesis[slices.carriers - 1 : slices.carriers]
        rows = u.reshape(-1, slices.count, *u.shape[1:])
        carriers = rows[:, : slices.carriers].flatten(2)  # (B, M, C * N)
        components = analysis @ carriers  # (B, P, C * N)
        matrices = self._matrices(modes, slices.carriers, u.dtype)  # (P, C_in, C_out)
        if self.channel_dim in (1, 1 - u.ndim):
            mixed = matrices.mT @ components.reshape(*components.shape[:2], self.channels, -1)
        else:
            mixed = components.reshape(*components.shape[:2], -1, self.channels) @ matrices
        reused = components if synthesis.shape == analysis.shape and _may_overwrite(u) else None
        made: Tensor = torch.matmul(synthesis, mixed.flatten(2), out=reused)
        return made.reshape(-1, *u.shape[1:])

    def _matrices(self, modes: int, carriers: int, dtype: torch.dtype) -> Tensor:
        """What each component's channels are mixed by: (P, C_in, C_out); see `_bases`."""
        a, b = self.real[:modes], self.imag[:modes]
        harmonics = [k for k in range(1, modes) if 2 * k != carriers]
        if _may_overwrite(a):
            count = modes + 2 * len(harmonics)
            made = a.new_empty((count, *a.shape[1:]), dtype=dtype)
            place = 0
            for k in range(modes):
                made[place].copy_(a[k])
                place += 1
                if k in harmonics:
                    torch.sub(b[k], a[k], out=made[place])
                    torch.add(b[k], a[k], out=made[place + 1])
                    place += 2
            return made
        # chosen from all, so that every parameter has a gradient, which launched training expects
        kept = [3 * k + part for k in range(modes) for part in range(3 if k in harmonics else 1)]
        return torch.stack([a, b - a, a + b], 1).flatten(0, 1)[kept].to(dtype)


class TemporalLayer(nn.Module):
    """u + LeakyReLU(K u): what is attached behind a site of the backbone.

    With zero weights it is the identity, to the last bit.
    """

    def __init__(self, channels: int, modes: int, slices: int, *, channel_dim: int = 1) -> None:
        super().__init__()
        self.conv = FourierTemporalConv(channels, modes, slices, channel_dim=channel_dim)
        self.activation = nn.LeakyReLU(inplace=True)

    def forward(self, u: Tensor, slices: Slices, *, last_only: bool = False) -> Tensor:
        """(B * count, ...) -> the same shape, or (B, ...) of the last carriers."""
        # in place: the activation's input is not needed again, not even by backward
        mixed: Tensor = self.activation(self.conv(u, slices, last_only=last_only))
        before = u[slices.carriers - 1 :: slices.count] if last_only else u
        if before.stride() == mixed.stride() and _may_overwrite(u):
            return mixed.add_(before)
        return before + mixed
