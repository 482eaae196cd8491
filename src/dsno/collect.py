"""Solve the teacher's ODE for many noises and store the trajectories."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dsno import seeds
from dsno.conditions import UNCONDITIONAL, Conditions
from dsno.console import progress, say
from dsno.denoisers import DenoiserProtocol
from dsno.errors import InputError
from dsno.operator import state_scale
from dsno.schedules import signal_and_noise
from dsno.solvers import solve
from dsno.trajectories import (
    DTYPES,
    MANIFEST,
    Manifest,
    damaged_shards,
    load_manifest,
    save_manifest,
    shard_name,
    write_shard,
)


def collect(
    denoiser: DenoiserProtocol,
    folder: Path,
    manifest: Manifest,
    *,
    batch_size: int,
    conditions: Conditions = UNCONDITIONAL,
) -> Manifest:
    """Make every shard of `manifest` that `folder` does not hold whole yet.

    Item i's noise and label depend on (seed, i) alone, batches are cut inside a shard, and a shard
    is listed only after it is on disk, so an interrupted collection goes on where it was and ends
    with the same bytes.

    Args:
        denoiser: the teacher.
        folder: where the shards go.
        manifest: what to make, `shards` empty.
        batch_size: noises solved at a time.
        conditions: how each trajectory's condition is drawn.

    Returns:
        The manifest with every shard listed.

    Raises:
        InputError: if the folder holds trajectories of another recipe.
    """
    manifest = _resume(folder, manifest)
    done = manifest.count - sum(len(manifest.items(i)) for i in manifest.missing)
    with progress("collecting", manifest.count, done=done, unit="trajectory") as advance:
        for index in manifest.missing:
            parts = []
            items = manifest.items(index)
            for first in range(items.start, items.stop, batch_size):
                batch = range(first, min(first + batch_size, items.stop))
                parts.append(_solve_batch(denoiser, manifest, batch, conditions))
                advance(len(batch))
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            manifest = write_shard(folder, manifest, index, whole)
    return manifest


def _resume(folder: Path, manifest: Manifest) -> Manifest:
    if not (folder / MANIFEST).exists():
        save_manifest(folder, manifest)
        return manifest
    found = load_manifest(folder)
    if found.tag != manifest.tag:
        raise InputError(
            f"{folder} holds trajectories of another recipe; give another --out or delete it."
        )
    if found.prompts_sha256 != manifest.prompts_sha256:
        raise InputError(
            f"{folder} holds trajectories made with other embeddings of the prompts; give another "
            "--out or delete it."
        )
    bad = damaged_shards(folder, found)
    for index, complaint in bad.items():
        say(f"{folder / shard_name(index)} {complaint}; making it again.")
    kept = tuple(s for s in found.shards if s.first // found.shard_size not in bad)
    return Manifest(**{**vars(found), "shards": kept})


def _solve_batch(
    denoiser: DenoiserProtocol,
    manifest: Manifest,
    items: range,
    conditions: Conditions,
) -> dict[str, Tensor]:
    kind = DTYPES[manifest.dtype]
    # Rounded before solving, so that what is stored is exactly what was solved.
    noise = seeds.item_noise(manifest.seed, items, manifest.sample_shape).to(kind)
    drawn = conditions.draw(manifest.seed, items)
    out = {"noise": noise, **drawn}
    solution = solve(
        denoiser,
        noise.float(),
        torch.tensor(manifest.times, dtype=torch.float64),
        method=manifest.solver["method"],
        steps=manifest.solver["steps"],
        spacing=manifest.solver["spacing"],
        condition=conditions.expand(drawn),
    )
    scales = torch.tensor(manifest.scales).reshape(1, -1, *[1] * len(manifest.sample_shape))
    out["states"] = (solution.states / scales).to(kind)
    return out


def scales_at(denoiser: DenoiserProtocol, times: Tensor) -> tuple[float, ...]:
    """What stored states are divided by at each time."""
    alpha, sigma = signal_and_noise(denoiser.schedule, times)
    return tuple(state_scale(alpha, sigma, denoiser.sigma_data).tolist())
