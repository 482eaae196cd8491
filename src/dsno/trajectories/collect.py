"""Solve the teacher's ODE for many noises and store the trajectories."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dsno.diffusion.arithmetic import arithmetic, network_in
from dsno.diffusion.conditions import UNCONDITIONAL, Conditions
from dsno.diffusion.denoisers import DenoiserProtocol
from dsno.diffusion.denoisers import to_device as placed
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.diffusion.schedules import signal_and_noise, state_scale
from dsno.diffusion.solvers import solve
from dsno.support import distributed, seeds
from dsno.support.console import progress, say
from dsno.support.errors import InputError
from dsno.support.signals import interruption_delayed
from dsno.support.storage import StorageDir, as_storage
from dsno.support.threads import MOST, Workers, per_thread
from dsno.support.transfers import Arrival, runs_ahead, to_device
from dsno.trajectories.foreign import another_recipe, settings
from dsno.trajectories.manifest import (
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
from dsno.trajectories.shards import DTYPES, damaged_shards, write_shard
from dsno.trajectories.writer import Writer

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
    compiled: bool = False,
) -> Manifest:
    """Make every shard of `manifest` that `folder` does not hold whole yet.

    Item i's noise and label depend on (seed, i) alone, batches are cut inside a shard, and a shard
    is listed only after it is on disk, so an interrupted collection goes on where it was and ends
    with the same bytes; in another precision than `exact` it may round otherwise. On a CPU threads
    make shards side by side, and under a launcher every process calls this; each takes the next
    shard when it has finished one. Other jobs may make other `shards` in the same folder at the
    same time.

    Ctrl-C and SIGTERM finish the batch in hand, save the solved part of the shard and stop.

    Args:
        denoiser: the teacher; it is moved to the device.
        folder: where the shards go.
        manifest: what to make, `shards` empty.
        batch_size: noises solved at a time.
        conditions: how each trajectory's condition is drawn.
        shards: which of the shards to make; all if None.
        compiled: whether the teacher's network is compiled, which changes rounding alone.

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
    found = distributed.on_main(lambda: _resume(storage, manifest, wanted, denoiser, compiled))
    todo = [index for index in found.missing if index in wanted]
    teacher = network_in(placed(denoiser, distributed.device()), found.precision, compiled=compiled)
    work = _Work(teacher, storage, found, batch_size, conditions, 1 if compiled else MOST)
    with arithmetic(found.precision), interruption_delayed() as interrupted:
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
    storage: StorageDir,
    manifest: Manifest,
    wanted: range,
    denoiser: DenoiserProtocol,
    compiled: bool,
) -> Manifest:
    """What is there already, without those of the wanted shards that are damaged."""
    if not has_manifest(storage):
        begun = manifest.as_compiled() if compiled else manifest
        save_manifest(storage, begun)
        return begun
    found = load_manifest(storage)
    if found.tag != manifest.tag or found.precision != manifest.precision:
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
    if compiled and found.missing and "compiled" not in found.solver:
        found = found.as_compiled()
        save_manifest(storage, found)
    bad = damaged_shards(storage, found, wanted)
    for index, complaint in bad.items():
        say(f"{storage.at(shard_name(index))} {complaint}; making it again.")
    return forget(storage, bad) if bad else found


class _Shard:
    """A shard whose trajectories arrive in order."""

    def __init__(self, index: int, items: range) -> None:
        self.index, self.items = index, items
        self.filled = self.saved = 0
        self.saved_at = time.monotonic()
        self._tensors: dict[str, Tensor] = {}

    @property
    def is_whole(self) -> bool:
        """Whether every trajectory has arrived."""
        return self.filled == len(self.items)

    def put(self, rows: Mapping[str, Tensor]) -> None:
        """Add the next trajectories."""
        count = len(rows["noise"])
        for name, tensor in rows.items():
            if name not in self._tensors:
                self._tensors[name] = tensor.new_empty(len(self.items), *tensor.shape[1:])
            self._tensors[name][self.filled : self.filled + count] = tensor
        self.filled += count

    def tensors(self) -> dict[str, Tensor]:
        """What has arrived; not changed by what arrives later."""
        return {name: tensor[: self.filled] for name, tensor in self._tensors.items()}


@dataclass(frozen=True)
class _Batch:
    """Trajectories that are being solved."""

    shard: _Shard
    given: dict[str, Tensor]
    states: Arrival


class _Work:
    """One process's share of a collection.

    While the device solves a batch the host draws the next one, and a thread writes the shard
    before; where the host is the device, several threads solve a batch each.
    """

    def __init__(
        self,
        denoiser: DenoiserProtocol,
        storage: StorageDir,
        manifest: Manifest,
        batch_size: int,
        conditions: Conditions,
        most_threads: int,
    ) -> None:
        self.denoiser, self.storage, self.manifest = per_thread(denoiser), storage, manifest
        self.batch_size, self.conditions = batch_size, conditions
        self.device = distributed.device()
        self.times = torch.tensor(manifest.times, dtype=torch.float64)
        self.scales = torch.tensor(manifest.scales, device=self.device).reshape(
            1, -1, *[1] * len(manifest.sample_shape)
        )
        self.most_threads = most_threads
        self.ahead = int(runs_ahead(self.device))

    def make(self, todo: list[int], total: int, interrupted: Callable[[], bool]) -> None:
        """Take shards, one after the other, until every one is taken."""
        solved = distributed.shared_total("trajectories")
        done = shown = total - sum(len(self.manifest.items(i)) for i in todo)
        take = distributed.shared_total("shards")
        one_at_a_time = threading.Lock()
        threads = min(self.most_threads, max(len(todo), 1))  # more would find no shard
        with (
            progress("collecting", total, done=done, unit="trajectory") as advance,
            Workers(self.device, threads) as workers,
        ):

            def add(count: int) -> None:
                nonlocal shown
                with one_at_a_time:
                    now = done + solved(count)
                    advance(now - shown)
                    shown = now

            def is_to_stop() -> bool:
                return interrupted() or workers.has_failed

            def make_some(_: int) -> None:
                self._make(self._batches(todo, take, add, is_to_stop), add, is_to_stop)

            workers.share(make_some, range(workers.count))
            if interrupted():
                raise KeyboardInterrupt

    def _make(
        self,
        batches: Iterator[tuple[_Shard, range]],
        add: Callable[[int], None],
        is_to_stop: Callable[[], bool],
    ) -> None:
        """One thread's share: solve batches that follow one another, and write their shards."""
        with Writer() as to:
            asked: deque[_Batch] = deque()
            shard = None
            for shard, items in batches:
                to.check()
                asked.append(self._solve(shard, items))
                while len(asked) > self.ahead:
                    self._take(asked.popleft(), to, add)
            while asked:
                self._take(asked.popleft(), to, add)
            if is_to_stop() and shard is not None and not shard.is_whole:
                self._save(shard, to)
            to.finish()

    def _batches(
        self,
        todo: list[int],
        take: Callable[[int], int],
        add: Callable[[int], None],
        is_to_stop: Callable[[], bool],
    ) -> Iterator[tuple[_Shard, range]]:
        """What is still to be solved and falls to this thread, until it is to stop."""
        while not is_to_stop() and (number := take(1) - 1) < len(todo):
            index = todo[number]
            shard = _Shard(index, self.manifest.items(index))
            kept = load_partial(self.storage, self.manifest, index)
            if kept is not None:
                shard.put(kept)
                shard.saved = shard.filled
                add(shard.filled)
            stop = shard.items.stop
            for first in range(shard.items.start + shard.filled, stop, self.batch_size):
                if is_to_stop():
                    return
                yield shard, range(first, min(first + self.batch_size, stop))

    def _solve(self, shard: _Shard, items: range) -> _Batch:
        """Ask the device for the trajectories of some items."""
        manifest, dtype = self.manifest, DTYPES[self.manifest.dtype]
        # Rounded before solving, so that what is stored is exactly what was solved.
        noise = seeds.item_noise(manifest.seed, items, manifest.sample_shape).to(dtype)
        drawn = self.conditions.draw(manifest.seed, items)
        condition = self.conditions.expand(drawn)
        solution = solve(
            self.denoiser(),
            to_device(noise, self.device).float(),
            self.times,
            method=str(manifest.solver["method"]),
            steps=int(manifest.solver["steps"]),
            spacing=str(manifest.solver["spacing"]),
            condition=condition and {k: to_device(v, self.device) for k, v in condition.items()},
        )
        states = Arrival((solution.states / self.scales).to(dtype))
        return _Batch(shard, {"noise": noise, **drawn}, states)

    def _take(self, batch: _Batch, to: Writer, add: Callable[[int], None]) -> None:
        """Put a solved batch into its shard, and begin to write what is to be written."""
        shard = batch.shard
        shard.put({**batch.given, "states": batch.states.wait()})
        add(len(batch.given["noise"]))
        if shard.is_whole:
            to.start(functools.partial(self._write, shard.index, shard.tensors()))
        elif time.monotonic() - shard.saved_at > SAVE_EVERY:
            self._save(shard, to)

    def _write(self, index: int, tensors: dict[str, Tensor]) -> None:
        write_shard(self.storage, self.manifest, index, tensors)
        drop_partial(self.storage, index)

    def _save(self, shard: _Shard, to: Writer) -> None:
        """Begin to save what an unfinished shard has, unless that is saved already."""
        if shard.filled > shard.saved:
            to.start(
                functools.partial(
                    save_partial, self.storage, self.manifest, shard.index, shard.tensors()
                )
            )
        shard.saved, shard.saved_at = shard.filled, time.monotonic()


def scales_at(denoiser: DenoiserProtocol, times: Tensor) -> tuple[float, ...]:
    """What stored states are divided by at each time."""
    alpha, sigma = signal_and_noise(denoiser.schedule, times)
    return tuple(state_scale(alpha, sigma, denoiser.sigma_data).tolist())
