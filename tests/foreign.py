"""Files in the formats of other projects, written from their description, with random content."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dsno.backbones.edm import SongUNet
from tests.makers import seeded, shake


def edm_export(folder: Path) -> Path:
    """What tools/export_edm.py writes, of a small DDPM++."""
    arguments: dict[str, Any] = {
        "img_resolution": 16,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 16,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [8],
    }
    network = shake(SongUNet(**arguments))
    folder.mkdir(parents=True)
    description = {
        "format": 1,
        "precond": "EDMPrecond",
        "sigma_min": 0,
        "sigma_max": None,
        "sigma_data": 0.5,
        "network": {"class": "SongUNet", "arguments": arguments},
    }
    (folder / "network.json").write_text(json.dumps(description))
    save_file(
        {k: v.contiguous() for k, v in network.state_dict().items()}, folder / "network.safetensors"
    )
    return folder


def progressive_checkpoint(folder: Path) -> Path:
    """A flax checkpoint of a U-Net with three levels of width 32 and attention at two."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = checkpoint(channels=(32, 32, 32), attention=(False, True, True), out=3)
    return write(folder / "checkpoint.msgpack", tree)


def lmdb_folder(folder: Path, *, count: int = 6) -> Path:
    """The authors' CIFAR-10 trajectories: (3, 17, 32, 32) float32, noise first."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**26) as environment, environment.begin(write=True) as w:
        w.put(b"length", str(count).encode())
        for i in range(count):
            w.put(str(i).encode(), seeded((3, 17, 32, 32), i).numpy().tobytes())
    return folder


# ---- progressive distillation: checkpoints as flax writes them, and the network written out ----

Tree = dict[str, dict[str, Any]]

CIFAR: dict[str, Any] = {"channels": (64, 64, 64), "attention": (False, True, True), "out": 3}
IMAGENET: dict[str, Any] = {
    "channels": (64, 64, 128, 192),
    "attention": (False, True, True, True),
    "head_dim": 32,
    "classes": 5,
    "out": 6,
}


def checkpoint(
    channels: tuple[int, ...],
    attention: tuple[bool, ...],
    out: int,
    head_dim: int | None = None,
    classes: int = 0,
    blocks: int = 1,
) -> Tree:
    """A random tree of weights with the published names and shapes."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, fan: float) -> np.ndarray[Any, Any]:
        return (torch.randn(shape, generator=generator) / fan**0.5).numpy()

    def dense(into: int, out: int) -> dict[str, Any]:
        return {"kernel": draw(into, out, fan=into), "bias": draw(out, fan=10)}

    def conv(into: int, out: int) -> dict[str, Any]:
        return {"kernel": draw(3, 3, into, out, fan=9 * into), "bias": draw(out, fan=10)}

    def norm(width: int) -> dict[str, Any]:  # as an older flax wrote it, with leading ones
        scale = 1 + draw(1, 1, 1, width, fan=10)
        return {"scale": scale, "bias": draw(1, 1, 1, width, fan=10)}

    def block(into: int, out: int) -> dict[str, Any]:
        made = {
            "norm1": norm(into),
            "conv1": conv(into, out),
            "temb_proj": dense(width, 2 * out),
            "norm2": norm(out),
            "conv2": conv(out, out),
        }
        return made if into == out else {**made, "nin_shortcut": dense(into, out)}

    def attend(c: int) -> dict[str, Any]:
        size = head_dim or c
        heads = c // size
        made = {
            name: {
                "kernel": draw(c, heads, size, fan=c / 4),
                "bias": draw(heads, size, fan=10),
            }
            for name in "qkv"
        }
        out = {"kernel": draw(heads, size, c, fan=c), "bias": draw(c, fan=10)}
        return {"norm": norm(c), **made, "proj_out": out}

    width, last = 4 * channels[0], len(channels) - 1
    tree: Tree = {"dense0": dense(channels[0], width), "dense1": dense(width, width)}
    if classes:
        tree["class_emb"] = dense(classes, width)
    tree["conv_in"] = conv(3, channels[0])
    skips, c = [channels[0]], channels[0]
    for i, wide in enumerate(channels):
        for j in range(blocks):
            tree[f"down_{i}.block_{j}"], c = block(c, wide), wide
            if attention[i]:
                tree[f"down_{i}.attn_{j}"] = attend(c)
            skips.append(c)
        if i < last:
            tree[f"down_{i}.downsample"] = block(c, c)
            skips.append(c)
    tree |= {"mid.block_1": block(c, c), "mid.attn_1": attend(c), "mid.block_2": block(c, c)}
    for i in range(last, -1, -1):
        for j in range(blocks + 1):
            tree[f"up_{i}.block_{j}"], c = block(c + skips.pop(), channels[i]), channels[i]
            if attention[i]:
                tree[f"up_{i}.attn_{j}"] = attend(c)
        if i:
            tree[f"up_{i}.upsample"] = block(c, c)
    return {**tree, "norm_out": norm(c), "conv_out": conv(c, out)}


def array(value: Any, **changes: Any) -> msgpack.ExtType:
    """An array in flax's encoding; `shape`, `name` or `content` may be made to lie."""
    value = np.ascontiguousarray(value)
    honest = {"shape": value.shape, "name": value.dtype.name, "content": value.tobytes()}
    return msgpack.ExtType(1, msgpack.packb(tuple({**honest, **changes}.values())))


def packed(tree: Any, **others: Any) -> bytes:
    """A training state in flax's encoding."""
    state = {"step": 3, "optimizer": None, "ema_params": tree, **others}
    encoded: bytes = msgpack.packb(state, default=array)
    return encoded


def write(path: Path, tree: Any, **others: Any) -> Path:
    path.write_bytes(packed(tree, **others))
    return path


def reference(
    tree: Tree,
    attention: tuple[bool, ...],
    x: Tensor,
    t: Tensor,
    label: Tensor | None,
    mix: Callable[[Tensor], Tensor] = lambda h: h,
) -> Tensor:
    """The network of Salimans & Ho on a tree of weights, channels last; t is the time input.

    `mix` is called where DSNO mixes time (arXiv 2211.13449, fig. 2), in the order of execution.

    In float64, but for the sinusoids of the time, whose float32 is part of the definition.
    """

    def weight(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    def norm(name: dict[str, Any], x: Tensor) -> Tensor:
        groups = x.reshape(len(x), -1, 32, x.shape[-1] // 32)
        mean = groups.mean((1, 3), keepdim=True)
        var = groups.var((1, 3), keepdim=True, correction=0)
        whole = ((groups - mean) / (var + 1e-6).sqrt()).reshape(x.shape)
        return whole * weight(name["scale"]) + weight(name["bias"])

    def dense(name: dict[str, Any], x: Tensor) -> Tensor:
        return x @ weight(name["kernel"]) + weight(name["bias"])

    def conv(name: dict[str, Any], x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        wide = F.pad(x, (0, 0, 1, 1, 1, 1))
        kernel = weight(name["kernel"])
        near = [wide[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3)]
        return sum(near, weight(name["bias"]))

    def swish(x: Tensor) -> Tensor:
        return x / (1 + (-x).exp())

    def half(x: Tensor) -> Tensor:
        return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4

    def double(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 1).repeat_interleave(2, 2)

    def block(name: str, x: Tensor, resample: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        layer = tree[name]
        h = conv(layer["conv1"], resample(swish(norm(layer["norm1"], x))))
        scale, shift = dense(layer["temb_proj"], swish(emb))[:, None, None].chunk(2, -1)
        h = conv(layer["conv2"], swish(norm(layer["norm2"], h) * (1 + scale) + shift))
        x = resample(x)
        return h + (dense(layer["nin_shortcut"], x) if "nin_shortcut" in layer else x)

    def attend(name: str, x: Tensor) -> Tensor:
        layer, h = tree[name], norm(tree[name]["norm"], x).flatten(1, 2)
        q, k, v = (
            torch.einsum("blc,chd->bhld", h, weight(layer[n]["kernel"]))
            + weight(layer[n]["bias"])[:, None]
            for n in "qkv"
        )
        found = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        kernel, bias = weight(layer["proj_out"]["kernel"]), layer["proj_out"]["bias"]
        mixed = torch.einsum("bhld,hdc->blc", found, kernel) + weight(bias)
        return x + mixed.reshape(x.shape)

    half_width = tree["dense0"]["kernel"].shape[0] // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half_width).float() / (half_width - 1))
    phases = t[:, None] * frequencies
    emb = dense(tree["dense0"], torch.cat([phases.sin(), phases.cos()], 1).double())
    emb = dense(tree["dense1"], swish(emb))
    if label is not None:
        emb = emb + dense(tree["class_emb"], F.one_hot(label, 5).double())

    levels, last = range(len(attention)), len(attention) - 1
    hs = [conv(tree["conv_in"], x.permute(0, 2, 3, 1))]
    for i in levels:
        h = block(f"down_{i}.block_0", hs[-1])
        hs.append(mix(attend(f"down_{i}.attn_0", h) if attention[i] else h))
        if i < last:
            hs.append(block(f"down_{i}.downsample", hs[-1], half))
    h = block("mid.block_2", mix(attend("mid.attn_1", block("mid.block_1", hs[-1]))))
    for i in reversed(levels):
        for j in range(2):
            h = block(f"up_{i}.block_{j}", torch.cat([h, hs.pop()], -1))
            h = mix(attend(f"up_{i}.attn_{j}", h) if attention[i] else h)
        if i:
            h = block(f"up_{i}.upsample", h, double)
    return conv(tree["conv_out"], swish(norm(tree["norm_out"], h))).permute(0, 3, 1, 2)
