"""What a diffusers scheduler's configuration says of the model it was saved with.

A scheduler mixes two things: the process the network was trained on (which we need) and how to
sample it (which `solve` decides anew). A field known to be neither is refused rather than guessed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsno.backbones.safe_loading import first_line
from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.schedules import BetaSchedule, EDMSchedule, RectifiedFlowSchedule, checked
from dsno.support.errors import InputError

_BETAS = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "SASolverScheduler",
)
_FLOW = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
)
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")

# How to sample: `solve` has its own steps, spacing, order and end.
_SAMPLING_ONLY = frozenset(
    {
        *("algorithm_type", "base_image_seq_len", "base_shift", "corrector_order"),
        *("denoise_final", "disable_corrector", "euler_at_final", "final_sigmas_type"),
        *("flow_shift", "interpolation_type", "lambda_min_clipped", "lower_order_final"),
        *("max_image_seq_len", "max_shift", "noise_sampler_seed", "predict_x0", "predictor_order"),
        *("set_alpha_to_one", "shift", "shift_terminal", "sigma_max", "sigma_min"),
        *("sigma_schedule", "skip_prk_steps", "solver_order", "solver_p", "solver_type"),
        *("steps_offset", "stochastic_sampling", "tau_func", "tensor_format", "time_shift_type"),
        *("timestep_spacing", "use_beta_sigmas", "use_dynamic_shifting"),
        *("use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas", "variance_type"),
    }
)
_OF_BETAS_ONLY = (
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Which classes read `clip_sample`, which of them clip without it, and which read `thresholding`.
_CLIP_UNLESS_SAID = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
)
_MAY_CLIP = (*_CLIP_UNLESS_SAID, "HeunDiscreteScheduler")
_MAY_THRESHOLD = (
    *_CLIP_UNLESS_SAID,
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
    "EDMDPMSolverMultistepScheduler",
)
# beta_start and beta_end where the configuration has none, by the scheduler's class.
_PIXEL_BETAS, _LATENT_BETAS = (1e-4, 0.02), (0.00085, 0.012)
_OF_LATENTS = (
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
)
CLIPPING = (
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
)
"""Fields of a scheduler that say how its sampler clips."""
STATE_IT = "say what the network was trained on with prediction_type=... schedule.name=..."


@dataclass(frozen=True)
class SchedulerSettings:
    """What the scheduler says: the preconditioning, and how D is clipped.

    Attributes:
        preconditioning: schedule, prediction type, time input.
        clip_sample: see `Denoiser`.
        dynamic_threshold: see `Denoiser`.
    """

    preconditioning: Preconditioning
    clip_sample: float | None = None
    dynamic_threshold: tuple[float, float] | None = None


def scheduler_settings(config: Mapping[str, Any]) -> SchedulerSettings:
    """Read a `scheduler_config.json`. A field that is null counts as one that is not there.

    Raises:
        InputError: for a scheduler or a field that cannot be mapped.
    """
    name, values = _name_and_values(config)
    try:
        if name in _FLOW or (name in _BETAS and values.get("use_flow_sigmas")):
            return _flow(name, values)
        if name in _EDM:
            return _edm(name, values)
        if name in _BETAS:
            return _betas(name, values)
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise InputError(
            f"The configuration of the {name} is damaged ({first_line(error)}); correct a field "
            f"with scheduler.KEY=VALUE, or {STATE_IT}."
        ) from None
    raise InputError(
        f"The scheduler {name or 'without a class name'} cannot be mapped to a noise schedule; "
        f"{STATE_IT}."
    )


def scheduler_sigma_data(config: Mapping[str, Any]) -> float | None:
    """The standard deviation of the data that an EDM scheduler's configuration states.

    Returns:
        None for another scheduler, or none.

    Raises:
        InputError: if the field is damaged.
    """
    try:
        name, values = _name_and_values(config)
        return _positive(values, "sigma_data", 0.5) if name in _EDM else None
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The scheduler's sigma_data is damaged ({first_line(error)}); correct it with "
            "sigma_data=VALUE."
        ) from None


def scheduler_clipping(
    config: Mapping[str, Any],
) -> tuple[float | None, tuple[float, float] | None]:
    """What a scheduler's configuration says of clipping, if nothing else of it counts.

    Returns:
        `clip_sample` and `dynamic_threshold` of a `Denoiser`.

    Raises:
        InputError: if a field of it is damaged.
    """
    try:
        return _clipping(*_name_and_values(config))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The scheduler's clipping is damaged ({first_line(error)}); correct the field with "
            "scheduler.KEY=VALUE."
        ) from None


def _name_and_values(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    name = str(config.get("_class_name", "")).removeprefix("Flax")
    kept = {k: v for k, v in config.items() if not k.startswith("_")}
    # As in diffusers null turns clipping off where the default is on.
    return name, {k: v for k, v in kept.items() if v is not None or k == "clip_sample"}


def _positive(values: dict[str, Any], key: str, default: float) -> float:
    value = float(values.pop(key, default))
    if not 0 < value < math.inf:
        raise ValueError(f"{key} is {value}")
    return value


def _clipping(name: str, values: dict[str, Any]) -> tuple[float | None, tuple[float, float] | None]:
    """Take the fields of clipping; each counts if the scheduler's class has it."""
    limit = _positive(values, "clip_sample_range", 1.0)
    ratio = min(_positive(values, "dynamic_thresholding_ratio", 0.995), 1.0)
    largest = _positive(values, "sample_max_value", 1.0)
    clips = values.pop("clip_sample", name in _CLIP_UNLESS_SAID)
    thresholds = values.pop("thresholding", False)
    is_foreign = name not in (*_BETAS, *_FLOW, *_EDM)
    if thresholds and (is_foreign or name in _MAY_THRESHOLD):
        return None, (ratio, largest)  # diffusers clips or thresholds, not both
    return (limit if clips and (is_foreign or name in _MAY_CLIP) else None), None


def _finish(name: str, values: Mapping[str, Any], neutral: Mapping[str, Any]) -> None:
    """Refuse what is left, unless it only concerns sampling or has its neutral value.

    Raises:
        InputError: for another value of a field in `neutral`, which changes what the network
            computes, or for a field that nothing is known of.
    """
    for key, value in values.items():
        if key in _SAMPLING_ONLY or (key in neutral and value == neutral[key]):
            continue
        field = f"The scheduler's field {key} = {value!r} ({name})"
        if key in neutral:
            raise InputError(
                f"{field} means a network that is called in another way, which is not supported; "
                "write an adapter that calls it (see docs/teachers.md)."
            )
        raise InputError(
            f"{field} is not known; if it only concerns sampling, leave it out with "
            f"scheduler.{key}=null, else {STATE_IT}."
        )


def _betas(name: str, values: dict[str, Any]) -> SchedulerSettings:
    predicted = values.pop("prediction_type", "epsilon")
    if predicted not in _PREDICTIONS:
        raise InputError(
            f"The scheduler's prediction type {predicted!r} ({name}) is not known; give "
            f"prediction_type={'|'.join(_PREDICTIONS)}."
        )
    start, end = _LATENT_BETAS if name in _OF_LATENTS else _PIXEL_BETAS
    schedule = BetaSchedule(
        beta_start=values.pop("beta_start", start),
        beta_end=values.pop("beta_end", end),
        beta_schedule=values.pop("beta_schedule", "linear"),
        timesteps=values.pop("num_train_timesteps", 1000),
        zero_terminal_snr=bool(values.pop("rescale_betas_zero_snr", False)),
        trained_betas=values.pop("trained_betas", None),
    )
    clipping = _clipping(name, values)
    _finish(name, values, {"use_flow_sigmas": False, "timestep_type": "discrete"})
    return SchedulerSettings(Preconditioning(checked(schedule), predicted), *clipping)


def _flow(name: str, values: dict[str, Any]) -> SchedulerSettings:
    # A shifted grid of steps is how to sample; the straight lines are the same.
    predicted = values.pop("prediction_type", "flow_prediction")
    if predicted != "flow_prediction":
        raise InputError(
            f"The {name}'s prediction type {predicted!r} on a flow is not known; {STATE_IT}."
        )
    for key in _OF_BETAS_ONLY:
        values.pop(key, None)  # of the same class's other use
    schedule = RectifiedFlowSchedule(values.pop("num_train_timesteps", 1000))
    clipping = _clipping(name, values)
    _finish(name, values, {"invert_sigmas": False, "use_flow_sigmas": True})
    return SchedulerSettings(Preconditioning(checked(schedule), "flow"), *clipping)


def _edm(name: str, values: dict[str, Any]) -> SchedulerSettings:
    defaults = EDMSchedule()
    schedule = dataclasses.replace(
        defaults,
        sigma_min=float(values.pop("sigma_min", defaults.sigma_min)),
        sigma_max=float(values.pop("sigma_max", defaults.sigma_max)),
        rho=float(values.pop("rho", defaults.rho)),
    )
    sigma_data = _positive(values, "sigma_data", 0.5)
    predicted = values.pop("prediction_type", "epsilon")
    if predicted != "epsilon":
        raise InputError(
            f"The {name}'s prediction type {predicted!r} is not known, only EDM's own (called "
            f"epsilon there); {STATE_IT}."
        )
    values.pop("num_train_timesteps", None)
    clipping = _clipping(name, values)
    _finish(name, values, {})
    return SchedulerSettings(Preconditioning(checked(schedule), "edm", sigma_data), *clipping)
