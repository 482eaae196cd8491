"""What a diffusers scheduler says, against what that scheduler itself computes."""

from __future__ import annotations

import inspect
import json
from typing import Any

import diffusers
import pytest
import torch
from tests.makers import seeded
from torch import Tensor, nn

from dsno.diffusion.denoisers import Denoiser
from dsno.support.errors import InputError
from dsno.teachers.schedulers import (
    _BETAS,
    _EDM,
    _FLOW,
    SchedulerSettings,
    scheduler_settings,
)

# what diffusers' schedulers do with NumPy
pytestmark = pytest.mark.filterwarnings("ignore:.*__array.*:DeprecationWarning")


def saved(scheduler: Any) -> SchedulerSettings:
    """What a scheduler's saved configuration is read as."""
    return scheduler_settings(json.loads(scheduler.to_json_string()))


class Fixed(nn.Module):
    """A network that gives the same output whatever it is asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.told = c_noise
        return self.output


def denoised(
    meaning: SchedulerSettings, x: Tensor, output: Tensor, t: float
) -> tuple[Tensor, float]:
    """D(x, t) of a network with that output, and what the network was told of the time."""
    p = meaning.preconditioning
    network = Fixed(output)
    denoiser = Denoiser(
        network,
        p.schedule,
        prediction_type=p.prediction_type,
        sample_shape=tuple(x.shape[1:]),
        sigma_data=p.sigma_data,
        time_input=p.time_input,
        clip_sample=meaning.clip_sample,
        dynamic_threshold=meaning.dynamic_threshold,
    )
    return denoiser(x, torch.tensor(t, dtype=torch.float64)), float(network.told[0])


@pytest.mark.parametrize("step", [0, 37, 99])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_sample": False},
        {"clip_sample_range": 1.7},
        {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 3.0},
        {"thresholding": True, "clip_sample_range": 0.5, "sample_max_value": 3.0},
        {"thresholding": True, "sample_max_value": 0.5},
        {"trained_betas": [0.001 * i for i in range(1, 101)]},
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "clip_sample": False,
        },
    ],
)
@pytest.mark.parametrize("kind", [diffusers.DDPMScheduler, diffusers.DDIMScheduler])
def test_the_denoised_estimate_is_the_schedulers_own(
    kind: Any, options: dict[str, Any], step: int
) -> None:
    scheduler = kind(num_train_timesteps=100, **options)
    scheduler.set_timesteps(100)
    x, output = seeded((2, 3, 4, 4)), seeded((2, 3, 4, 4), 1)
    expected = scheduler.step(output, step, x).pred_original_sample
    got, told = denoised(saved(scheduler), x, output, step / 99)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert told == pytest.approx(step)


@pytest.mark.parametrize(
    "kind", [diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler]
)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_an_edm_scheduler_is_its_preconditioning(kind: Any, t: float) -> None:
    scheduler = kind(sigma_max=60.0, sigma_data=0.7)
    meaning = saved(scheduler)
    sigma = float(meaning.preconditioning.schedule.sigma(torch.tensor(t, dtype=torch.float64)))
    assert {0.0: 0.002, 1.0: 60.0}.get(t, sigma) == pytest.approx(sigma)
    x, output = seeded((2, 3, 4, 4)), seeded((2, 3, 4, 4), 1)
    expected = scheduler.precondition_outputs(x, output, sigma)
    got, told = denoised(meaning, x, output, t)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert told == pytest.approx(float(scheduler.precondition_noise(sigma)))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_a_flow_scheduler_is_a_straight_line_however_its_steps_are_shifted(
    shift: float, t: float
) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    x0, noise = seeded((2, 3, 4, 4)), seeded((2, 3, 4, 4), 1)
    scheduler.set_timesteps(sigmas=[max(t, 1e-3)])
    x = scheduler.scale_noise(x0, scheduler.timesteps[:1].repeat(2), noise)
    sigma = float(scheduler.sigmas[0])
    meaning = saved(scheduler)
    got, told = denoised(meaning, x, noise - x0, sigma)
    torch.testing.assert_close(got, x0, rtol=1e-5, atol=1e-5)
    assert told == pytest.approx(float(scheduler.timesteps[0]), rel=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        diffusers.PNDMScheduler,
        diffusers.LMSDiscreteScheduler,
        diffusers.EulerDiscreteScheduler,
        diffusers.EulerAncestralDiscreteScheduler,
        diffusers.HeunDiscreteScheduler,
        diffusers.DPMSolverMultistepScheduler,
        diffusers.DPMSolverSinglestepScheduler,
        diffusers.UniPCMultistepScheduler,
        diffusers.DEISMultistepScheduler,
        diffusers.KDPM2DiscreteScheduler,
    ],
)
def test_samplers_of_one_process_mean_the_same_process(kind: Any) -> None:
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    meaning = saved(kind(**options))
    twin = saved(diffusers.DDIMScheduler(clip_sample=False, **options))
    assert meaning == twin


def test_a_sampler_used_for_flows_is_a_flow() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    flow = saved(diffusers.FlowMatchEulerDiscreteScheduler())
    assert saved(scheduler) == flow
    thresholding = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        thresholding=True,
        dynamic_thresholding_ratio=0.9,
        sample_max_value=2.0,
    )
    assert saved(thresholding).dynamic_threshold == (0.9, 2.0)


@pytest.mark.parametrize("count", [1, 100, 1000])
def test_a_flow_counts_the_time_as_its_scheduler_does(count: int) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=count)
    scheduler.set_timesteps(sigmas=[0.25])
    x = seeded((2, 3, 4, 4))
    _, time = denoised(saved(scheduler), x, x, float(scheduler.sigmas[0]))
    assert time == pytest.approx(float(scheduler.timesteps[0])) == pytest.approx(0.25 * count)


MAPPED = [name for name in (*_BETAS, *_FLOW, *_EDM) if name != "DPMSolverSDEScheduler"]  # torchsde


@pytest.mark.parametrize("name", MAPPED)
def test_every_default_of_diffusers_is_mapped_and_so_is_null(name: str) -> None:
    """Also clipping, which a class that does not have the field ignores."""
    kind = getattr(diffusers, name)
    fields = inspect.signature(kind.__init__).parameters
    config = json.loads(kind().to_json_string())
    expected = scheduler_settings(config)
    assert expected.clip_sample == (1.0 if config.get("clip_sample") else None)
    nothing = dict.fromkeys(fields.keys() - {"self", "clip_sample", "prediction_type"})
    unused = {"timestep_values": None, "timesteps": None}
    kept = {k: config[k] for k in ("clip_sample", "prediction_type") if k in config}
    assert scheduler_settings({"_class_name": name, **nothing, **unused, **kept}) == expected
    for field, value, read in (
        ("clip_sample", True, lambda found: found.clip_sample),
        ("thresholding", True, lambda found: found.dynamic_threshold),
    ):
        found = scheduler_settings({**config, field: value})
        assert (read(found) is not None) == (field in fields)


def test_clipping_that_is_null_is_off_as_in_diffusers() -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=None)
    scheduler.set_timesteps(10)
    x = 5 * seeded((1, 3, 4, 4))
    assert scheduler.step(x, 500, x).pred_original_sample.abs().max() > 1
    assert saved(scheduler).clip_sample is None
    assert scheduler_settings({"_class_name": "DDIMScheduler"}).clip_sample == 1.0


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler cannot .* schedule.name=..."),
        ({}, "without a class name cannot be mapped"),
        ({"_class_name": "LCMScheduler"}, "LCMScheduler cannot be mapped"),
        ({"_class_name": "DDPMScheduler", "warp": 3}, "field warp = 3 .* scheduler.warp=null"),
        ({"_class_name": "DDPMScheduler", "prediction_type": "noise"}, "type 'noise'.*give predic"),
        ({"_class_name": "DDPMScheduler", "prediction_type": ["v"]}, "type ..v.. "),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, "beta schedule 'sigmoid'"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": "ten"}, "scheduler.KEY=VALUE"),
        ({"_class_name": "DDPMScheduler", "clip_sample_range": -1}, "clip_sample_range is -1"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "EDM's own"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 0}, "timesteps"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "zero SNR"),
    ],
)
def test_what_cannot_be_mapped_is_refused_in_one_sentence(
    config: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        scheduler_settings(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
        {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
    ],
)
def test_no_advice_would_change_what_the_network_computes(config: dict[str, Any]) -> None:
    """Leaving these fields out would call the network at other times."""
    with pytest.raises(InputError, match="adapter") as caught:
        scheduler_settings(config)
    assert "null" not in str(caught.value)
    assert "remove" not in str(caught.value)
