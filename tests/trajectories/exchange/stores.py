"""Folders of trajectories to export: unconditional, with classes, or with text and guidance."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsno.diffusion.schedules import EDMSchedule, NoiseSchedule, signal_and_noise, state_scale
from dsno.support.storage import StorageDir
from dsno.trajectories.exchange.export import Exported, export_trajectories
from dsno.trajectories.manifest import Manifest, compact, save_manifest
from dsno.trajectories.prompts import Prompts, write_prompts
from dsno.trajectories.shards import write_shard

COUNT = 5
TEXTS = ("a cat", "zwei Hünde", "none")
EDM = EDMSchedule()


def manifest(conditions: str, schedule: NoiseSchedule, **changes: Any) -> Manifest:
    """Five trajectories in shards of two, at the times of four quadratic slices."""
    times = changes.get("times", (0.5625, 0.25, 0.0625, 0.0))
    alpha, sigma = signal_and_noise(schedule, torch.tensor(times))
    is_text = conditions == "text"
    values: dict[str, Any] = {
        "tag": "a recipe",
        "count": COUNT,
        "shard_size": 2,
        "sample_shape": (3, 2, 2),
        "times": times,
        "scales": tuple(state_scale(alpha, sigma, 1.0).tolist()),
        "dtype": "float16",
        "seed": 7,
        "num_classes": 6 if conditions == "classes" else None,
        "solver": {"method": "ddim", "steps": 4, "spacing": "uniform", "nfe": 4},
        "guidance_scale": (1.0, 4.0) if is_text else None,
        "prompts": len(TEXTS) if is_text else None,
    }
    return Manifest(**{**values, **changes})


def tensors(made: Manifest, items: range) -> dict[str, Tensor]:
    """What a shard of it holds."""
    dtype = getattr(torch, made.dtype)
    draw = torch.Generator().manual_seed(items.start)
    states = torch.randn(len(items), 1 + len(made.times), *made.sample_shape, generator=draw).to(
        dtype
    )
    found = {"noise": states[:, 0], "states": states[:, 1:]}
    if made.num_classes is not None:
        found["class_labels"] = torch.tensor(items) * 5 % made.num_classes
    if made.prompts is not None:
        found["prompt_index"] = (torch.tensor(items) % made.prompts).int()
        found["guidance_scale"] = torch.tensor(items) / 3 + 1.1
    return found


def stored(
    folder: Path, conditions: str = "none", schedule: NoiseSchedule = EDM, **changes: Any
) -> Path:
    """A finished folder."""
    made = manifest(conditions, schedule, **changes)
    if made.prompts is not None:
        embeddings = torch.linspace(-1, 1, 3 * 2 * 4).reshape(3, 2, 4)
        prompts = Prompts(TEXTS, embeddings.to(getattr(torch, made.dtype)))
        made = dataclasses.replace(made, prompts_sha256=write_prompts(folder, prompts))
    save_manifest(folder, made)
    for index in range(made.shard_count):
        write_shard(folder, made, index, tensors(made, made.items(index)))
    compact(folder)
    return folder


def exported(
    store: Path, out: Path, layout: str, *, schedule: NoiseSchedule = EDM, **options: Any
) -> Exported:
    """Export a folder."""
    return export_trajectories(
        StorageDir(store), StorageDir(out), layout, schedule=schedule, **options
    )
