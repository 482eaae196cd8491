r"""Noise schedules.

Notation, used through the whole package. Time ``t`` runs over [0, 1]: 1 is noise, 0 is data.

    x_t = alpha(t) x_0 + sigma(t) eps,      eps ~ N(0, I)
    log_snr(t) = 2 log(alpha(t) / sigma(t))
    angle(t) = atan2(sigma(t), alpha(t))

At t = 0 a schedule has its own smallest sigma (4.5e-5 for `CosineSchedule`, 0.01 for DDPM's betas,
0.002 for EDM, 0 for rectified flow). The solvers and the operator take the last step to sigma = 0,
alpha = 1, so a state "at t = 0" is a clean sample.

Every method is elementwise, takes a floating tensor of any shape and returns its dtype.

Sources: Kingma et al., arXiv 2107.00630 (log-SNR); Zheng et al., arXiv 2211.13449, section 2 and
appendix (the schedule of DSNO); Karras et al., arXiv 2206.00364, Table 1 (EDM).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from dsno.support.errors import InputError, closest, one_of


class NoiseSchedule(ABC):
    """The marginals of a diffusion process: `alpha`, `sigma`, `log_snr` and its inverse."""

    name: ClassVar[str]

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale at time t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale at time t."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """2 log(alpha / sigma), in a closed form that does not cancel in float32."""

    @abstractmethod
    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time with this log-SNR, clamped to [0, 1]."""

    def angle(self, t: Tensor) -> Tensor:
        """atan2(sigma, alpha), in [0, pi/2]."""
        return torch.atan2(self.sigma(t), self.alpha(t))

    def to_config(self) -> dict[str, Any]:
        """Return a JSON-able description that `schedule_from_config` accepts."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **values}


class _Angular(NoiseSchedule):
    """Variance preserving: alpha = cos(angle), sigma = sin(angle).

    Both the angle and its complement are evaluated, each without cancellation, so that neither end
    of the schedule loses digits.
    """

    @abstractmethod
    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The angle and pi/2 - angle."""

    @override
    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(self._angles(t)[1])

    @override
    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._angles(t)[0])

    @override
    def log_snr(self, t: Tensor) -> Tensor:
        angle, complement = self._angles(t)
        return 2 * (torch.sin(complement).log() - torch.sin(angle).log())

    @override
    def angle(self, t: Tensor) -> Tensor:
        return self._angles(t)[0]


@dataclass(frozen=True)
class CosineSchedule(_Angular):
    """Cosine in log-SNR: log_snr(t) = -2 log tan(a t + b). The paper's schedule.

    Source: arXiv 2211.13449, appendix; arXiv 2202.00512.
    """

    name: ClassVar[str] = "cosine"
    log_snr_min: float = -20.0
    log_snr_max: float = 20.0

    def __post_init__(self) -> None:
        if not self.log_snr_min < self.log_snr_max:
            raise InputError(
                f"A cosine schedule needs log_snr_min < log_snr_max, not "
                f"{self.log_snr_min} and {self.log_snr_max}."
            )

    @property
    def _ends(self) -> tuple[float, float]:
        """The angle at t = 0 and the complement of the angle at t = 1."""
        return math.atan(math.exp(-self.log_snr_max / 2)), math.atan(math.exp(self.log_snr_min / 2))

    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self._ends
        span = math.pi / 2 - last - first
        return span * t + first, span * (1 - t) + last

    @override
    def time_of(self, log_snr: Tensor) -> Tensor:
        first, last = self._ends
        angle = torch.atan(torch.exp(-log_snr / 2))
        return ((angle - first) / (math.pi / 2 - last - first)).clamp(0, 1)


MAX_TIMESTEPS = 1_000_000
"""Of a chain of betas, whose tables are kept in memory."""
BETA_SHAPES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@dataclass(frozen=True)
class BetaSchedule(_Angular):
    """A discrete chain of betas made continuous, as in DDPM and diffusers' schedulers.

    Discrete step k = 0 .. timesteps - 1 lies at t = k / (timesteps - 1); between two steps the
    angle is interpolated linearly, which is finite also for a chain that ends at zero SNR.

    Args:
        beta_start: first beta.
        beta_end: last beta.
        beta_schedule: shape, one of `BETA_SHAPES` (diffusers' names).
        timesteps: length of the chain.
        zero_terminal_snr: rescale so that the last step is pure noise (arXiv 2305.08891).
        trained_betas: the betas themselves; overrides the four above.

    Source: Ho et al., arXiv 2006.11239, eq. 4.
    """

    name: ClassVar[str] = "betas"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    timesteps: int = 1000
    zero_terminal_snr: bool = False
    trained_betas: Sequence[float] | None = None

    def __post_init__(self) -> None:
        one_of(self.beta_schedule, BETA_SHAPES, "beta schedule")
        if self.trained_betas is not None:
            object.__setattr__(self, "trained_betas", tuple(self.trained_betas))
            object.__setattr__(self, "timesteps", len(self.trained_betas or ()))
        if self.timesteps < 2:
            raise InputError("A beta schedule needs at least 2 timesteps.")
        if self.timesteps > MAX_TIMESTEPS:
            raise InputError(
                f"A beta schedule has at most {MAX_TIMESTEPS:,} timesteps, not {self.timesteps:,}."
            )
        betas = self._betas()
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise InputError("The betas of a schedule must lie strictly between 0 and 1.")

    def _betas(self) -> Tensor:
        n, dtype = self.timesteps, torch.float64
        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas, dtype=dtype)
        if self.beta_schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, n, dtype=dtype)
        if self.beta_schedule == "scaled_linear":
            return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, n, dtype=dtype) ** 2
        edges = torch.arange(n + 1, dtype=dtype) / n
        bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2  # arXiv 2102.09672, eq. 17
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)

    @functools.cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """Angle and complement at every discrete step, float64."""
        alpha = torch.cumprod(1 - self._betas(), dim=0).sqrt()
        if self.zero_terminal_snr:
            alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        sigma = (1 - alpha**2).sqrt()
        return torch.atan2(sigma, alpha), torch.atan2(alpha, sigma)

    @functools.cached_property
    def _copies(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`_tables`, copied to a device once: a copy makes the host wait for it."""
        if device not in self._copies:
            angle, complement = self._tables
            self._copies[device] = angle.to(device), complement.to(device)
        return self._copies[device]

    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor]:
        index = t.double() * (self.timesteps - 1)
        low = index.floor().clamp(0, self.timesteps - 2).long()
        fraction = index - low
        angle, complement = self._tables_on(t.device)
        return (
            torch.lerp(angle[low], angle[low + 1], fraction).to(t.dtype),
            torch.lerp(complement[low], complement[low + 1], fraction).to(t.dtype),
        )

    @override
    def time_of(self, log_snr: Tensor) -> Tensor:
        table = self._tables_on(log_snr.device)[0]
        angle = torch.atan(torch.exp(-log_snr.double() / 2))
        high = torch.searchsorted(table, angle.contiguous()).clamp(1, self.timesteps - 1)
        fraction = (angle - table[high - 1]) / (table[high] - table[high - 1])
        return ((high - 1 + fraction) / (self.timesteps - 1)).clamp(0, 1).to(log_snr.dtype)


@dataclass(frozen=True)
class EDMSchedule(NoiseSchedule):
    """Variance exploding: alpha = 1, sigma^(1/rho) linear in t.

    Source: Karras et al., arXiv 2206.00364, eq. 5 with its continuous index as t.
    """

    name: ClassVar[str] = "edm"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max or self.rho <= 0:
            raise InputError("An EDM schedule needs 0 < sigma_min < sigma_max and rho > 0.")

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    @override
    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    @override
    def sigma(self, t: Tensor) -> Tensor:
        low, high = self._ends
        return (low + t * (high - low)) ** self.rho

    @override
    def log_snr(self, t: Tensor) -> Tensor:
        low, high = self._ends
        return -2 * self.rho * (low + t * (high - low)).log()

    @override
    def time_of(self, log_snr: Tensor) -> Tensor:
        low, high = self._ends
        return ((torch.exp(-log_snr / (2 * self.rho)) - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class RectifiedFlowSchedule(NoiseSchedule):
    """Straight lines: alpha = 1 - t, sigma = t. Source: Liu et al., arXiv 2209.03003.

    Args:
        timesteps: what the network counts t = 1 as (diffusers' `num_train_timesteps`).
    """

    name: ClassVar[str] = "rectified_flow"
    timesteps: float = 1000.0

    def __post_init__(self) -> None:
        if not 0 < self.timesteps <= MAX_TIMESTEPS:
            raise InputError(
                f"A flow has more than 0 and at most {MAX_TIMESTEPS:,} timesteps, not "
                f"{self.timesteps:,}."
            )

    @override
    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    @override
    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    @override
    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - t.log())

    @override
    def time_of(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


ScheduleType = TypeVar("ScheduleType", bound=NoiseSchedule)

SCHEDULES: dict[str, type[NoiseSchedule]] = {
    known.name: known
    for known in (CosineSchedule, BetaSchedule, EDMSchedule, RectifiedFlowSchedule)
}


def schedule_from_config(config: Mapping[str, Any]) -> NoiseSchedule:
    """Build a schedule from `{"name": ..., **fields}`.

    Raises:
        InputError: for an unknown name or field; the closest ones are named.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"A noise schedule is given by its name and fields, not by {config!r}.")
    values = dict(config)
    schedule = SCHEDULES[one_of(values.pop("name", ""), SCHEDULES, "noise schedule")]
    known = {f.name for f in dataclasses.fields(schedule)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise InputError(
                f"Schedule {schedule.name!r} has no field {key!r}: {closest(key, known)}"
            )
    try:
        return checked(schedule(**values))
    except InputError:
        raise
    except Exception as error:  # whatever values of another type make of it
        raise InputError(
            f"Schedule {schedule.name!r} cannot be built from {_short(values)}: {error}."
        ) from None


def checked(schedule: ScheduleType) -> ScheduleType:
    """A schedule with numbers from a file, once they are known to make one.

    Raises:
        InputError: if alpha or sigma is no number somewhere, or the noise does not grow.
    """
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    try:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    except Exception as error:  # overflow, or values of another type
        raise InputError(f"Schedule {schedule.name!r} cannot be evaluated: {error}.") from None
    numbers = bool((alpha.isfinite() & sigma.isfinite() & (alpha >= 0) & (sigma >= 0)).all())
    # sigma / alpha grows, written without a division by the 0 that alpha may end at
    if not numbers or bool((alpha[1:] * sigma[:-1] >= alpha[:-1] * sigma[1:]).any()):
        raise InputError(
            f"Schedule {schedule.name!r} does not go from less noise to more with the values given "
            f"({_short(schedule)}); correct them."
        )
    return schedule


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def signal_and_noise(schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma in float64, with t = 0 standing for the clean end, (1, 0)."""
    t = t.double()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return torch.where(t == 0, 1.0, alpha), torch.where(t == 0, 0.0, sigma)


def state_scale(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """sqrt(alpha^2 sigma_data^2 + sigma^2): the standard deviation of x_t for zero-mean data."""
    return (alpha**2 * sigma_data**2 + sigma**2).sqrt()
