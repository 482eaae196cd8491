"""Solve the teacher's ODE for many noises and store the trajectories."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from dsno.diffusion.conditions import UNCONDITIONAL, Conditions
from dsno.diffusion.denoisers import DenoiserProtocol, to_device
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.diffusion.schedules import signal_and_noise, state_scale
from dsno.diffusion.solvers import solve
from dsno.support import distributed, seeds
from dsno.support.console import progress, say
from dsno.support.errors import InputError
from dsno.support.signals import interruption_delayed
from dsno.support.storage import StorageDir, as_storage
from dsno.trajectories.foreign import another_recipe, settings
from dsno.trajectories.manifest import (
    DTYPES,
    FORMAT,
    Manifest,
    compact,
    forget,
    has_manifest,
    load_manifest,
    save_manifest,
    shard_name,
)
from dsno.trajectories.partial_shards import drop_partial, load_partial, save_partial
from dsno.trajectories.shards import damaged_shards, write_shard

SAVE_EVERY = 300.0
"""Seconds after which the solved part of an unfinished shard is saved, in case of a crash."""


def collect(
    denoiser: DenoiserProtocol,
    folder: Path | StorageDir,
    manifest: Manifest,
    *,
    batch_size: int,
    conditions: Conditions = UNCONDITIONAL,
    shards: range | None = None,
) -> Manifest:
    """Make every shard of `manifest` that `folder` does not hold whole yet.

    Item i's noise and label depend on (seed, i) alone, batches are cut inside a shard, and a shard
    is listed only after it is on disk, so an interrupted collection goes on where it was and ends
    with the same bytes. Under a launcher every process calls this, and each takes the next shard
    when it has finished one; other jobs may make other `shards` in the same folder at the same
    time.

    Ctrl-C and SIGTERM finish the batch in hand, save the solved part of the shard and stop.

    Args:
        denoiser: the teacher; it is moved to the device.
        folder: where the shards go.
        manifest: what to make, `shards` empty.
        batch_size: noises solved at a time.
        conditions: how each trajectory's condition is drawn.
        shards: which of the shards to make; all if None.

    Returns:
        The manifest with every shard listed that there is.

    Raises:
        InputError: if the folder holds trajectories of another recipe, or ones that an earlier
            version guided in the wrong order, or there are no such shards.
        KeyboardInterrupt: after Ctrl-C or SIGTERM.
        WorkError: if the folder cannot be written.
    """
    storage = as_storage(folder)
    wanted = shards_within(manifest, shards)
    found = distributed.on_main(lambda: _resume(storage, manifest, wanted, denoiser))
    todo = [index for index in found.missing if index in wanted]
    work = _Work(to_device(denoiser, distributed.device()), storage, found, batch_size, conditions)
    with exact_arithmetic(), interruption_delayed() as interrupted:
        work.make(todo, sum(len(manifest.items(i)) for i in wanted), interrupted)
    distributed.wait_for_everyone()
    return distributed.on_main(lambda: compact(storage))


def shards_within(manifest: Manifest, shards: range | None) -> range:
    """The shards to make.

    Raises:
        InputError: if the manifest has no such shards.
    """
    if shards is None:
        return range(manifest.shard_count)
    if not 0 <= shards.start < shards.stop <= manifest.shard_count:
        raise InputError(
            f"There are no shards {shards.start}:{shards.stop}; the collection has "
            f"{manifest.shard_count:,}, so give a range within 0:{manifest.shard_count}."
        )
    return shards


def _resume(
    storage: StorageDir, manifest: Manifest, wanted: range, denoiser: DenoiserProtocol
) -> Manifest:
    """What is there already, without those of the wanted shards that are damaged."""
    if not has_manifest(storage):
        save_manifest(storage, manifest)
        return manifest
    found = load_manifest(storage)
    if found.tag != manifest.tag:
        raise another_recipe(storage, found, settings(manifest))
    if found.prompts_sha256 != manifest.prompts_sha256:
        raise InputError(
            f"{storage} holds trajectories made with other embeddings of the prompts; give another "
            "folder or delete it."
        )
    if found.may_be_clipped_first:
        if isinstance(denoiser, GuidedDenoiser) and denoiser.inner.clips:
            raise InputError(
                f"{storage} holds trajectories of an earlier version, which clipped the teacher's "
                "two predictions before guidance combined them, not after; delete it, or give "
                "another folder, to make them again."
            )
        found = dataclasses.replace(found, format=FORMAT)
        save_manifest(storage, found)
    bad = damaged_shards(storage, found, wanted)
    for index, complaint in bad.items():
        say(f"{storage.at(shard_name(index))} {complaint}; making it again.")
    return forget(storage, bad) if bad else found


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Full float32 and deterministic kernels, so that a trajectory does not depend on chance."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class _Work:
    """One process's share of a collection."""

    def __init__(
        self,
        denoiser: DenoiserProtocol,
        storage: StorageDir,
        manifest: Manifest,
        batch_size: int,
        conditions: Conditions,
    ) -> None:
        self.denoiser, self.storage, self.manifest = denoiser, storage, manifest
        self.batch_size, self.conditions = batch_size, conditions
        self.times = torch.tensor(manifest.times, dtype=torch.float64)
        self.scales = torch.tensor(manifest.scales, device=distributed.device()).reshape(
            1, -1, *[1] * len(manifest.sample_shape)
        )

    def make(self, todo: list[int], total: int, interrupted: Callable[[], bool]) -> None:
        """Take shards, one after the other, until every one is taken."""
        take = distributed.shared_total("shards")
        solved = distributed.shared_total("trajectories")
        done = shown = total - sum(len(self.manifest.items(i)) for i in todo)
        with progress("collecting", total, done=done, unit="trajectory") as advance:

            def add(count: int) -> None:
                nonlocal shown
                now = done + solved(count)
                advance(now - shown)
                shown = now

            while (index := take(1) - 1) < len(todo):
                self._shard(todo[index], add, interrupted)

    def _shard(
        self, index: int, add: Callable[[int], None], interrupted: Callable[[], bool]
    ) -> None:
        items = self.manifest.items(index)
        kept = load_partial(self.storage, self.manifest, index)
        batches = [] if kept is None else [kept]
        solved = 0 if kept is None else len(kept["noise"])
        if solved:
            add(solved)
        saved = time.monotonic()
        for first in range(items.start + solved, items.stop, self.batch_size):
            if interrupted():
                self._stop(index, batches)
            batch = range(first, min(first + self.batch_size, items.stop))
            batches.append(self._solve(batch))
            add(len(batch))
            if time.monotonic() - saved > SAVE_EVERY and batch.stop < items.stop:
                batches = [_joined(batches)]
                save_partial(self.storage, self.manifest, index, batches[0])
                saved = time.monotonic()
        write_shard(self.storage, self.manifest, index, _joined(batches))
        drop_partial(self.storage, index)
        if interrupted():
            raise KeyboardInterrupt

    def _stop(self, index: int, batches: list[dict[str, Tensor]]) -> None:
        if batches:
            save_partial(self.storage, self.manifest, index, _joined(batches))
        raise KeyboardInterrupt

    def _solve(self, items: range) -> dict[str, Tensor]:
        manifest, dtype = self.manifest, DTYPES[self.manifest.dtype]
        # Rounded before solving, so that what is stored is exactly what was solved.
        noise = seeds.item_noise(manifest.seed, items, manifest.sample_shape).to(dtype)
        drawn = self.conditions.draw(manifest.seed, items)
        device = distributed.device()
        solution = solve(
            self.denoiser,
            noise.to(device).float(),
            self.times,
            method=str(manifest.solver["method"]),
            steps=int(manifest.solver["steps"]),
            spacing=str(manifest.solver["spacing"]),
            condition=send_to_device(self.conditions.expand(drawn), device),
        )
        states = (solution.states / self.scales).to(dtype).cpu()
        return {"noise": noise, "states": states, **drawn}


def _joined(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(batches) == 1:
        return batches[0]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def scales_at(denoiser: DenoiserProtocol, times: Tensor) -> tuple[float, ...]:
    """What stored states are divided by at each time."""
    alpha, sigma = signal_and_noise(denoiser.schedule, times)
    return tuple(state_scale(alpha, sigma, denoiser.sigma_data).tolist())
