"""Lifting any network, and the operator's two outputs against their formulas."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tests.makers import zero_temporal
from torch import Tensor, nn

from dsno.backbones.sites import match_sites
from dsno.diffusion.analytic import Gaussian
from dsno.diffusion.denoisers import Denoiser, Preconditioning
from dsno.diffusion.schedules import SCHEDULES, BetaSchedule, CosineSchedule
from dsno.diffusion.time_grids import SPACINGS, Spacing
from dsno.operator.dsno import DSNO, OUTPUTS
from dsno.operator.lift import LiftConfig, Lifted
from dsno.operator.temporal import SliceLayout
from dsno.support.errors import InputError
from dsno.training.losses import slice_weights, trajectory_loss

ONE = torch.ones((), dtype=torch.float64)
SCHEDULE_OF = {
    "epsilon": BetaSchedule(),
    "v_prediction": CosineSchedule(),
    "sample": CosineSchedule(),
    "edm": SCHEDULES["edm"](),
    "flow": SCHEDULES["rectified_flow"](),
}
SINGLE = list(SCHEDULE_OF)  # what a network with one prediction can predict


def loud(module: nn.Module) -> None:
    """Temporal weights large enough that they matter."""
    for name, parameter in module.named_parameters():
        if "temporal" in name:
            nn.init.normal_(parameter, std=0.3)


def point_operator(
    network: nn.Module,
    kind: str = "v_prediction",
    slices: int = 4,
    modes: int = 2,
    **options: Any,
) -> DSNO:
    teacher = Denoiser(
        network,
        SCHEDULE_OF[kind],
        prediction_type=kind,
        sample_shape=(2,),
        sigma_data=0.5 if kind == "edm" else 1.0,
    )
    config = LiftConfig(["first", "second"], slices, modes)
    made = DSNO.from_teacher(teacher, config, **options)
    loud(made)
    return made


def test_a_site_mixes_its_output_and_nothing_else(point_net: Any) -> None:
    operator = point_operator(point_net(), slices=3, modes=2)
    net, (first, second) = operator.lifted.network, operator.lifted.temporal
    x, told = torch.randn(6, 2), torch.rand(6) * 1000
    plain, shared = copy.deepcopy(net), SliceLayout(3)
    for module in plain.modules():
        module._forward_hooks.clear()
    features = first(plain.first(x), shared)
    features = features + plain.time(torch.stack([told / 1000, (told / 1000) ** 2], 1))
    features = second(plain.second(nn.functional.silu(features)), shared)
    torch.testing.assert_close(net(x, told), plain.last(nn.functional.silu(features)))


def test_unknown_sites_are_answered_with_the_closest(point_net: Any) -> None:
    with pytest.raises(InputError, match="'secnod'.*'second'"):
        match_sites(point_net(), ["first", "secnod"])
    with pytest.raises(InputError, match="no submodule 'frist'.*'first'"):
        Lifted(point_net(), LiftConfig(["frist"]), [4])


def test_a_copy_has_temporal_weights_of_its_own(point_net: Any) -> None:
    """An average of the weights (EMA) is a deepcopy: hooks must go with it."""
    operator, noise = point_operator(point_net()), torch.randn(3, 2)
    before = operator(noise)
    twin = copy.deepcopy(operator)
    assert torch.equal(twin(noise), before)
    twin(noise, times=torch.tensor([0.3]))  # another layout of slices in flight
    zero_temporal(twin)
    assert torch.equal(operator(noise), before)
    assert not torch.allclose(twin(noise), before, atol=1e-3)
    shared = {p.data_ptr() for p in operator.parameters()}
    assert shared.isdisjoint(p.data_ptr() for p in twin.parameters())


def test_weights_load_under_their_own_names(point_net: Any) -> None:
    source, target = point_operator(point_net()), point_operator(point_net())
    noise = torch.randn(3, 2)
    assert not torch.equal(source(noise), target(noise))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(noise), target(noise))
    names = set(source.state_dict())
    assert {"lifted.network.first.weight", "lifted.temporal.1.conv.imag"} <= names
    assert len(names) == 8 + 4  # nothing twice


def test_gradient_checkpointing_gives_the_same_gradients(unet_teacher: Any) -> None:
    teacher = unet_teacher(attention=(False, True))
    sites = ["down_blocks.*.resnets.*", "up_blocks.*.resnets.*"]
    operator = DSNO.from_teacher(teacher, LiftConfig(sites))
    loud(operator)
    operator.train()
    noise = torch.randn(2, 1, 8, 8)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            operator.lifted.network.enable_gradient_checkpointing()
        operator.zero_grad()
        states = operator(noise, times=torch.tensor([0.9, 0.1]))
        states.square().mean().backward()
        gradients.append([p.grad.clone() for p in operator.parameters() if p.grad is not None])
    assert len(gradients[0]) > 50
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", SINGLE)
def test_outputs_are_their_formulas(kind: str, output: str, point_net: Any) -> None:
    operator = point_operator(point_net(), kind, output=output).double()
    if kind == "epsilon":  # its last layer starts at zero
        nn.init.normal_(operator.lifted.network.last.weight)
    schedule, d = SCHEDULE_OF[kind], 0.5 if kind == "edm" else 1.0
    noise = torch.randn(3, 2, dtype=torch.float64)
    times = operator.times
    a1, s1 = schedule.alpha(ONE), schedule.sigma(ONE)
    x1 = s1 * noise
    into = 1 / (s1**2 + d**2).sqrt() if kind == "edm" else 1.0
    told = operator.preconditioning.c_noise(times)
    f = operator.lifted.network((into * x1).repeat_interleave(4, 0), told.repeat(3))
    f, x1 = f.reshape(3, 4, 2), x1[:, None]
    clean = {
        "epsilon": f,
        "v_prediction": a1 * x1 - s1 * f,
        "sample": f,
        "edm": d**2 / (s1**2 + d**2) * x1 + s1 * d / (s1**2 + d**2).sqrt() * f,
        "flow": x1 - f,
    }[kind]
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    alpha[-1], sigma[-1] = 1, 0  # t = 0 is the clean sample
    alpha, sigma = alpha[:, None], sigma[:, None]
    if output == "denoised":
        expected = alpha * clean + sigma * (x1 - a1 * clean) / s1  # x0 and eps kept
    else:
        expected = clean * ((alpha * d) ** 2 + sigma**2).sqrt() / d
    torch.testing.assert_close(operator(noise), expected)
    torch.testing.assert_close(operator.sample(noise), expected[:, -1])
    torch.testing.assert_close(operator.sample(noise), clean[:, -1])


@pytest.mark.parametrize("kind", ["v_prediction", "sample", "edm", "flow"])
def test_training_starts_at_the_teachers_one_step_guess(kind: str, point_net: Any) -> None:
    """A slice told t = 1 of an operator without temporal mixing is D(x_1, 1)."""
    network = point_net()
    operator = point_operator(network, kind, output="state")
    zero_temporal(operator)
    noise, schedule = torch.randn(3, 2), SCHEDULE_OF[kind]
    d = 0.5 if kind == "edm" else 1.0
    teacher = Denoiser(network, schedule, prediction_type=kind, sample_shape=(2,), sigma_data=d)
    x1 = noise * schedule.sigma(ONE).float()
    scale = ((schedule.alpha(ONE) * d) ** 2 + schedule.sigma(ONE) ** 2).sqrt() / d
    expected = teacher(x1, ONE) * scale.float()
    torch.testing.assert_close(operator(noise, times=torch.ones(1))[:, 0], expected)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", SINGLE)
def test_denoised_is_exact_at_time_one(kind: str, spacing: str, point_net: Any) -> None:
    operator, noise = point_operator(point_net(), kind, spacing=spacing), torch.randn(3, 2)
    start = operator(noise, times=torch.tensor([1.0]))[:, 0]
    torch.testing.assert_close(start, noise * SCHEDULE_OF[kind].sigma(ONE).float())


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_asked_times_agree_with_the_trained_ones(spacing: str, output: str, point_net: Any) -> None:
    operator = point_operator(point_net(), spacing=spacing, output=output, slices=5, modes=3)
    noise = torch.randn(3, 2)
    trained, times = operator(noise), operator.times
    torch.testing.assert_close(operator(noise, times=times), trained, atol=1e-5, rtol=1e-5)
    mixed = torch.stack([times[2], torch.tensor(0.33).double(), times[4]])
    asked = operator(noise, times=mixed)
    torch.testing.assert_close(asked[:, [0, 2]], trained[:, [2, 4]], atol=1e-5, rtol=1e-5)
    alone = operator(noise, times=mixed[1:2])
    torch.testing.assert_close(asked[:, 1:2], alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(operator(noise), trained)


def test_the_answer_is_continuous_in_time(point_net: Any) -> None:
    operator, noise = point_operator(point_net()), torch.randn(3, 2)
    states = operator(noise, times=torch.linspace(0.05, 1, 400))
    assert states.diff(dim=1).abs().max() < 0.05 * (states.amax() - states.amin())


@pytest.mark.parametrize("spacing", SPACINGS)
def test_trained_times_are_the_spacings_map_ending_at_zero(spacing: str, point_net: Any) -> None:
    operator = point_operator(point_net(), spacing=spacing)
    rule = Spacing(spacing, CosineSchedule())
    assert operator.times.tolist() == [float(rule.time(torch.tensor(m / 4))) for m in (3, 2, 1, 0)]
    if spacing == "quadratic":
        assert operator.times.tolist() == [0.5625, 0.25, 0.0625, 0]  # the paper's
    single = point_operator(point_net(), spacing=spacing, slices=1)
    assert single.times.tolist() == [0]
    assert single(torch.randn(2, 2)).shape == (2, 1, 2)


def test_labels_belong_to_their_sample(point_net: Any) -> None:
    teacher = Denoiser(
        point_net(classes=4), CosineSchedule(), prediction_type="v_prediction", sample_shape=(2,)
    )
    one = {"class_labels": torch.zeros(1, dtype=torch.int64)}
    operator = DSNO.from_teacher(teacher, LiftConfig(["second"]), condition=one)
    loud(operator)
    noise, labels = torch.randn(5, 2), torch.tensor([3, 1, 0, 2, 2])
    states, order = operator(noise, {"class_labels": labels}), torch.tensor([4, 2, 0, 1, 3])
    permuted = operator(noise[order], {"class_labels": labels[order]})
    torch.testing.assert_close(permuted, states[order])
    changed = operator(noise, {"class_labels": torch.tensor([3, 1, 0, 0, 2])})
    same = (changed - states).abs().amax((1, 2)) < 1e-5
    assert same.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", SINGLE)
def test_every_prediction_type_starts_finite_on_images(
    kind: str, channels: int, unet_teacher: Any
) -> None:
    teacher = unet_teacher((channels, 8, 8), kind, SCHEDULE_OF[kind])
    sites = ["mid_block.attentions.0", "up_blocks.*.resnets.*"]
    operator = DSNO.from_teacher(teacher, LiftConfig(sites))
    states = operator(torch.randn(2, channels, 8, 8))
    assert states.shape == (2, 4, channels, 8, 8)
    assert states.isfinite().all()
    last = operator.lifted.network.conv_out
    zeroed = all(not bool(p.any()) for p in last.parameters())
    assert zeroed == (kind == "epsilon")
    if zeroed:
        assert not states[:, -1].any()
        assert operator.lifted.network.conv_in.weight.any()
        assert teacher.network.conv_out.weight.any()


def test_wrong_noise_and_times_are_refused(point_net: Any) -> None:
    operator = point_operator(point_net())
    with pytest.raises(InputError, match=r"shape \(2,\), but the noise has \(3,\)"):
        operator(torch.randn(1, 3))
    with pytest.raises(InputError, match=r"lie in \[0, 1\]"):
        operator(torch.randn(1, 2), times=torch.tensor([1.2]))
    with pytest.raises(InputError, match="'denoised'"):
        point_operator(point_net(), output="denoise")


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_student_learns_the_exact_flow_of_a_gaussian(output: str, point_net: Any) -> None:
    schedule = CosineSchedule()
    teacher = Gaussian(torch.tensor([0.6, -0.4]), torch.tensor([0.3, 0.9]), schedule)
    network = Denoiser(point_net(64), schedule, prediction_type="v_prediction", sample_shape=(2,))
    student = DSNO.from_teacher(network, LiftConfig(["second"]), output=output)
    weights = slice_weights("flat", schedule, student.times, weight_max=1.0)

    def exact(noise: Tensor) -> Tensor:
        x1 = noise.double() * schedule.sigma(ONE)
        return torch.stack([teacher.flow(x1, ONE, t) for t in student.times], 1).float()

    def error() -> float:
        noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            return float((student(noise) - exact(noise)).square().mean().sqrt())

    before = error()
    optimiser = torch.optim.Adam(student.parameters(), lr=6e-3, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 250)
    for _ in range(250):
        noise = torch.randn(128, 2)
        loss, _ = trajectory_loss(student(noise), exact(noise), weights, distance="l2")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    after = error()
    assert after < 0.05
    assert after < before / 10


def test_preconditioning_is_the_teachers(point_net: Any) -> None:
    operator = point_operator(point_net(), "edm")
    assert operator.preconditioning == Preconditioning(SCHEDULES["edm"](), "edm", 0.5)
    assert (operator.slices, operator.sample_shape) == (4, (2,))


def test_no_times_asked_are_no_states(point_net: Any) -> None:
    operator = point_operator(point_net(), slices=3, modes=2)
    assert operator(torch.randn(4, 2), times=torch.zeros(0)).shape == (4, 0, 2)


def test_a_half_precision_network_is_told_the_times_in_single_precision(point_net: Any) -> None:
    """Rounded to bfloat16, many times would be told as others."""
    operator = point_operator(point_net(), slices=4).bfloat16()
    told: list[Tensor] = []

    def call(network: nn.Module, x: Tensor, c_noise: Tensor, condition: Any) -> Tensor:
        told.append(c_noise)
        return x

    operator.call = call
    operator(torch.randn(2, 2).bfloat16())
    expected = operator.preconditioning.c_noise(operator.times).float().repeat(2)
    assert not torch.equal(expected, expected.bfloat16().float())
    torch.testing.assert_close(told[0], expected, rtol=1e-6, atol=0)


def test_coefficients_are_not_saved_and_no_cast_loses_their_precision(point_net: Any) -> None:
    operator = point_operator(point_net(), slices=4)
    assert not any("coefficients" in name for name in operator.state_dict())
    exact = operator.preconditioning.c_noise(operator.times)
    for cast in (operator.bfloat16, operator.double):
        cast()
    held = dict(operator.coefficients.named_buffers())
    assert torch.equal(held["c_noise"], exact)
    small = math.atan(math.exp(-10))  # the cosine schedule's angle at t = 0
    sigma = [math.sin(small + t * (math.pi / 2 - 2 * small)) for t in (0.5625, 0.25, 0.0625, 1)]
    expected = [*(value / sigma[-1] for value in sigma[:-1]), 0]
    assert held["of_noise"].tolist() == pytest.approx(expected, rel=1e-14)


def test_noise_in_another_precision_than_the_weights_gets_exact_coefficients(
    point_net: Any,
) -> None:
    operator = point_operator(point_net(), slices=4)
    found = operator.coefficients(torch.float64, torch.device("cpu"))
    assert torch.equal(found.c_noise, operator.preconditioning.c_noise(operator.times))
    assert operator.coefficients.c_noise.dtype == torch.float32


def test_coefficients_made_in_inference_mode_do_not_spoil_training(point_net: Any) -> None:
    operator = point_operator(point_net())
    with torch.inference_mode():
        operator(torch.randn(2, 2))
    operator(torch.randn(2, 2)).sum().backward()
