"""The factors in an operator's formula for its states, at given times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.schedules import signal_and_noise, state_scale


class Coefficients(NamedTuple):
    """x(t) = of_noise(t) x_1 + of_clean(t) E, with E = c_skip x_1 + c_out F(c_in x_1, c_noise(t)).

    Attributes:
        c_noise: (slices,), the network's time input; at least single precision.
        sigma: (), sigma(1): x_1 is unit noise times it.
        c_in, c_skip, c_out: (), at t = 1.
        of_noise, of_clean: (slices,).
    """

    c_noise: Tensor
    sigma: Tensor
    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    of_noise: Tensor
    of_clean: Tensor

    def to(self, dtype: torch.dtype, device: torch.device) -> Coefficients:
        """Rounded to a network's precision, where it runs."""
        times = self.c_noise.to(device, torch.promote_types(dtype, torch.float32))
        return Coefficients(times, *(value.to(device, dtype) for value in self[1:]))


def coefficients_at(
    times: Tensor, preconditioning: Preconditioning, output: str, *, told: Tensor | None = None
) -> Coefficients:
    """The coefficients at times (slices,), float64, for an output of `DSNO`.

    The network is told the times `told`, (slices,); the same ones if None.
    """
    told = times if told is None else told
    one = torch.ones((), dtype=torch.float64)
    schedule = preconditioning.schedule
    c = preconditioning.coefficients(one)
    skip, out = c.skip, c.out
    if preconditioning.prediction_type == "epsilon":
        skip, out = 0 * one, one
    sigma_1 = schedule.sigma(one)
    alpha, sigma = signal_and_noise(schedule, times)
    if output == "state":
        scale = state_scale(alpha, sigma, preconditioning.sigma_data)
        factors = 0 * sigma, scale / preconditioning.sigma_data
    else:
        ratio = sigma / sigma_1
        factors = ratio, alpha - schedule.alpha(one) * ratio
    return Coefficients(preconditioning.c_noise(told), sigma_1, c.into, skip, out, *factors)


class TrainedCoefficients(nn.Module):
    """The coefficients at the trained times, held where the network runs and in its precision.

    They are buffers, so that a forward pass makes nothing on the CPU, which would keep compiled
    code from becoming a CUDA graph. They are not saved: the exact numbers, kept in float64, are
    rounded anew whenever the module is moved or cast, so that no cast loses precision for the next.

    Args:
        exact: in float64, on the CPU.
        like: a weight of the network, of its dtype and device.
    """

    def __init__(self, exact: Coefficients, like: Tensor) -> None:
        super().__init__()
        self.exact = exact
        for name, value in exact.to(like.dtype, like.device)._asdict().items():
            self.register_buffer(name, value, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What `to`, `double`, `cuda` and the like call."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # c_noise does not say the dtype: it stays float32 where the others are bfloat16
        moved = self.get_buffer("sigma")
        for name, value in self.exact.to(moved.dtype, moved.device)._asdict().items():
            setattr(self, name, value)
        return self

    def forward(self, dtype: torch.dtype, device: torch.device) -> Coefficients:
        """The coefficients; rounded in this call for another dtype or device than the weights'."""
        held = Coefficients(*(getattr(self, name) for name in Coefficients._fields))
        if (held.sigma.dtype, held.sigma.device) == (dtype, device):
            return held
        return self.exact.to(dtype, device)
