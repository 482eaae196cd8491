"""Which submodules see which slices: the same numbers for less computation."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tests import makers
from torch import Tensor, nn

from dsno.backbones.edm import SongUNet
from dsno.backbones.registry import backbone_of
from dsno.backbones.sites import Level
from dsno.diffusion.denoisers import Denoiser, Preconditioning
from dsno.diffusion.schedules import CosineSchedule
from dsno.operator.batch_plan import BatchPlan, FixedTensor
from dsno.operator.dsno import DSNO, sampling_cost
from dsno.operator.lift import LiftConfig, Lifted
from dsno.pipeline import DSNOModel, DSNOPipeline, save_pipeline
from dsno.recipes.load import load_recipe
from dsno.runs.build import lift_config, new_operator
from dsno.support.errors import InputError
from dsno.teachers.store import Teacher, denoiser_of

SHAPE = (3, 16, 16)
M = 3


def unet() -> nn.Module:
    return makers.shake(
        diffusers.UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
            num_class_embeds=4,
        )
    )


def song() -> nn.Module:
    return makers.shake(
        SongUNet(
            img_resolution=16,
            in_channels=3,
            out_channels=3,
            label_dim=4,
            model_channels=16,
            channel_mult=[1, 2],
            num_blocks=1,
            attn_resolutions=[8],
        )
    )


def dit() -> nn.Module:
    return makers.shake(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=3,
            out_channels=3,
            num_layers=3,
            sample_size=16,
            patch_size=4,
            num_embeds_ada_norm=4,
        )
    )


# what is shared, and where time is mixed
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], tuple[str, ...] | None]] = {
    "U-Net": (unet, (), None),
    "U-Net, top of the encoder shared": (unet, ("conv_in", "down_blocks.0"), None),
    "U-Net, core": (
        unet,
        ("conv_in", "down_blocks.0"),
        ("down_blocks.1.**.*s.?", "mid_block.attentions.0", "up_blocks.0.attentions.*"),
    ),
    "U-Net, embedding of time shared": (unet, ("time_embedding",), None),
    "EDM": (song, (), None),
    "EDM, core": (song, ("enc.16x16_*",), ("enc.8x8_block*", "dec.8x8_*")),
    "DiT": (dit, (), None),
    "DiT, first block shared": (dit, ("pos_embed", "transformer_blocks.0"), None),
}


def build(case: str) -> tuple[DSNO, Denoiser]:
    """A copy of the case's operator, which is lifted once, and its teacher."""
    return copy.deepcopy(lifted_once(case))


@functools.cache
def lifted_once(case: str) -> tuple[DSNO, Denoiser]:
    torch.manual_seed(0)
    make, shared, sites = CASES[case]
    network = make().eval()
    kind = backbone_of(network)
    denoiser = denoiser_of(network, Preconditioning(CosineSchedule(), "v_prediction"), SHAPE)
    operator = DSNO.from_teacher(
        denoiser,
        LiftConfig(
            sites or kind.sites(network), slices=M, channel_dim=kind.channel_dim, shared=shared
        ),
        condition={"class_labels": torch.zeros(1, dtype=torch.long)},
    )
    for name, parameter in operator.named_parameters():
        if "temporal" in name:
            nn.init.normal_(parameter, std=0.1)
    return operator, denoiser


def written_out(operator: DSNO) -> DSNO:
    """Every submodule sees every slice; the shared ones are given those of the first M times."""
    lifted = operator.lifted
    network = copy.deepcopy(lifted.network)
    for module in network.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module._forward_pre_hooks_with_kwargs.clear()
    plain = Lifted(network, lifted.config, lifted.channels)
    plain.temporal.load_state_dict(lifted.temporal.state_dict())

    def first(x: Any) -> Any:
        if isinstance(x, Tensor) and x.ndim and len(x) % M == 0 and len(x) > M:
            return x[::M].repeat_interleave(M, 0)
        return tuple(map(first, x)) if isinstance(x, tuple) else x

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return first(args), {k: first(v) for k, v in kwargs.items()}

    for name in lifted.plan.shared:
        network.get_submodule(name).register_forward_pre_hook(before, with_kwargs=True)
    return DSNO(
        plain,
        operator.preconditioning,
        operator.sample_shape,
        call=operator.call,
        spacing=operator.spacing.name,
        output=operator.output,
    ).eval()


def given(batch: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    return makers.seeded((batch, *SHAPE)), {"class_labels": torch.arange(batch) % 4}


@pytest.mark.parametrize("case", CASES)
def test_shared_submodules_are_computed_once_and_nothing_else_changes(case: str) -> None:
    operator = build(case)[0].eval()
    reference = written_out(operator)
    noise, condition = given()
    found, expected = operator(noise, condition), reference(noise, condition)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    (found - noise[:, None]).square().mean().backward()
    (expected - noise[:, None]).square().mean().backward()
    named = dict(reference.named_parameters())
    for name, parameter in operator.named_parameters():
        if parameter.grad is not None:
            other = named[name].grad
            assert other is not None
            torch.testing.assert_close(parameter.grad, other, atol=3e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, M, 4])
def test_a_sample_is_the_last_state_for_less(case: str, batch: int) -> None:
    """Also where a batch has as many samples as a sample has slices."""
    operator = build(case)[0].eval()
    noise, condition = given(batch)
    with torch.no_grad():
        whole = operator(noise, condition)
        last = operator(noise, condition, last_only=True)
        assert last.shape == (batch, 1, *SHAPE)
        torch.testing.assert_close(last, whole[:, -1:], atol=2e-5, rtol=1e-4)
        assert torch.equal(operator.sample(noise, condition), last[:, 0])
        assert torch.equal(operator(noise, condition), whole)  # nothing is left behind


@pytest.mark.parametrize("case", CASES)
def test_asked_times_leave_the_trained_ones_as_they_are(case: str) -> None:
    operator = build(case)[0].eval()
    noise, condition = given()
    with torch.no_grad():
        whole = operator(noise, condition)
        some = operator(noise, condition, times=torch.cat([torch.tensor([0.7]), operator.times]))
    assert some.shape[1] == M + 1
    torch.testing.assert_close(some[:, 1:], whole, atol=2e-5, rtol=1e-4)


def rows_seen(operator: DSNO, names: list[str], *, last_only: bool) -> dict[str, int]:
    """Rows of what each submodule gives, for two samples."""
    seen = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[name] = len(output[0] if isinstance(output, tuple) else output)

        return hook

    network = operator.lifted.network
    handles = [network.get_submodule(n).register_forward_hook(note(n), prepend=True) for n in names]
    noise, condition = given(2)
    with torch.no_grad():
        operator(noise, condition, last_only=last_only)
    for handle in handles:
        handle.remove()
    return seen


def test_each_submodule_sees_the_rows_it_needs() -> None:
    operator = build("U-Net, core")[0]
    names = {
        "conv_in": (2, 2),
        "down_blocks.0.resnets.0": (2, 2),
        "down_blocks.1.resnets.0": (2 * M, 2 * M),
        "mid_block": (2 * M, 2 * M),
        "up_blocks.0.resnets.0": (2 * M, 2 * M),
        "up_blocks.0.resnets.1.conv2": (2 * M, 2 * M),
        "up_blocks.0.upsamplers.0": (2 * M, 2),
        "up_blocks.1.resnets.0": (2 * M, 2),
        "conv_out": (2 * M, 2),
    }
    for column, last_only in enumerate((False, True)):
        expected = {name: rows[column] for name, rows in names.items()}
        assert rows_seen(operator, list(names), last_only=last_only) == expected


@pytest.mark.parametrize("scale_shift", [False, True])
def test_layers_that_time_does_not_reach_are_computed_once(
    unet_teacher: Any, scale_shift: bool
) -> None:
    """In a U-Net: up to where the first block adds its time embedding, or scales by it."""
    denoiser = unet_teacher(time_scale_shift=scale_shift)
    for parameter in denoiser.network.time_embedding.parameters():
        nn.init.zeros_(parameter)  # untrained, so that no output changes with time yet
    sites = backbone_of(denoiser.network).sites(denoiser.network)
    operator = DSNO.from_teacher(denoiser, LiftConfig(sites))
    block = "down_blocks.0.resnets.0"
    expected = ["conv_in", f"{block}.norm1", f"{block}.conv1"]
    assert operator.lifted.plan.constant == (*expected, *([f"{block}.norm2"] * scale_shift))
    rows: list[int] = []
    network = operator.lifted.network
    network.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    network.down_blocks[0].resnets[0].register_forward_pre_hook(
        lambda _, args: rows.append(len(args[0]))
    )
    operator(torch.randn(2, 1, 8, 8))
    assert rows == [2, 2 * 4]


class Convs(nn.Module):
    """Two convolutions, then the time, then two more."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.early, self.middle, self.late = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.table = nn.Embedding(2, 3)
        self.told = nn.Linear(1, 3)
        nn.init.zeros_(self.told.weight)  # untrained, so that nothing changes with time yet
        nn.init.zeros_(self.told.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.early(self.between(self.enter(x), t))
        h = self.middle(h + self.told(t[:, None])[:, :, None, None])
        return self.late(h)  # type: ignore[no-any-return]

    def between(self, h: Tensor, t: Tensor) -> Tensor:
        return h


class Tabled(Convs):
    """Time enters by a table too, which autograd does not see."""

    def between(self, h: Tensor, t: Tensor) -> Tensor:
        return h + self.table((t > 100).long())[:, :, None, None]


class Normed(Convs):
    """What a layer puts out depends on all rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def between(self, h: Tensor, t: Tensor) -> Tensor:
        return self.norm(h)  # type: ignore[no-any-return]


class Twice(Convs):
    """The layer after which time is mixed runs twice."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.middle(self.early(self.enter(x)) + self.told(t[:, None])[:, :, None, None])
        return self.late(self.middle(torch.tanh(h)))  # type: ignore[no-any-return]


class Skip(Convs):
    """What an early layer puts out is added to what a late one does, in the network's own code."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.enter(x)
        return h + self.late(self.middle(h + self.told(t[:, None])[:, :, None, None]))  # type: ignore[no-any-return]


class InPlace(Convs):
    """What a layer puts out is changed in place."""

    def between(self, h: Tensor, t: Tensor) -> Tensor:
        return torch.nn.functional.relu(h, inplace=True).add_(t[:, None, None, None] / 1000)


def of_convs(network: nn.Module, sites: list[str], **options: Any) -> DSNO:
    torch.manual_seed(0)
    teacher = Denoiser(
        network, CosineSchedule(), prediction_type="v_prediction", sample_shape=SHAPE
    )
    operator = DSNO.from_teacher(teacher, LiftConfig(sites, **options))
    nn.init.normal_(operator.lifted.network.get_submodule("told").weight)
    return operator


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Convs, ("enter", "early")),
        (Tabled, ("enter",)),
        (InPlace, ("enter",)),
        (Normed, ("enter", "early")),
    ],
)
def test_time_is_found_wherever_it_enters(kind: type[Convs], found: tuple[str, ...]) -> None:
    operator = of_convs(kind(), ["middle"], slices=4)
    assert operator.lifted.plan.constant == found
    for batch in (1, 2, 5):
        noise = makers.seeded((batch, *SHAPE))
        torch.testing.assert_close(operator(noise), every_row(operator, noise))


def every_row(operator: DSNO, noise: Tensor) -> Tensor:
    """The same with no part of the network but its sites treated apart."""
    plain = copy.deepcopy(operator)
    lifted = operator.lifted
    network = type(lifted.network)()
    network.load_state_dict(lifted.network.state_dict())
    plain.lifted = Lifted(network, lifted.config, lifted.channels)
    plain.lifted.temporal.load_state_dict(lifted.temporal.state_dict())
    found: Tensor = plain(noise)
    return found


def test_a_sample_is_the_last_state_where_a_site_runs_twice() -> None:
    operator = of_convs(Twice(), ["middle"], slices=M)
    for parameter in operator.lifted.temporal.parameters():
        nn.init.normal_(parameter, std=0.3)
    noise = makers.seeded((2, *SHAPE))
    states = operator(noise)
    torch.testing.assert_close(states, every_row(operator, noise))
    torch.testing.assert_close(operator.sample(noise), states[:, -1])


@pytest.mark.parametrize("slices", [2, 4])
def test_rows_that_one_sample_alone_would_broadcast_are_restored(slices: int) -> None:
    operator = of_convs(Skip(), ["middle"], slices=slices, shared=["enter"])
    assert operator.lifted.plan.restores
    for batch in (1, 2, slices):
        noise = makers.seeded((batch, *SHAPE))
        torch.testing.assert_close(operator(noise), every_row(operator, noise))


class Ends(Convs):
    """A submodule whose last step is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1))

    def between(self, h: Tensor, t: Tensor) -> Tensor:
        return self.block(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize("slices", [2, 4])
def test_a_site_that_ends_with_a_shared_submodule_mixes_all_rows(slices: int) -> None:
    options = {"slices": slices, "shared": ["enter", "block.1"]}
    operator = of_convs(Ends(), ["block"], **options)
    for batch in (1, 2, 3, 4):
        noise = makers.seeded((batch, *SHAPE))
        torch.testing.assert_close(operator(noise), every_row(operator, noise))


class Positions(nn.Module):
    """Its blocks are given a table of positions beside the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.told = nn.Linear(3, 8), nn.Linear(1, 8)
        self.blocks = nn.ModuleList(AddTable() for _ in range(3))
        self.leave = nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.enter(x) + self.told(t[:, None] / 1000)[:, None]
        for block in self.blocks:
            h = block(h, self.table)
        return self.leave(h)  # type: ignore[no-any-return]


class AddTable(nn.Module):
    """Tokens (B, 8, C) and a table (8, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, h: Tensor, table: Tensor) -> Tensor:
        return h + torch.tanh(self.linear(h + table))


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_a_table_as_long_as_the_batch_is_not_taken_for_rows(batch: int) -> None:
    teacher = Denoiser(
        Positions(), CosineSchedule(), prediction_type="v_prediction", sample_shape=(8, 3)
    )
    operator = DSNO.from_teacher(
        teacher, LiftConfig(["blocks.1"], channel_dim=-1, shared=["enter", "blocks.0"])
    ).eval()
    assert set(operator.lifted.plan.fixed) >= {
        FixedTensor(f"blocks.{i}", "input", 1) for i in range(3)
    }
    noise = makers.seeded((batch, 8, 3))
    with torch.no_grad():
        torch.testing.assert_close(operator.sample(noise), operator(noise)[:, -1])
        torch.testing.assert_close(operator(noise), operator(noise.repeat(3, 1, 1))[:batch])


def test_rows_are_restored_in_a_network_that_combines_tensors_itself() -> None:
    assert build("EDM, core")[0].lifted.plan.restores
    assert not build("U-Net, core")[0].lifted.plan.restores


@pytest.mark.parametrize("last_only", [False, True])
def test_compiled_code_makes_nothing_on_the_host(last_only: bool) -> None:
    """A CUDA graph must not hold a tensor made on the CPU, so on `meta` all must be there."""
    operator = of_convs(Convs(), ["middle"], slices=3)
    assert operator.lifted.plan.constant
    assert operator.lifted.plan.final
    devices, kinds = set(), set()

    def look(graph: Any, inputs: Any) -> Any:
        for node in graph.graph.nodes:
            value = node.meta.get("example_value")
            if isinstance(value, Tensor):
                devices.add(value.device.type)
                kinds.add(value.dtype)
        return graph.forward

    noise = makers.seeded((2, *SHAPE))
    with torch.no_grad():
        compiled = torch.compile(operator, backend=look, fullgraph=True)
        made = compiled(noise, last_only=last_only)
        torch.testing.assert_close(made, operator(noise, last_only=last_only))
        assert torch.float64 not in kinds
        devices.clear()
        torch.compile(operator.to("meta"), backend=look, fullgraph=True)(
            noise.to("meta"), last_only=last_only
        )
    assert devices == {"meta"}


def test_the_cost_of_a_sample_is_what_its_layers_add_up_to(point_net: Any) -> None:
    """Multiply-adds by hand: time 2 x 8, first 2 x 8, second 8 x 8, last 8 x 2 of each slice."""
    net = point_net(8)
    teacher = Denoiser(net, CosineSchedule(), prediction_type="v_prediction", sample_shape=(2,))
    costs = {
        (): 4 * (16 + 16 + 64) + 16,
        ("time",): 16 + 4 * (16 + 64) + 16,
        ("time", "first"): 16 + 16 + 4 * 64 + 16,
    }
    for shared, cost in costs.items():
        operator = DSNO.from_teacher(teacher, LiftConfig(["second"], modes=1, shared=shared))
        # one mode: sums over four slices, one product of 8 x 8, and the last slice of it
        temporal = 4 * 8 + 64 + 8
        assert sampling_cost(operator, teacher) == pytest.approx((cost + temporal) / (16 * 3 + 64))


def test_sharing_costs_less() -> None:
    condition = {"class_labels": torch.zeros(1, dtype=torch.long)}
    all_, shared, core = (
        sampling_cost(*build(case), condition)
        for case in ("U-Net", "U-Net, top of the encoder shared", "U-Net, core")
    )
    assert core < shared < all_ < M * 1.2
    assert core < 0.7 * all_


def test_weights_are_named_as_in_the_network() -> None:
    assert build("U-Net, core")[0].lifted.network.state_dict().keys() == unet().state_dict().keys()


def test_a_copy_shares_and_picks_rows_by_itself() -> None:
    """An average of the weights (EMA) is a deepcopy: hooks must go with it."""
    operator = build("U-Net, core")[0].eval()
    noise, condition = given()
    with torch.no_grad():
        before = operator(noise, condition)
        twin = copy.deepcopy(operator)
        twin.sample(*given(2))  # another batch in flight
        assert torch.equal(operator(noise, condition), before)
        assert torch.equal(twin(noise, condition), before)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    operator = build("U-Net, core")[0].train()
    noise, condition = given()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            operator.lifted.network.enable_gradient_checkpointing()
        operator.zero_grad()
        operator(noise, condition).square().mean().backward()
        gradients.append([p.grad.clone() for p in operator.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", ["U-Net, core", "EDM, core", "DiT, first block shared"])
def test_a_saved_student_keeps_its_plan(case: str, tmp_path: Path) -> None:
    operator = build(case)[0].eval()
    model = DSNOModel.from_operator(operator, class_frequencies=[0.25] * 4)
    save_pipeline(model, tmp_path / "student")
    pipeline = DSNOPipeline.from_pretrained(tmp_path / "student")
    assert pipeline.model.operator.lifted.plan == operator.lifted.plan
    noise, condition = given()
    with torch.no_grad():
        expected = operator.sample(noise, condition)
    given_noise = {"noise": noise, "class_labels": condition["class_labels"]}
    assert torch.equal(pipeline(**given_noise, output_type="raw").images, expected)


@pytest.mark.parametrize("name", ["slices", "modes"])
def test_slices_and_modes_are_whole_in_every_type(name: str) -> None:
    for two in (2, np.int64(2), 2.0, torch.tensor(2)):
        assert LiftConfig(["*"], **{name: two}) == LiftConfig(["*"], **{name: 2})
    for wrong in (True, 2.5, 0, "2"):
        with pytest.raises(InputError, match=f"number of {name} must be"):
            LiftConfig(["*"], **{name: wrong})


def test_a_student_saved_before_there_were_plans_is_read(tmp_path: Path) -> None:
    operator = build("U-Net")[0].eval()
    save_pipeline(DSNOModel.from_operator(operator), tmp_path / "student")
    path = tmp_path / "student" / "model" / "config.json"
    config = json.loads(path.read_text())
    del config["parts"]
    path.write_text(json.dumps(config))
    model = DSNOPipeline.from_pretrained(tmp_path / "student").model
    noise, condition = given()
    with torch.no_grad():
        assert torch.equal(model.operator(noise, condition), operator(noise, condition))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"shared": "conv_in"}, "wrong entry parts.shared: expected a list of .* found 'conv_in'"),
        ({"shared": [3]}, "wrong entry parts.shared: expected a list of submodules' names"),
        ({"last_site": 1}, "wrong entry parts.last_site: expected a submodule's name, found 1"),
        ({"restores": "yes"}, "wrong entry parts.restores: expected true or false, found 'yes'"),
        ({"fixed": ["conv_in < x"]}, "wrong entry parts.fixed: expected .* such as 'block < 1'"),
        ({"other": []}, "unknown entry parts.other: expected constant, shared"),
    ],
)
def test_a_wrong_saved_plan_is_refused(entry: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        BatchPlan.from_config(entry)


def test_a_saved_plan_is_plain_text() -> None:
    """In the form that every saved student has."""
    saved = {
        "constant": ["conv_in"],
        "shared": [],
        "lifted": ["block"],
        "final": ["head"],
        "last_site": "block",
        "fixed": ["block < 12", "head > 0"],
        "restores": True,
    }
    plan = BatchPlan(
        constant=("conv_in",),
        lifted=("block",),
        final=("head",),
        last_site="block",
        fixed=(FixedTensor("block", "input", 12), FixedTensor("head", "output", 0)),
        restores=True,
    )
    assert BatchPlan.from_config(saved) == plan
    assert json.loads(json.dumps(plan.to_config())) == saved


@pytest.mark.parametrize(
    ("shared", "sentence"),
    [
        (("down_blocks.1",), "'down_blocks.1' runs after time was mixed"),
        (("down_blocks.7",), "down_blocks.7"),
        (("time_proj", "conv_act"), "'conv_act' runs after time was mixed"),
    ],
)
def test_what_cannot_be_shared_is_named(shared: tuple[str, ...], sentence: str) -> None:
    network = unet()
    kind = backbone_of(network)
    with pytest.raises(InputError, match=sentence):
        DSNO.from_teacher(
            denoiser_of(network, Preconditioning(CosineSchedule(), "v_prediction"), SHAPE),
            LiftConfig(kind.sites(network), shared=shared),
            condition={"class_labels": torch.zeros(1, dtype=torch.long)},
        )


def test_levels_are_found_from_the_highest_resolution_down() -> None:
    assert [backbone_of(net).levels(net) for net in (unet(), song(), dit())] == [
        [
            Level(("conv_in", "down_blocks.0"), ("up_blocks.1",)),
            Level(("down_blocks.1",), ("up_blocks.0",)),
        ],
        [
            Level(
                ("enc.16x16_conv", "enc.16x16_block0"),
                (
                    "dec.16x16_up",
                    "dec.16x16_block0",
                    "dec.16x16_block1",
                    "dec.16x16_aux_norm",
                    "dec.16x16_aux_conv",
                ),
            ),
            Level(
                ("enc.8x8_down", "enc.8x8_block0"),
                ("dec.8x8_block0", "dec.8x8_block1"),
            ),
        ],
        [],
    ]


def config_of(make: Callable[[], nn.Module], *changes: str) -> LiftConfig:
    return lift_config(load_recipe("digits", changes), make())


def test_a_recipe_says_which_levels_are_shared_and_lifted() -> None:
    changes = ["student.lift=null", "student.lifted_from=1", "student.shared_levels=1"]
    config = config_of(unet, *changes)
    assert config.shared == ("conv_in", "down_blocks.0")
    assert config.sites == (
        "down_blocks.1.attentions.0",
        "mid_block.attentions.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
    )
    for key in ("lifted_from", "shared_levels"):
        with pytest.raises(
            InputError, match=rf"student\.{key} = 3, but the UNet2DModel has 2 levels"
        ):
            config_of(unet, "student.lift=null", f"student.{key}=3")


# the sites and the shared submodules of each name
NAMED_LIFTS = {
    ("all", unet): (None, []),
    ("all", dit): (None, []),
    ("core", unet): (
        ["down_blocks.1.attentions.0", "mid_block.attentions.0"]
        + ["up_blocks.0.attentions.0", "up_blocks.0.attentions.1"],
        ["conv_in", "down_blocks.0"],
    ),
    ("core", song): (
        ["enc.8x8_block0", "dec.8x8_in0", "dec.8x8_block0", "dec.8x8_block1"],
        ["enc.16x16_conv", "enc.16x16_block0"],
    ),
    ("middle", unet): (["mid_block"], ["conv_in", "down_blocks.0", "down_blocks.1"]),
    ("middle", song): (
        ["dec.8x8_in1"],
        ["enc.16x16_conv", "enc.16x16_block0", "enc.8x8_down", "enc.8x8_block0"],
    ),
}


@pytest.mark.parametrize(("name", "make"), NAMED_LIFTS)
def test_a_named_lift_is_its_sites_and_shared_submodules(
    name: str, make: Callable[[], nn.Module]
) -> None:
    network = make()
    sites, shared = NAMED_LIFTS[name, make]
    found = lift_config(load_recipe("digits", [f"student.lift={name}"]), network)
    assert list(found.sites) == (sites or backbone_of(network).sites(network))
    assert list(found.shared) == shared


@pytest.mark.parametrize(
    ("named", "detailed"),
    [
        (["student.lift=middle"], ["student.sites=[mid_block]", "student.shared_levels=2"]),
        (
            ["student.lift=middle"],
            ["student.sites=[mid_block]", "student.shared=[conv_in, down_blocks.*]"],
        ),
        (["student.lift=core"], ["student.lifted_from=1", "student.shared_levels=1"]),
        (["student.lift=all"], ["student.sites=[default]"]),
        (["student.lift=all"], []),
    ],
)
def test_a_named_lift_is_the_same_student_as_the_detailed_keys(
    named: list[str], detailed: list[str], unet_teacher: Any
) -> None:
    teacher = Teacher(unet_teacher())
    one, other = (
        DSNOModel.from_operator(new_operator(load_recipe("digits", changes), teacher))
        for changes in (named, ["student.lift=null", *detailed])
    )
    assert one.to_json_string() == other.to_json_string()
    weights = other.state_dict()
    assert list(one.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[key]) for key, value in one.state_dict().items())


def test_a_lift_that_a_network_has_no_levels_for_is_refused() -> None:
    with pytest.raises(InputError, match=r"lift = core needs .* several resolutions.*DiT"):
        config_of(dit, "student.lift=core")
    with pytest.raises(InputError, match=r"lift = middle needs .* a middle block.*student\.sites"):
        config_of(dit, "student.lift=middle")
    with pytest.raises(InputError, match=r"a middle block, which this UNet2DModel"):
        config_of(lambda: makers.unet2d(mid_block_type=None), "student.lift=middle")
