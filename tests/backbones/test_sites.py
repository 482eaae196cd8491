"""Where time is mixed: the paper's insertion points in diffusers' U-Nets, and any network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from tests.makers import zero_temporal
from torch import Tensor, nn

from dsno.backbones.unet import call_condition_unet, call_unet, unet_sites
from dsno.diffusion.denoisers import Denoiser
from dsno.diffusion.schedules import CosineSchedule
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig, Lifted, lift
from dsno.operator.temporal import SliceLayout
from dsno.support.errors import InputError

M = 3


def official(width: int, **options: Any) -> UNet2DModel:
    """The paper's CIFAR-10 network (32 groups, 256 channels there), on 8x8 images."""
    settings = {
        "sample_size": 8,
        "in_channels": 2,
        "out_channels": 2,
        "block_out_channels": (width,) * 3,
        "layers_per_block": 3,
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": None,
        "attn_norm_num_groups": 4,
        "norm_num_groups": 4,
        "norm_eps": 1e-6,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
    }
    return UNet2DModel(**{**settings, **options}).eval()


def teacher(network: nn.Module, shape: tuple[int, ...] = (2, 8, 8)) -> Denoiser:
    return Denoiser(
        network,
        CosineSchedule(),
        prediction_type="v_prediction",
        sample_shape=shape,
        call=call_unet,
    )


def lifted_with_large_weights(network: nn.Module, sites: list[str]) -> Lifted:
    made = lift(teacher(network), LiftConfig(sites, slices=M))
    for part in made.temporal.parameters():
        nn.init.normal_(part, std=0.1)
    return made


def written_out(network: UNet2DModel, mix: Any, x: Tensor, t: Tensor) -> Tensor:
    """The paper's network as a page of code: `mix(name, h)` after every block it names."""
    told = network.time_embedding(network.time_proj(t))
    h = network.conv_in(x)
    skips = [h]

    def level(side: str, i: int, block: nn.Module, h: Tensor) -> Tensor:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        for j, (resnet, attention) in enumerate(zip(block.resnets, attentions, strict=True)):
            if side == "up_blocks":
                h = torch.cat([h, skips.pop()], 1)
            h = resnet(h, told)
            if attention is not None:
                h = attention(h)
            kind = "resnets" if attention is None else "attentions"
            h = mix(f"{side}.{i}.{kind}.{j}", h)
            if side == "down_blocks":
                skips.append(h)  # after time was mixed
        return h

    for i, block in enumerate(network.down_blocks):
        h = level("down_blocks", i, block, h)
        if block.downsamplers is not None:
            h = block.downsamplers[0](h, told)
            skips.append(h)
    middle = network.mid_block
    h = middle.attentions[0](middle.resnets[0](h, told))
    h = middle.resnets[1](mix("mid_block.attentions.0", h), told)
    for i, block in enumerate(network.up_blocks):
        h = level("up_blocks", i, block, h)
        if block.upsamplers is not None:
            h = block.upsamplers[0](h, told)
    return network.conv_out(network.conv_act(network.conv_norm_out(h)))


def test_the_papers_network_has_its_22_sites() -> None:
    sites = unet_sites(official(8))
    assert sites == [
        *(f"down_blocks.0.resnets.{i}" for i in range(3)),
        *(f"down_blocks.{b}.attentions.{i}" for b in (1, 2) for i in range(3)),
        "mid_block.attentions.0",
        *(f"up_blocks.{b}.attentions.{i}" for b in (0, 1) for i in range(4)),
        *(f"up_blocks.2.resnets.{i}" for i in range(4)),
    ]
    assert len(sites) == 22


def test_hooks_are_the_papers_placement_written_out() -> None:
    """To the last bit, so time is mixed before each skip is taken, and nowhere else."""
    network = official(8)
    sites = unet_sites(network)
    made = lifted_with_large_weights(network, sites)
    layers = dict(zip(made.config.sites, made.temporal, strict=True))
    x, t = torch.randn(2 * M, 2, 8, 8), torch.rand(2 * M) * 1000
    used: list[str] = []

    def mix(name: str, h: Tensor) -> Tensor:
        used.append(name)
        return layers[name](h, SliceLayout(M))

    with torch.no_grad():
        expected = written_out(network, mix, x, t)
        got = call_unet(made.network, x, t, {})
        assert torch.equal(got, expected)
        assert not torch.allclose(got, call_unet(network, x, t, {}), atol=1e-2)
    assert used == sites


def test_zero_kernels_give_the_original_network_to_the_last_bit() -> None:
    network = official(8)
    made = lift(teacher(network), LiftConfig(unet_sites(network), slices=M))
    zero_temporal(made)
    x, t = torch.randn(2 * M, 2, 8, 8), torch.rand(2 * M) * 1000
    with torch.no_grad():
        assert torch.equal(call_unet(made.network, x, t, {}), call_unet(network, x, t, {}))


def test_a_middle_block_without_attention_mixes_after_its_first_residual_block() -> None:
    sites = unet_sites(official(8, add_attention=False))
    assert len(sites) == 22
    assert [s for s in sites if s.startswith("mid")] == ["mid_block.resnets.0"]


def test_a_network_without_middle_block_has_one_site_less() -> None:
    assert len(unet_sites(official(8, mid_block_type=None))) == 21


# every block type a UNet2DModel can be built of and run, and the last part of its sites' names
DOWN = {
    "DownBlock2D": ["resnets.0", "resnets.1"],
    "ResnetDownsampleBlock2D": ["resnets.0", "resnets.1"],
    "AttnDownBlock2D": ["attentions.0", "attentions.1"],
    "SkipDownBlock2D": ["resnets.0", "resnets.1"],
    "AttnSkipDownBlock2D": ["attentions.0", "attentions.1"],
}
UP = {
    "UpBlock2D": ["resnets.0", "resnets.1", "resnets.2"],
    "ResnetUpsampleBlock2D": ["resnets.0", "resnets.1", "resnets.2"],
    "AttnUpBlock2D": ["attentions.0", "attentions.1", "attentions.2"],
    "SkipUpBlock2D": ["resnets.0", "resnets.1", "resnets.2"],
    "AttnSkipUpBlock2D": ["resnets.0", "resnets.1", "attentions.0"],  # one attention, at the end
}


@pytest.mark.parametrize(
    ("down", "up"),
    [*((d, "UpBlock2D") for d in DOWN), *(("DownBlock2D", u) for u in UP if u != "UpBlock2D")],
)
def test_every_block_type_is_covered_and_runs(down: str, up: str) -> None:
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=2,
        norm_num_groups=8,
        down_block_types=(down, "DownBlock2D"),
        up_block_types=("UpBlock2D", up),
    )
    sites = unet_sites(network)
    assert sites == [
        *(f"down_blocks.0.{s}" for s in DOWN[down]),
        *(f"down_blocks.1.{s}" for s in DOWN["DownBlock2D"]),
        "mid_block.attentions.0",
        *(f"up_blocks.0.{s}" for s in UP["UpBlock2D"]),
        *(f"up_blocks.1.{s}" for s in UP[up]),
    ]
    made = lift(teacher(network, (3, 8, 8)), LiftConfig(sites, slices=M))
    assert sorted(made.config.sites) == sorted(sites)
    with torch.no_grad():
        assert call_unet(made.network, torch.randn(M, 3, 8, 8), torch.rand(M), {}).isfinite().all()


@pytest.mark.parametrize(
    "middle", ["UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn", None]
)
@pytest.mark.parametrize("kind", ["CrossAttn", "SimpleCrossAttn"])
def test_text_blocks_have_time_behind_their_attention(kind: str, middle: str | None) -> None:
    network = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=8,
        attention_head_dim=8,
        down_block_types=(f"{kind}DownBlock2D", "DownBlock2D"),
        mid_block_type=middle,
        up_block_types=("UpBlock2D", f"{kind}UpBlock2D"),
    ).eval()
    sites = unet_sites(network)
    assert sites == [
        "down_blocks.0.attentions.0",
        "down_blocks.1.resnets.0",
        *(["mid_block.attentions.0"] if middle else []),
        *(f"up_blocks.0.resnets.{i}" for i in range(2)),
        *(f"up_blocks.1.attentions.{i}" for i in range(2)),
    ]
    text = {"encoder_hidden_states": torch.randn(1, 5, 8)}
    whole = Denoiser(
        network,
        CosineSchedule(),
        prediction_type="v_prediction",
        sample_shape=(4, 8, 8),
        call=call_condition_unet,
    )
    made = lift(whole, LiftConfig(sites, slices=M), condition=text)
    x, t = torch.randn(1, 4, 8, 8).expand(M, -1, -1, -1), torch.rand(M)
    rows = {"encoder_hidden_states": torch.randn(1, 5, 8).expand(M, -1, -1)}
    with torch.no_grad():
        mixed = call_condition_unet(made.network, x, t, rows)
        zero_temporal(made)
        plain = call_condition_unet(network, x, t, rows)
        zeroed = call_condition_unet(made.network, x, t, rows)
    torch.testing.assert_close(zeroed, plain, atol=2e-6, rtol=1e-5)
    assert (mixed - plain).abs().max() > 1e-3


def test_a_network_of_another_layout_is_told_to_name_its_sites() -> None:
    with pytest.raises(InputError, match=r"no 'down_blocks'.*student\.sites"):
        unet_sites(nn.Linear(2, 2))


def test_a_block_without_residual_blocks_is_told_to_name_its_sites() -> None:
    network = official(8)
    network.down_blocks[0] = nn.Conv2d(8, 8, 1)
    with pytest.raises(InputError, match=r"Conv2d has no residual blocks.*student\.sites"):
        unet_sites(network)


@pytest.mark.parametrize(
    ("classes", "condition", "message"),
    [
        (5, {}, r"class-conditional \(5 classes\): give class labels"),
        (None, {"class_labels": torch.zeros(1, dtype=torch.int64)}, "takes no class labels"),
        (None, {"prompt": torch.zeros(1)}, "'class_labels' only, not 'prompt'"),
    ],
)
def test_a_condition_the_network_does_not_take_is_refused(
    classes: int | None, condition: dict[str, Tensor], message: str
) -> None:
    network = official(8, num_class_embeds=classes)
    with pytest.raises(InputError, match=message):
        call_unet(network, torch.zeros(1, 2, 8, 8), torch.zeros(1), condition)


# ----------------------------------------------------------------------------------- any network


class Signals(nn.Module):
    """A 1-D convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Conv1d(c, 6, 3, padding=1) for c in (2, 6)))
        self.last = nn.Conv1d(6, 2, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.last(self.blocks(x + c_noise[:, None, None] / 1000).tanh())


class Tokens(nn.Module):
    """A transformer over the pixels of an image, channels last; its blocks return tuples."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            y = self.norm(x)
            return x + self.attention(y, y, y, need_weights=False)[0], "beside"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(self.Block() for _ in range(2))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        tokens = self.first(x.flatten(2).mT) + c_noise[:, None, None] / 1000
        for block in self.blocks:
            tokens, note = block(tokens)
            assert note == "beside"
        return self.last(tokens).mT.reshape(x.shape)


@pytest.mark.parametrize(
    ("network", "shape", "patterns", "dim", "sites"),
    [
        (Signals, (2, 9), ["blocks.*"], 1, ["blocks.0", "blocks.1"]),
        (Tokens, (3, 4, 5), ["blocks.?"], -1, ["blocks.0", "blocks.1"]),
        (Tokens, (3, 4, 5), ["first", "blocks.1"], -1, ["first", "blocks.1"]),
    ],
)
def test_any_network_is_lifted_by_names_or_patterns(
    network: type[nn.Module], shape: tuple[int, ...], patterns: list[str], dim: int, sites: Any
) -> None:
    base = network()
    teacher = Denoiser(base, CosineSchedule(), prediction_type="v_prediction", sample_shape=shape)
    made = lift(teacher, LiftConfig(patterns, channel_dim=dim))
    assert list(made.config.sites) == sites
    x, t = torch.randn(8, *shape), torch.rand(8)
    before = base(x, t)
    for part in made.temporal.parameters():
        nn.init.normal_(part, std=0.3)
    changed = made.network(x, t)
    assert not torch.allclose(changed, before, atol=1e-3)
    zero_temporal(made)
    assert torch.equal(made.network(x, t), before)
    assert torch.equal(base(x, t), before)  # the teacher's own network is not touched
    states = DSNO(made, teacher.preconditioning, shape)(torch.randn(2, *shape))
    assert states.shape == (2, 4, *shape)


def test_a_site_that_never_runs_or_has_no_channels_is_refused() -> None:
    class Odd(Signals):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.total = nn.Linear(2, 2), nn.Flatten(0)

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return super().forward(x, c_noise) + self.total(x).mean()

    teacher = Denoiser(Odd(), CosineSchedule(), prediction_type="sample", sample_shape=(2, 8))
    for site, message in (("unused", "never run"), ("total", "not a tensor with channels")):
        with pytest.raises(InputError, match=message):
            lift(teacher, LiftConfig([site]))
