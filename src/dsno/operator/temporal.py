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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsno.support.errors import InputError

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class SliceLayout:
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


def harmonics(modes: int, carriers: int) -> int:
    """How many of the modes kept have a sine: all but the constant and the Nyquist mode."""
    return modes - 1 - (2 * (modes - 1) == carriers)


def constant_when_compiled(function: Function) -> Function:
    """Make compiled code hold what `function` returns as a constant.

    It does what `torch.compiler.assume_constant_result` does, and without importing the compiler,
    which takes seconds that every command would pay for.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


# A cache and not buffers of each layer: their dtype is the input's, which autocast chooses call by
# call; queries and other numbers of slices need other matrices; and all layers of a network share
# one pair.
@constant_when_compiled
@torch.inference_mode(False)  # a tensor made in inference mode could not be used in training
def _bases(
    m: int, queries: tuple[float, ...], modes: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Analysis (P, M) and synthesis (count, P) matrices; P is `modes` and 2 for each harmonic.

    A component is what one real (C, C) matrix acts on. The constant mode is one; so is the Nyquist
    mode, which has no sine (as in `torch.fft.irfft`). Of a harmonic with coefficient x + iy, which
    is multiplied by a + ib, they are x + y, x and y: from a (x + y), (b - a) x and (a + b) y follow
    real part (the first less the third) and imaginary part (the first plus the second), with three
    products instead of four (Gauss). They are in the order of `FourierTemporalConv._matrices`: the
    first of every mode, then the second and the third of all harmonics.
    """
    phases = torch.tensor([*(j / m for j in range(m)), *queries], dtype=torch.float64)
    turns = 2 * math.pi * torch.outer(torch.arange(modes).double(), phases)
    cosine, sine = turns.cos(), -turns.sin()  # (modes, count)
    waves = slice(1, 1 + harmonics(modes, m))
    x, y = cosine[:, :m].clone(), sine[waves, :m]
    wave_x = x[waves].clone()
    x[waves] += y
    back = cosine / m
    back[waves] = 2 / m * (cosine + sine)[waves]
    analysis = torch.cat([x, wave_x, y])
    synthesis = torch.cat([back, 2 / m * sine[waves], -2 / m * cosine[waves]]).T
    return (
        analysis.to(dtype=dtype, device=device),
        synthesis.contiguous().to(dtype=dtype, device=device),
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
        for kernel in (self.real, self.imag):
            nn.init.uniform_(kernel, 0, 1 / self.channels**2, generator=generator)

    def forward(
        self, u: Tensor, layout: SliceLayout | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Return K u, shaped like u: (B * count, C, ...) or (B * count, ..., C).

        With `last_only` it is returned at the last carrier alone: (B, C, ...) or (B, ..., C).

        Raises:
            InputError: if the rows are not a whole number of samples, or a trained Nyquist mode
                meets another number of carriers.
        """
        layout = layout or SliceLayout(self.slices)
        if u.shape[0] % layout.count:
            raise InputError(
                f"{u.shape[0]} rows are not a whole number of samples of {layout.count} slices."
            )
        if layout.carriers != self.slices and 2 * (self.modes - 1) == self.slices:
            raise InputError(
                f"These temporal weights use the Nyquist mode of {self.slices} slices, so they "
                f"cannot run on {layout.carriers}; train with fewer modes to change the number."
            )
        modes = modes_kept(self.modes, layout.carriers)
        # tensors made under a tracer are not real ones: they must not enter the cache
        bases = _bases if torch.compiler.is_compiling() else _cached_bases
        analysis, synthesis = bases(layout.carriers, layout.queries, modes, u.dtype, u.device)
        if last_only:
            synthesis = synthesis[layout.carriers - 1 : layout.carriers]
        rows = u.reshape(-1, layout.count, *u.shape[1:])
        carriers = rows[:, : layout.carriers].flatten(2)  # (B, M, C * N)
        components = analysis @ carriers  # (B, P, C * N)
        is_last = self.channel_dim not in (1, 1 - u.ndim)
        shape = (-1, self.channels) if is_last else (self.channels, -1)
        matrices = self._matrices(modes, layout.carriers, u.dtype)  # (P, C_in, C_out)
        mixed = _mix(
            components.reshape(*components.shape[:2], *shape), matrices, is_last=is_last
        ).reshape(components.shape)
        reused = components if synthesis.shape == analysis.shape and _may_overwrite(u) else None
        output: Tensor = torch.matmul(synthesis, mixed, out=reused)
        return output.reshape(-1, *u.shape[1:])

    def _matrices(self, modes: int, carriers: int, dtype: torch.dtype) -> Tensor:
        """What each component's channels are mixed by: (P, C_in, C_out); see `_bases`."""
        waves = slice(1, 1 + harmonics(modes, carriers))
        a, b = self.real[waves], self.imag[waves]
        return torch.cat([self.real[:modes], b - a, a + b]).to(dtype)


def _mix(components: Tensor, matrices: Tensor, *, is_last: bool) -> Tensor:
    """Multiply the channels of each component, (B, P, C, N) or (B, P, N, C), by its matrix.

    A batched product repeats the matrices for every sample. Where they are larger than what they
    act on, the samples become rows of one product for each matrix, which copies that instead.
    """
    batch, pixels = components.shape[0], components.shape[2 if is_last else 3]
    if batch > 1 and pixels < matrices.shape[1]:
        equation = "bpni,pio->bpno" if is_last else "bpin,pio->bpon"
        return torch.einsum(equation, components, matrices)
    return components @ matrices if is_last else matrices.mT @ components


class TemporalLayer(nn.Module):
    """u + LeakyReLU(K u): what is attached behind a site of the backbone.

    With zero weights it is the identity, to the last bit.
    """

    def __init__(self, channels: int, modes: int, slices: int, *, channel_dim: int = 1) -> None:
        super().__init__()
        self.conv = FourierTemporalConv(channels, modes, slices, channel_dim=channel_dim)

    def forward(self, u: Tensor, layout: SliceLayout, *, last_only: bool = False) -> Tensor:
        """(B * count, ...) -> the same shape, or (B, ...) of the last carriers."""
        # in place: the activation's input is not needed again, not even by backward
        mixed = functional.leaky_relu_(self.conv(u, layout, last_only=last_only))
        before = u[layout.carriers - 1 :: layout.count] if last_only else u
        if before.stride() == mixed.stride() and _may_overwrite(u):
            return mixed.add_(before)
        return before + mixed
