"""Files in the formats of other projects, written from their description, with random content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
from safetensors.torch import save_file
from tests.makers import seeded, shake

from dsno.backbones.edm import SongUNet
from dsno.teachers.progressive import _flax_name, _flax_shapes
from dsno.teachers.unet import build_unet


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
    """A flax checkpoint of a U-Net with three levels of width 32 and attention at the second."""
    network = build_unet(
        (3, 32, 32),
        channels=(32, 32, 32),
        attention=(False, True, True),
        norm_num_groups=32,
        resample="resnet",
    )
    tree: dict[str, Any] = {}
    for name, module in network.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        source = _flax_name(name, 3)
        for i, (leaf, shape) in enumerate(_flax_shapes(network, name, module).items()):
            place = tree
            for part in source.split("."):
                place = place.setdefault(part, {})
            values = seeded(shape, i) * (1 if leaf == "scale" else 0.05) + (leaf == "scale")
            place[leaf] = _flax_array(values.numpy())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.msgpack"
    path.write_bytes(msgpack.packb({"step": 3, "ema_params": tree}))
    return path


def _flax_array(values: np.ndarray) -> msgpack.ExtType:
    packed = msgpack.packb((values.shape, values.dtype.name, values.tobytes()))
    return msgpack.ExtType(1, packed)


def lmdb_folder(folder: Path, *, count: int = 6) -> Path:
    """The authors' CIFAR-10 trajectories: (3, 17, 32, 32) float32, noise first."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**26) as environment, environment.begin(write=True) as w:
        w.put(b"length", str(count).encode())
        for i in range(count):
            w.put(str(i).encode(), seeded((3, 17, 32, 32), i).numpy().tobytes())
    return folder
