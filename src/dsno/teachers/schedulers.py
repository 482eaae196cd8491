"""What a diffusers scheduler's configuration says of the model it was saved with.

A scheduler mixes two things: the process the network was trained on (which we need) and how to
sample it (which `solve` decides anew). Every field belongs to one of the two below; a field in
neither list is refused rather than guessed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "sample"}


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
    """Read a `scheduler_config.json`.

    Raises:
        InputError: for a scheduler or a field that cannot be mapped.
    """
    name = str(config.get("_class_name", "")).removeprefix("Flax")
    values = {k: v for k, v in config.items() if not k.startswith("_")}
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
        raise InputError(f"The configuration of the {name} is damaged: {error}.") from None
    raise InputError(
        f"The scheduler {name or 'without a class name'} cannot be mapped to a noise schedule; "
        "save the model with a DDPM, DDIM, EDM or flow-match scheduler of the process it was "
        "trained on."
    )


def _take(values: dict[str, Any], key: str, default: Any) -> Any:
    value = values.pop(key, default)
    return default if value is None else value


def _positive(values: dict[str, Any], key: str, default: float) -> float:
    value = float(_take(values, key, default))
    if not 0 < value < math.inf:
        raise ValueError(f"{key} is {value}")
    return value


def _finish(name: str, values: Mapping[str, Any], neutral: Mapping[str, Any]) -> None:
    """Refuse what is left, unless it only concerns sampling or has its neutral value."""
    for key, value in values.items():
        if key in _SAMPLING_ONLY or (key in neutral and value in (neutral[key], None)):
            continue
        raise InputError(
            f"The scheduler's field {key} = {value!r} ({name}) cannot be mapped to a noise "
            "schedule; remove it from scheduler_config.json if it only concerns sampling."
        )


def _betas(name: str, values: dict[str, Any]) -> SchedulerSettings:
    kind = values.pop("prediction_type", None) or "epsilon"
    if not isinstance(kind, str) or kind not in _PREDICTIONS:
        raise InputError(
            f"The scheduler's prediction type {kind!r} ({name}) cannot be mapped; known are "
            "epsilon, v_prediction and sample."
        )
    schedule = BetaSchedule(
        beta_start=_take(values, "beta_start", 1e-4),
        beta_end=_take(values, "beta_end", 0.02),
        beta_schedule=_take(values, "beta_schedule", "linear"),
        timesteps=_take(values, "num_train_timesteps", 1000),
        zero_terminal_snr=bool(_take(values, "rescale_betas_zero_snr", False)),
        trained_betas=values.pop("trained_betas", None),
    )
    clips = "clip_sample" in values or name in ("DDPMScheduler", "DDIMScheduler")
    clip = _positive(values, "clip_sample_range", 1.0)
    clip_sample = clip if clips and _take(values, "clip_sample", True) else None
    ratio = min(_positive(values, "dynamic_thresholding_ratio", 0.995), 1.0)
    largest = _positive(values, "sample_max_value", 1.0)
    threshold = (ratio, largest) if _take(values, "thresholding", False) else None
    _finish(name, values, {"use_flow_sigmas": False, "timestep_type": "discrete"})
    if threshold is not None:
        clip_sample = None  # diffusers clips or thresholds, not both
    preconditioning = Preconditioning(checked(schedule), _PREDICTIONS[kind])
    return SchedulerSettings(preconditioning, clip_sample, threshold)


def _flow(name: str, values: dict[str, Any]) -> SchedulerSettings:
    # A shifted grid of steps is how to sample; the straight lines are the same.
    kind = _take(values, "prediction_type", "flow_prediction")
    if kind != "flow_prediction":
        raise InputError(f"The {name}'s prediction type {kind!r} on a flow cannot be mapped.")
    for key in ("beta_start", "beta_end", "beta_schedule", "trained_betas"):
        values.pop(key, None)  # of the same class's other use
    neutral = {
        "num_train_timesteps": 1000,
        "invert_sigmas": False,
        "use_flow_sigmas": True,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
    }
    _finish(name, values, neutral)
    return SchedulerSettings(Preconditioning(RectifiedFlowSchedule(), "flow"))


def _edm(name: str, values: dict[str, Any]) -> SchedulerSettings:
    defaults = EDMSchedule()
    schedule = dataclasses.replace(
        defaults,
        sigma_min=float(_take(values, "sigma_min", defaults.sigma_min)),
        sigma_max=float(_take(values, "sigma_max", defaults.sigma_max)),
        rho=float(_take(values, "rho", defaults.rho)),
    )
    sigma_data = _positive(values, "sigma_data", 0.5)
    kind = _take(values, "prediction_type", "epsilon")
    if kind != "epsilon":
        raise InputError(
            f"The {name}'s prediction type {kind!r} cannot be mapped; EDM's own (called epsilon "
            "there) is."
        )
    neutral = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
    values.pop("num_train_timesteps", None)
    _finish(name, values, neutral)
    return SchedulerSettings(Preconditioning(checked(schedule), "edm", sigma_data))
