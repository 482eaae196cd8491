"""Denoisers: D(x_t, t) = E[x_0 | x_t] from a network of any prediction type.

One form serves them all (Karras et al., arXiv 2206.00364, eq. 7 and Table 1):

    D(x, t) = c_skip(t) x + c_out(t) F(c_in(t) x, c_noise(t))

| prediction_type    | F predicts           | c_skip   | c_out        | c_in |
|--------------------|----------------------|----------|--------------|------|
| epsilon            | eps                  | 1/alpha  | -sigma/alpha | 1    |
| v_prediction       | alpha eps - sigma x0 | alpha    | -sigma       | 1    |
| sample             | x0                   | 0        | 1            | 1    |
| edm                | (D - c_skip x)/c_out | d^2/s^2  | sigma d/s    | 1/s  |
| flow               | eps - x0             | 1        | -sigma       | 1    |
| sample_and_epsilon | D - alpha x          | alpha    | 1            | 1    |

with d = sigma_data and s = sqrt(sigma^2 + d^2). The names are diffusers' where it has one. The last
row is a network with twice the channels, x0 and then eps, which are blended by their accuracy,
D = sigma^2 x0 + alpha^2 (x - sigma eps)/alpha (Salimans & Ho, arXiv 2202.00512, section 4), so
F = sigma^2 x0 - alpha sigma eps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsno.diffusion.conditions import Condition
from dsno.diffusion.schedules import (
    BetaSchedule,
    EDMSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    schedule_from_config,
)
from dsno.support.errors import InputError, one_of

NetworkCall = Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
"""How to call a network: (network, c_in x, c_noise (batch,), condition) -> F.

The time comes in float32 also to a half-precision network: bfloat16 rounds 777.7 to 776."""


def call_plain(network: nn.Module, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
    """Call `network(x, c_noise, **condition)`: the convention of the user's own modules."""
    output: Tensor = network(x, c_noise.to(x.dtype), **condition)
    return output


@runtime_checkable
class DenoiserProtocol(Protocol):
    """What solvers, collection and evaluation need of a teacher."""

    schedule: NoiseSchedule
    sample_shape: tuple[int, ...]
    sigma_data: float

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None = None, /) -> Tensor:
        """Return D(x, t), shaped like x; t is a scalar or (batch,)."""
        ...


@dataclass(frozen=True)
class Coefficients:
    """c_skip, c_out and c_in at some times, float64, shaped like the times."""

    skip: Tensor
    out: Tensor
    into: Tensor


def _epsilon(alpha: Tensor, sigma: Tensor, _d: float) -> Coefficients:
    return Coefficients(1 / alpha, -sigma / alpha, torch.ones_like(alpha))


def _v(alpha: Tensor, sigma: Tensor, _d: float) -> Coefficients:
    return Coefficients(alpha, -sigma, torch.ones_like(alpha))


def _sample(alpha: Tensor, sigma: Tensor, _d: float) -> Coefficients:
    return Coefficients(torch.zeros_like(alpha), torch.ones_like(alpha), torch.ones_like(alpha))


def _edm(alpha: Tensor, sigma: Tensor, d: float) -> Coefficients:
    total = (sigma**2 + d**2).sqrt()
    return Coefficients(d**2 / total**2, sigma * d / total, 1 / total)


def _flow(alpha: Tensor, sigma: Tensor, _d: float) -> Coefficients:
    return Coefficients(torch.ones_like(alpha), -sigma, torch.ones_like(alpha))


def _sample_and_epsilon(alpha: Tensor, sigma: Tensor, _d: float) -> Coefficients:
    return Coefficients(alpha, torch.ones_like(alpha), torch.ones_like(alpha))


PREDICTION_TYPES: dict[str, Callable[[Tensor, Tensor, float], Coefficients]] = {
    "epsilon": _epsilon,
    "v_prediction": _v,
    "sample": _sample,
    "edm": _edm,
    "flow": _flow,
    "sample_and_epsilon": _sample_and_epsilon,
}

TIME_INPUTS = ("angle", "index", "edm", "time")


@dataclass(frozen=True)
class Preconditioning:
    """What a network's input and output mean: everything of a denoiser but the network.

    Args:
        schedule: the noise schedule it was trained with.
        prediction_type: what F predicts, one of `PREDICTION_TYPES`.
        sigma_data: standard deviation of the data; used by `edm`, 1 otherwise.
        time_input: how F gets the time (c_noise): `angle` (1000 atan2(sigma, alpha) 2/pi,
            the paper's), `index` (the discrete step 0 .. timesteps - 1), `edm` (log(sigma) / 4),
            `time` (1000 t, or a flow's `timesteps` t). The schedule's usual one if empty.

    Raises:
        InputError: for epsilon prediction on a schedule that ends at zero SNR, where x_0 cannot be
            recovered, or a prediction type or time input the schedule has no meaning for.
    """

    schedule: NoiseSchedule
    prediction_type: str
    sigma_data: float = 1.0
    time_input: str = ""

    def __post_init__(self) -> None:
        one_of(self.prediction_type, PREDICTION_TYPES, "prediction type")
        object.__setattr__(self, "time_input", self.time_input or _usual_time_input(self.schedule))
        one_of(self.time_input, TIME_INPUTS, "time input")
        _check(self.schedule, self.prediction_type, self.time_input)

    def coefficients(self, t: Tensor) -> Coefficients:
        """c_skip, c_out, c_in at times t, float64."""
        t = t.double()
        rule = PREDICTION_TYPES[self.prediction_type]
        return rule(self.schedule.alpha(t), self.schedule.sigma(t), self.sigma_data)

    def c_noise(self, t: Tensor) -> Tensor:
        """The network's time input at times t, float64."""
        t = t.double()
        if self.time_input == "angle":
            return self.schedule.angle(t) * (2000 / math.pi)
        if self.time_input == "index":
            assert isinstance(self.schedule, BetaSchedule)
            return t * (self.schedule.timesteps - 1)
        if self.time_input == "edm":
            return self.schedule.sigma(t).log() / 4
        if isinstance(self.schedule, RectifiedFlowSchedule):
            return self.schedule.timesteps * t
        return 1000 * t

    def to_config(self) -> dict[str, Any]:
        """Return a JSON-able description that `from_config` accepts."""
        return {
            "schedule": self.schedule.to_config(),
            "prediction_type": self.prediction_type,
            "sigma_data": self.sigma_data,
            "time_input": self.time_input,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preconditioning:
        """Build from `to_config`'s result."""
        return cls(**{**config, "schedule": schedule_from_config(config["schedule"])})


class Denoiser(nn.Module):
    """A network, its schedule and its prediction type: `denoiser(x_t, t, condition) -> x_0`.

    Args:
        network: the backbone F.
        schedule: the noise schedule F was trained with.
        prediction_type: what F predicts, one of `PREDICTION_TYPES`.
        sigma_data: standard deviation of the data; used by `edm`, 1 otherwise.
        time_input: how F gets the time, see `Preconditioning`; the schedule's usual way if empty.
        sample_shape: shape of one sample, without the batch: (3, 32, 32), (2,), ...
        call: how F is called; `call_plain` unless an adapter knows better.
        clip_sample: clip D to [-clip_sample, clip_sample], as some samplers do; None for no clip.
        dynamic_threshold: (quantile, largest): each sample is clipped to and divided by that
            quantile of |D|, kept between 1 and `largest` (Saharia et al., arXiv 2205.11487,
            section 2.3); None for none. Clipping and thresholds come after guidance.

    A network with twice the sample's channels is one with learned variances, whose second half is
    not used here (or, for `sample_and_epsilon`, the second prediction).

    Raises:
        InputError: as `Preconditioning`, and in use if the output has another number of channels.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        *,
        prediction_type: str,
        sample_shape: Sequence[int],
        sigma_data: float = 1.0,
        time_input: str = "",
        call: NetworkCall = call_plain,
        clip_sample: float | None = None,
        dynamic_threshold: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = Preconditioning(
            schedule, prediction_type, float(sigma_data), time_input
        )
        self.schedule = schedule
        self.sigma_data = float(sigma_data)
        self.sample_shape = tuple(sample_shape)
        self.call = call
        self.clip_sample = clip_sample
        self.dynamic_threshold = dynamic_threshold

    def network_output(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """F(c_in(t) x, c_noise(t)), run in the network's dtype, returned in x's."""
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        c_noise = self.preconditioning.c_noise(t).to(torch.promote_types(dtype, torch.float32))
        scaled = expand(self.preconditioning.coefficients(t).into, x) * x
        output = self.call(
            self.network,
            scaled.to(dtype),
            _of_each_row(c_noise, x),
            {k: v.to(dtype) if v.is_floating_point() else v for k, v in (condition or {}).items()},
        ).to(x.dtype)
        if self.preconditioning.prediction_type == "sample_and_epsilon":
            clean, noise = both_halves(output, x)
            alpha = expand(self.schedule.alpha(t.double()), x)
            sigma = expand(self.schedule.sigma(t.double()), x)
            return sigma**2 * clean - alpha * sigma * noise
        return first_channels(output, x)

    def unclipped(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """D(x, t) before it is clipped or thresholded, which comes after guidance."""
        c = self.preconditioning.coefficients(t)
        f = self.network_output(x, t, condition)
        return expand(c.skip, x) * x + expand(c.out, x) * f

    def clip(self, denoised: Tensor) -> Tensor:
        """Threshold and clip an estimate of x_0 as this denoiser does; otherwise leave it alone."""
        if self.dynamic_threshold is not None:
            quantile, largest = self.dynamic_threshold
            peak = denoised.flatten(1).abs().float().quantile(quantile, 1)
            peak = expand(peak.clamp(1, largest), denoised)  # `largest`, where that is below 1
            denoised = denoised.clamp(-peak, peak) / peak
        if self.clip_sample is not None:
            denoised = denoised.clamp(-self.clip_sample, self.clip_sample)
        return denoised

    @property
    def clips(self) -> bool:
        """Whether `clip` changes anything."""
        return self.clip_sample is not None or self.dynamic_threshold is not None

    def forward(
        self,
        x: Float[Tensor, "batch *shape"],
        t: Float[Tensor, "*times"],
        condition: Condition | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Return D(x, t). `t` is a scalar or (batch,); the result has x's dtype."""
        return self.clip(self.unclipped(x, t, condition))


def first_channels(output: Tensor, like: Tensor) -> Tensor:
    """The part of a network's output that has the sample's channels: all of it, or the first half.

    Raises:
        InputError: for any other number of channels.
    """
    if output.shape == like.shape:
        return output
    return both_halves(output, like)[0]


def both_halves(output: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of an output with twice the sample's channels.

    Raises:
        InputError: for another shape.
    """
    batch, channels, *size = like.shape
    if output.shape != (batch, 2 * channels, *size):
        raise InputError(
            f"Expected network output of the sample's shape {tuple(like.shape[1:])} or with twice "
            f"its channels, found {tuple(output.shape[1:])}."
        )
    first, second = output.chunk(2, dim=1)
    return first, second


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """Shape a scalar or (batch,) coefficient to multiply `like`, in its dtype and device.

    A scalar on the CPU stays there: it multiplies tensors anywhere, and a copy of it would make the
    host wait for a GPU.
    """
    if _is_of_host(coefficient):
        return coefficient.to(like.dtype)
    c = coefficient.to(device=like.device, dtype=like.dtype)
    return c if c.ndim == 0 else c.reshape(-1, *[1] * (like.ndim - 1))


def _is_of_host(value: Tensor) -> bool:
    return value.ndim == 0 and value.device.type == "cpu"


def _of_each_row(value: Tensor, like: Tensor) -> Tensor:
    """A scalar or (batch,) value as (batch,), on `like`'s device; as `expand`, without a copy."""
    if _is_of_host(value):
        return value.new_zeros(len(like), device=like.device) + value
    return value.to(like.device).expand(len(like))


def _usual_time_input(schedule: NoiseSchedule) -> str:
    if isinstance(schedule, BetaSchedule):
        return "index"
    if isinstance(schedule, EDMSchedule):
        return "edm"
    return "time" if isinstance(schedule, RectifiedFlowSchedule) else "angle"


def _check(schedule: NoiseSchedule, prediction_type: str, time_input: str) -> None:
    if (
        prediction_type == "epsilon"
        and float(schedule.alpha(torch.ones((), dtype=torch.float64))) < 1e-12
    ):
        raise InputError(
            "Epsilon prediction says nothing of x_0 where a schedule ends at zero SNR (0/0): a "
            "network there predicts v (v_prediction) or x_0 (sample), or has another schedule."
        )
    if prediction_type == "edm" and not isinstance(schedule, EDMSchedule):
        raise InputError(f"Prediction type 'edm' needs the 'edm' schedule, not {schedule.name!r}.")
    if prediction_type == "flow" and not isinstance(schedule, RectifiedFlowSchedule):
        raise InputError(f"Prediction type 'flow' needs 'rectified_flow', not {schedule.name!r}.")
    if prediction_type in ("v_prediction", "sample_and_epsilon") and isinstance(
        schedule, EDMSchedule | RectifiedFlowSchedule
    ):
        raise InputError(
            f"Prediction type {prediction_type!r} needs a variance-preserving schedule, "
            f"not {schedule.name!r}."
        )
    if time_input == "index" and not isinstance(schedule, BetaSchedule):
        raise InputError(f"Time input 'index' needs the 'betas' schedule, not {schedule.name!r}.")


def evaluations_per_call(denoiser: DenoiserProtocol) -> int:
    """Network evaluations that one call of the denoiser costs: 2 with guidance, else 1."""
    return int(getattr(denoiser, "evaluations", 1))


class CountingDenoiser:
    """Another denoiser with a count of its network evaluations per sample (NFE)."""

    def __init__(self, inner: DenoiserProtocol) -> None:
        self.inner = inner
        self.schedule = inner.schedule
        self.sample_shape = inner.sample_shape
        self.sigma_data = inner.sigma_data
        self.nfe = 0

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None = None, /) -> Tensor:
        """D(x, t), counted."""
        self.nfe += evaluations_per_call(self.inner)
        return self.inner(x, t, condition)


def to_device(denoiser: DenoiserProtocol, device: torch.device) -> DenoiserProtocol:
    """The denoiser on a device; itself if it has nothing to move (`Gaussian`, ...)."""
    move = getattr(denoiser, "to", None)
    return denoiser if move is None else cast(DenoiserProtocol, move(device))
