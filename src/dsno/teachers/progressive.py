"""Progressive-distillation checkpoints: the teachers of the paper's authors.

Salimans & Ho (arXiv 2202.00512) published flax checkpoints of their U-Nets: a msgpack map whose
entry `ema_params` is a tree of arrays, `conv_in`, `down_0.block_0`, `mid.attn_1`, `up_2.upsample`,
`norm_out`, ... The network they describe is diffusers' `UNet2DModel` with the right settings, so no
network is defined here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dsno.backbones.misfits import mismatch_sentence
from dsno.backbones.safe_loading import check_sample_shape, sketch
from dsno.backbones.unet import call_unet
from dsno.diffusion.denoisers import Denoiser
from dsno.diffusion.schedules import CosineSchedule
from dsno.support.errors import InputError
from dsno.teachers.flax_checkpoint import read_flax
from dsno.teachers.unet import build_unet
from dsno.teachers.weights import read_tensors, strict_load

if TYPE_CHECKING:
    from diffusers import UNet2DModel

GROUPS = 32  # of every GroupNorm: flax's default
MAX_LEVELS, MAX_BLOCKS = 8, 32


def load_progressive(path: Path, *, clip: bool = True, sample_size: int | None = None) -> Denoiser:
    """Load a progressive-distillation checkpoint as a denoiser.

    Widths, levels, attention, heads and classes are read off the weights. The image size is not in
    them: without `sample_size` three levels without classes mean 32 (CIFAR-10), four mean 64
    (ImageNet). Dropout is not in them either and does not matter to the teacher, but a student
    starts as its copy, so it is the paper's: 0.2 without classes, 0.1 with.

    Args:
        path: the flax msgpack file (whatever its suffix), or the same tree as .safetensors with
            dotted names (`down_0.block_0.conv1.kernel`).
        clip: clip D to [-1, 1], as the authors' sampler does.
        sample_size: height and width of the images, in pixels.

    Returns:
        The network in eval mode without gradients, of float32; with twice the image's channels it
        predicts x_0 and epsilon.

    Raises:
        InputError: if the file cannot be read, or does not hold such a network.
    """
    weights = read_tensors(path) if path.suffix == ".safetensors" else read_flax(path)
    config = _infer(weights, path)
    size = _image_size(config, sample_size, path)
    check_sample_shape((config.in_channels, size, size), str(path))
    network = sketch(
        lambda: build_unet(
            (config.in_channels, size, size),
            channels=config.channels,
            layers_per_block=config.blocks,
            attention=config.attention,
            head_channels=config.head_channels,
            norm_num_groups=GROUPS,
            norm_eps=1e-6,
            resample="resnet",
            dropout=0.1 if config.classes else 0.2,
            num_classes=config.classes,
            out_channels=config.out_channels,
        ),
        len(weights),
        f"network of {path}",
    )
    from diffusers import UNet2DModel  # seconds

    assert isinstance(network, UNet2DModel)
    strict_load(network, _convert(network, weights, path), str(path))
    both = config.out_channels == 2 * config.in_channels
    return Denoiser(
        network.eval().requires_grad_(False),
        CosineSchedule(),
        prediction_type="sample_and_epsilon" if both else "sample",
        sample_shape=(config.in_channels, size, size),
        time_input="angle",
        call=call_unet,
        clip_sample=1.0 if clip else None,
    )


# ---- configuration -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Config:
    """What the weights say of the network.

    Attributes:
        channels: width of each level.
        blocks: residual blocks per level.
        attention: whether each level has attention.
        head_channels: channels per attention head; None for one head everywhere.
        classes: labels it takes; None for none.
        in_channels, out_channels: of the images and of the output.
    """

    channels: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    head_channels: int | None
    classes: int | None
    in_channels: int
    out_channels: int


def _infer(weights: Mapping[str, Tensor], path: Path) -> _Config:
    """The configuration that the names and shapes of the weights imply.

    Raises:
        InputError: if they are not such a U-Net's at all; single weights are compared later.
    """

    def error(what: str) -> InputError:
        return InputError(
            f"The checkpoint {path} is not a progressive-distillation U-Net that can be read: "
            f"{what}."
        )

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in weights:
            raise error(f"it has no weight {name}")
        if weights[name].ndim != dims:
            raise error(f"its weight {name} has {weights[name].ndim} dimensions, not {dims}")
        return tuple(weights[name].shape)

    def numbered(pattern: str) -> list[str]:
        names = (pattern.format(i) for i in itertools.count())
        return list(itertools.takewhile(weights.__contains__, names))

    into, out = shape("conv_in.kernel", 4)[2], shape("conv_out.kernel", 4)[3]
    levels = numbered("down_{}.block_0.conv1.kernel")
    blocks = len(numbered("down_0.block_{}.conv1.kernel"))
    channels = tuple(shape(name, 4)[3] for name in levels)
    if not 0 < len(levels) <= MAX_LEVELS or blocks > MAX_BLOCKS:
        raise error(f"it has {len(levels)} levels of {blocks} blocks")
    if any(c % GROUPS or not c for c in channels):
        raise error(f"its widths {channels} are not multiples of {GROUPS}")
    if out not in (into, 2 * into):
        raise error(
            f"it has {out} output channels for images of {into}, so it predicts neither x nor "
            "x and epsilon"
        )
    heads = {shape(name, 3)[1:] for name in weights if name.endswith(".q.kernel")}
    sizes = {size for _, size in heads}
    if len(sizes) > 1 and {count for count, _ in heads} != {1}:
        raise error(f"its attention heads are of several sizes, {sorted(sizes)}")
    return _Config(
        channels=channels,
        blocks=blocks,
        attention=tuple(f"down_{i}.attn_0.q.kernel" in weights for i in range(len(levels))),
        head_channels=sizes.pop() if len(sizes) == 1 else None,
        classes=shape("class_emb.kernel", 2)[0] if "class_emb.kernel" in weights else None,
        in_channels=into,
        out_channels=out,
    )


def _image_size(config: _Config, asked: int | None, path: Path) -> int:
    levels = len(config.channels)
    usual = 64 if levels == 4 else 32 if levels == 3 and config.classes is None else None
    size = usual if asked is None else asked
    if size is None:
        raise InputError(
            f"The checkpoint {path} does not say how large its images are; give image_size=N."
        )
    if size < 1 or size % 2 ** (levels - 1):
        raise InputError(
            f"The network in {path} has {levels} levels, so its images' size must be a multiple of "
            f"{2 ** (levels - 1)}, not {size}."
        )
    return size


# ---- conversion ----------------------------------------------------------------------------------


def _convert(network: UNet2DModel, weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights under the network's names and in its layout.

    Raises:
        InputError: naming the first three weights that are missing, unknown or of another shape.
    """
    layers = {
        _flax_name(name, len(network.down_blocks)): (name, module)
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    wanted: dict[str, tuple[int, ...]] = {}
    for source, (name, module) in layers.items():
        for leaf, shape in _flax_shapes(network, name, module).items():
            wanted[f"{source}.{leaf}"] = shape
    # Older flax kept broadcast dimensions of size 1 in front: (1, 1, 1, C) for a GroupNorm's scale.
    shared = wanted.keys() & weights.keys()
    wrong = [name for name in shared if _bare(weights[name].shape) != _bare(wanted[name])]
    sentence = mismatch_sentence(
        str(path),
        missing=wanted.keys() - weights.keys(),
        extra=weights.keys() - wanted.keys(),
        misshaped=wrong,
    )
    if sentence:
        raise InputError(sentence)
    converted: dict[str, Tensor] = {}
    for source, (name, module) in layers.items():
        for leaf, tensor in _torch_tensors(source, module, weights).items():
            converted[f"{name}.{leaf}"] = tensor.contiguous()
    return converted


def _bare(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without its leading ones."""
    return tuple(itertools.dropwhile(lambda n: n == 1, shape))


_LEAVES = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time_emb_proj": "temb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_TOP = {
    "conv_in": "conv_in",
    "time_embedding.linear_1": "dense0",
    "time_embedding.linear_2": "dense1",
    "class_embedding": "class_emb",
    "conv_norm_out": "norm_out",
    "conv_out": "conv_out",
}
_LAYERS = {
    "resnets": "block_{}",
    "attentions": "attn_{}",
    "downsamplers": "downsample",
    "upsamplers": "upsample",
}


def _flax_name(name: str, levels: int) -> str:
    """The checkpoint's name of a layer of `UNet2DModel` with that many levels."""
    if name in _TOP:
        return _TOP[name]
    found = re.fullmatch(
        r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(\w+(?:\.0)?)", name
    )
    assert found is not None, name
    side, level, layer, index, leaf = found.groups()
    if side is None:  # the middle counts from 1
        return f"mid.{_LAYERS[layer].format(int(index) + 1)}.{_LEAVES[leaf]}"
    level = int(level) if side == "down" else levels - 1 - int(level)
    return f"{side}_{level}.{_LAYERS[layer].format(index)}.{_LEAVES[leaf]}"


def _flax_shapes(network: nn.Module, name: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's weights in the checkpoint."""
    if isinstance(module, nn.GroupNorm):
        return {"scale": (module.num_channels,), "bias": (module.num_channels,)}
    if isinstance(module, nn.Embedding):
        classes, width = module.weight.shape
        return {"kernel": (classes, width), "bias": (width,)}
    if isinstance(module, nn.Conv2d):
        into, out, size = module.in_channels, module.out_channels, module.kernel_size
        kernel = (into, out) if size == (1, 1) else (*size, into, out)
        return {"kernel": kernel, "bias": (out,)}
    assert isinstance(module, nn.Linear)
    into, out = module.in_features, module.out_features
    attention, _, leaf = name.partition(".to_")
    if not leaf:
        return {"kernel": (into, out), "bias": (out,)}
    heads: Any = network.get_submodule(attention).heads
    if leaf == "out.0":
        return {"kernel": (heads, into // heads, out), "bias": (out,)}
    return {"kernel": (into, heads, out // heads), "bias": (heads, out // heads)}


def _torch_tensors(
    source: str, module: nn.Module, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A layer's weights in torch's layout: kernels are (in, out) and (height, width, in, out)."""
    bias = weights[f"{source}.bias"].flatten()
    if isinstance(module, nn.GroupNorm):
        return {"weight": weights[f"{source}.scale"].flatten(), "bias": bias}
    kernel = weights[f"{source}.kernel"]
    if isinstance(module, nn.Embedding):  # a linear layer on one-hot labels picks a row
        return {"weight": kernel.reshape(module.weight.shape).float() + bias.float()}
    if isinstance(module, nn.Conv2d):
        into, out = module.in_channels, module.out_channels
        kernel = kernel.reshape(*module.kernel_size, into, out).permute(3, 2, 0, 1)
        return {"weight": kernel, "bias": bias}
    assert isinstance(module, nn.Linear)
    return {"weight": kernel.reshape(module.in_features, module.out_features).T, "bias": bias}
