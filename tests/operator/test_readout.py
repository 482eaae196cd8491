"""Time behind the last feature map alone: one evaluation, a head for every time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import makers
from tests.launched import training
from tests.operator.test_lift import SHAPE, dit, given, song, unet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dsno.backbones.edm import DhariwalUNet
from dsno.backbones.registry import BACKBONES, Backbone, backbone_of, register
from dsno.diffusion.denoisers import Denoiser, Preconditioning
from dsno.diffusion.schedules import CosineSchedule
from dsno.operator.dsno import DSNO, sampling_cost
from dsno.operator.lift import LiftConfig
from dsno.operator.readout import between
from dsno.pipeline import DSNOModel, DSNOPipeline, save_pipeline
from dsno.recipes.load import load_recipe
from dsno.runs.build import lift_config
from dsno.support.errors import InputError
from dsno.teachers.store import denoiser_of
from dsno.training.losses import TrajectoryObjective

M = 3
ONE = torch.ones((), dtype=torch.float64)
LABEL = {"class_labels": torch.zeros(1, dtype=torch.long)}


class Tokens(nn.Module):
    """A network whose own code takes the shape of its output from its input."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.first, self.body, self.last = nn.Linear(3, width), nn.GELU(), nn.Linear(width, 3)

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        tokens = self.body(self.first(x.flatten(2).mT)) + c_noise[:, None, None] / 1000
        return self.last(tokens).mT.reshape(x.shape)


LAYERS = {unet: "conv_out", song: "dec.16x16_aux_conv", dit: "proj_out_2", Tokens: "last"}
NETWORKS = list(LAYERS)


def teacher_of(network: nn.Module, kind: str = "v_prediction") -> Denoiser:
    denoiser = denoiser_of if type(network).__name__ in BACKBONES else Denoiser
    if denoiser is Denoiser:
        return Denoiser(network, CosineSchedule(), prediction_type=kind, sample_shape=SHAPE)
    return denoiser_of(network, Preconditioning(CosineSchedule(), kind), SHAPE)


def read_out(make: Callable[[], nn.Module], kind: str = "v_prediction") -> tuple[DSNO, Denoiser]:
    teacher = teacher_of(make().eval(), kind)
    config = LiftConfig((), slices=M, readout=LAYERS[make])
    return DSNO.from_teacher(teacher, config, condition=LABEL).eval(), teacher


def factors(teacher: Denoiser, t: Tensor) -> tuple[Tensor, Tensor]:
    """What x_1 and the clean estimate are multiplied by at times t; t = 0 is the clean sample."""
    schedule, is_end = teacher.schedule, t == 0
    ratio = (schedule.sigma(t) / schedule.sigma(ONE)).masked_fill(is_end, 0)
    of_clean = schedule.alpha(t).masked_fill(is_end, 1) - schedule.alpha(ONE) * ratio
    return ratio, of_clean


def shaken(operator: DSNO) -> DSNO:
    """With heads that differ."""
    heads = operator.lifted.network.get_submodule(operator.lifted.config.readout)
    for i, value in enumerate(heads.parameters()):
        value.data += makers.seeded(tuple(value.shape), i) * 0.2
    return operator


@pytest.mark.parametrize("make", NETWORKS)
def test_a_new_student_is_the_teachers_estimate_at_every_time(make: Callable[[], Any]) -> None:
    operator, teacher = read_out(make)
    assert operator.lifted.plan.restores == (make is Tokens)
    schedule = teacher.schedule
    noise, condition = given(2)
    times = torch.tensor([1.0, 0.7, 0.3, 0.05, 0.0])
    with torch.no_grad():
        x1 = schedule.sigma(ONE).float() * noise
        clean = teacher(x1, ONE, condition)
        for found, at in (
            (operator(noise, condition), operator.times),
            (operator(noise, condition, times), times.double()),
        ):
            ratio, of_clean = (c.float()[:, None, None, None] for c in factors(teacher, at))
            expected = ratio * x1[:, None] + of_clean * clean[:, None]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(operator.sample(noise, condition), clean)


@pytest.mark.parametrize("make", NETWORKS)
def test_a_sample_costs_the_teachers_network(make: Callable[[], Any]) -> None:
    assert sampling_cost(*read_out(make), None if make is Tokens else LABEL) == 1


def test_the_whole_trajectory_trains_for_at_most_a_twentieth_more() -> None:
    """Than knowledge distillation, by multiply-adds of the passes forward and backward."""
    costs = []
    for slices, readout in (4, "conv_out"), (1, ""):
        config = LiftConfig((), slices=slices, readout=readout)
        operator = DSNO.from_teacher(training.teacher(), config)
        with FlopCounterMode(display=False) as counted:
            operator(torch.randn(2, *training.SHAPE)).square().mean().backward()
        costs.append(counted.get_total_flops())
    assert 1 < costs[0] / costs[1] <= 1.05


@pytest.mark.parametrize("make", NETWORKS)
def test_every_head_is_the_network_with_that_last_layer(make: Callable[[], Any]) -> None:
    """Forward and backward, against M networks."""
    operator, teacher = read_out(make)
    shaken(operator)
    noise, condition = given(2)
    states = operator(noise, condition)
    weights = makers.seeded((M,))
    (states.square().mean((0, 2, 3, 4)) * weights).sum().backward()
    ours = dict(operator.lifted.network.named_parameters())
    shared: dict[str, Tensor] = {}
    for m, t in enumerate(operator.times):
        one = copy.deepcopy(teacher)
        one.network.requires_grad_(True)
        for name, value in one.network.named_parameters():
            source = ours[name].data
            value.data.copy_(source[m] if name.startswith(LAYERS[make]) else source)
        x1 = teacher.schedule.sigma(ONE).float() * noise
        ratio, of_clean = (c.float() for c in factors(teacher, t))
        expected = ratio * x1 + of_clean * one(x1, ONE, condition)
        torch.testing.assert_close(states[:, m], expected, atol=1e-5, rtol=1e-5)
        (expected.square().mean() * weights[m]).backward()
        for name, value in one.network.named_parameters():
            assert value.grad is not None or ours[name].grad is None
            if value.grad is None:
                continue
            if name.startswith(LAYERS[make]):
                torch.testing.assert_close(ours[name].grad[m], value.grad, atol=1e-6, rtol=1e-4)
            else:
                shared[name] = shared.get(name, 0) + value.grad
    for name, gradient in shared.items():
        torch.testing.assert_close(ours[name].grad, gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_what_is_linear_along_the_spacing_is_exact_at_every_time(point_net: Any) -> None:
    """And has the first trained time's estimate before that."""
    teacher = Denoiser(
        point_net(), CosineSchedule(), prediction_type="sample", sample_shape=(2,)
    ).double()
    operator = DSNO.from_teacher(teacher, LiftConfig((), slices=4, readout="last"))
    heads: Any = operator.lifted.network.last
    u = torch.tensor([0.75, 0.5, 0.25, 0], dtype=torch.float64)  # t = u^2
    slope = torch.tensor([1.0, -2.0], dtype=torch.float64)
    heads.weight.data.zero_()
    heads.bias.data.copy_(u[:, None] * slope)
    noise = torch.randn(3, 2, dtype=torch.float64)
    u = torch.tensor([1.0, 0.9, 0.75, 0.6, 0.3, 0.01, 0], dtype=torch.float64)
    t = u**2
    ratio, of_clean = factors(teacher, t)
    expected = (of_clean * u.clamp(max=0.75))[:, None] * slope
    expected = expected + ratio[:, None] * teacher.schedule.sigma(ONE) * noise[:, None]
    torch.testing.assert_close(operator(noise, times=t), expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "karras"])
def test_at_trained_times_the_heads_are_themselves(spacing: str, point_net: Any) -> None:
    teacher = Denoiser(
        point_net(), CosineSchedule(), prediction_type="v_prediction", sample_shape=(2,)
    )
    config = LiftConfig((), slices=5, readout="last")
    operator = shaken(DSNO.from_teacher(teacher, config, spacing=spacing))
    noise = torch.randn(3, 2)
    torch.testing.assert_close(
        operator(noise, times=operator.times), operator(noise), atol=1e-6, rtol=1e-6
    )
    assert operator(noise, times=torch.zeros(0)).shape == (3, 0, 2)


def test_values_between_phases_are_on_the_line() -> None:
    values = torch.tensor([[1.0], [3.0], [0.0]])
    found = between(values, [-0.2, 0.0, 1 / 6, 1 / 3, 0.5, 2 / 3, 0.9])
    assert found.flatten().tolist() == pytest.approx([1, 1, 2, 3, 1.5, 0, 0], abs=1e-6)
    assert between(torch.tensor([5.0]), [-1.0, 0.0]).tolist() == [5, 5]


@pytest.mark.parametrize("make", NETWORKS)
def test_a_saved_student_has_its_heads(
    make: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Backbone(
        "Tokens",
        lambda values: Tokens(**values),
        lambda net: {"width": net.width},
        lambda network, x, c_noise, condition: network(x, c_noise),
        lambda net: ["first"],
    )
    monkeypatch.setitem(BACKBONES, "Tokens", own)
    operator = shaken(read_out(make)[0])
    save_pipeline(DSNOModel.from_operator(operator), tmp_path)
    weights = load_file(tmp_path / "model" / "diffusion_pytorch_model.safetensors")
    layer = f"operator.lifted.network.{LAYERS[make]}.weight"
    assert weights[layer].shape[0] == M
    loaded = DSNOPipeline.from_pretrained(tmp_path).model.operator
    assert loaded.lifted.config == operator.lifted.config
    noise, condition = given(2)
    with torch.no_grad():
        for times in (None, torch.tensor([0.4, 0.0])):
            assert torch.equal(loaded(noise, condition, times), operator(noise, condition, times))
        assert torch.equal(loaded.sample(noise, condition), operator.sample(noise, condition))


@pytest.mark.parametrize(
    ("readout", "sentence"),
    [
        ("conv_uot", "no submodule 'conv_uot'"),
        ("conv_norm_out", "only a linear layer"),
        (3, "cannot be built"),
    ],
)
def test_a_wrong_readout_in_a_saved_student_is_refused(
    readout: Any, sentence: str, tmp_path: Path
) -> None:
    save_pipeline(DSNOModel.from_operator(read_out(unet)[0]), tmp_path)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"readout": readout}))
    with pytest.raises(InputError, match=sentence):
        DSNOPipeline.from_pretrained(tmp_path)


@pytest.fixture
def read_out_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests.launched.training train a network with a readout."""
    config = LiftConfig((), slices=2, readout="conv_out")
    operator = DSNO.from_teacher(training.teacher(), config)
    objective = TrajectoryObjective(
        operator, torch.ones(2), torch.tensor([0.5, 1.5]), distance="l2"
    )
    monkeypatch.setattr(training, "_objective", lambda channels: objective)


@pytest.mark.usefixtures("read_out_training")
def test_training_is_resumed_and_split_as_any_other(tmp_path: Path) -> None:
    whole, history = training.fit(tmp_path / "whole")
    assert history[-1]["loss"] < history[0]["loss"]
    training.stop(tmp_path / "stopped")
    resumed, _ = training.fit(tmp_path / "stopped")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    heads = whole["lifted.network.conv_out.weight"]
    assert not torch.equal(heads[0], heads[1])
    other, _ = training.fit(tmp_path / "other", gradient_checkpointing=True, cpu_replicas=2)
    for name, value in whole.items():
        if not name.endswith("to_k.bias"):  # which has no effect, so its gradient is rounding
            torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_of_a_teacher_of_two_predictions_the_heads_keep_the_first(tmp_path: Path) -> None:
    network = makers.unet2d(in_channels=3, out_channels=6, sample_size=16)
    teacher = teacher_of(network, "sample_and_epsilon")
    config = LiftConfig((), slices=2, readout="conv_out")
    operator = DSNO.from_teacher(teacher, config).eval()
    noise = makers.seeded((2, *SHAPE))
    x1 = noise * teacher.schedule.sigma(ONE).float()
    told = teacher.preconditioning.c_noise(ONE).float()
    with torch.no_grad():
        expected = network(x1, told).sample[:, :3]
        torch.testing.assert_close(operator.sample(noise), expected)
        save_pipeline(DSNOModel.from_operator(operator), tmp_path)
        loaded = DSNOPipeline.from_pretrained(tmp_path).model.operator
        assert torch.equal(loaded(noise), operator(noise))


@pytest.mark.parametrize("make", [unet, Tokens])
def test_the_guidance_scale_enters_where_time_would_be_mixed(make: Callable[[], Any]) -> None:
    teacher = teacher_of(make().eval())
    site, dim = ("mid_block", 1) if make is unet else ("first", -1)
    config = LiftConfig([site], slices=M, readout=LAYERS[make], guidance=True, channel_dim=dim)
    operator = makers.shake(DSNO.from_teacher(teacher, config, condition=LABEL))
    assert not list(operator.lifted.temporal)
    noise, condition = given(2)
    scale = torch.tensor([1.5, 4.0])
    shifts = operator.lifted.shifts
    plain = copy.deepcopy(teacher)
    plain.network.get_submodule(site).register_forward_hook(
        lambda module, args, output: output + shifts.at(0, shifts.embedding(scale), output, dim)
    )
    with torch.no_grad():
        expected = plain(noise * teacher.schedule.sigma(ONE).float(), ONE, condition)
        for last_only in (False, True):
            states = operator(noise, condition | {"guidance_scale": scale}, last_only=last_only)
            torch.testing.assert_close(states[:, -1], expected, atol=1e-5, rtol=1e-5)


def test_a_layer_that_cannot_be_the_readout_is_named() -> None:
    class Odd(Tokens):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:  # type: ignore[override]
            tokens = self.first(x.flatten(2).mT)
            return (self.last(tokens)[:1] + self.last(tokens)).mT.reshape(x.shape)

    class Flat(Tokens):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:  # type: ignore[override]
            tokens = self.body(self.first(x.flatten(2).mT))
            return (0 * tokens.mean() + self.last(tokens)[:1]).mT.reshape(1, *SHAPE)

    for network, readout, sentence in (
        (Odd(), "last", "'last' runs 2 times"),
        (Odd(), "lost", "no submodule 'lost' to be its readout: did you mean 'last'"),
        (Tokens(), "body", "only a linear layer or a convolution"),
        (Flat(), "last", "cannot go on with the output of 'last' for several times"),
    ):
        with pytest.raises(InputError, match=sentence):
            DSNO.from_teacher(teacher_of(network), LiftConfig((), slices=2, readout=readout))
    for options in {"sites": ["first"]}, {"sites": (), "shared": ["first"]}:
        with pytest.raises(InputError, match="Nothing in front of the readout 'last'"):
            LiftConfig(**options, readout="last")


def test_a_recipe_names_the_lift_and_the_network_its_last_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load_recipe("digits", ["student.lift=readout", "student.slices=4"])
    for make in (unet, song, dit):
        found = lift_config(recipe, make())
        assert (found.sites, found.shared, found.slices) == ((), (), 4)
        assert found.readout == LAYERS[make]
    with torch.device("meta"):
        adm = DhariwalUNet(16, 3, 3, model_channels=64, channel_mult=[1], num_blocks=1)
    assert lift_config(recipe, adm).readout == "out_conv"
    scaled = load_recipe(
        "digits", ["student.lift=readout", "collect.guidance_scale=[1.0, 4.0]", "finish=null"]
    )
    assert list(lift_config(scaled, unet()).sites) == backbone_of(unet()).sites(unet())
    monkeypatch.setattr("dsno.backbones.registry.BACKBONES", dict(BACKBONES))
    register(Tokens, lambda net: {"width": net.width}, sites=("first",))
    with pytest.raises(InputError, match="the last layer of a Tokens, which is not known"):
        lift_config(recipe, Tokens())
    register(Tokens, lambda net: {"width": net.width}, sites=("first",), readout="last")
    assert lift_config(recipe, Tokens()).readout == "last"
    with pytest.raises(InputError, match=r"lift` = readout cannot be combined with `student.sites"):
        load_recipe("digits", ["student.lift=readout", "student.sites=[conv_in]"])
