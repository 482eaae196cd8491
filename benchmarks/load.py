"""A million trajectories collected, verified and read; and a training that reads as it goes.

    python benchmarks/load.py --out results/load.json

The first part makes and reads a million small trajectories of a closed-form teacher, stopping the
collection once on the way: what is looked at is whether memory grows with their number, what they
take on disk over their payload, and whether every one is there. The second trains a CIFAR-10-shaped
student on trajectories on disk and gives the share of time it waited for data, with batches made
ahead (as always) and, side by side, the time that making them takes within a step otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsno.backbones.unet import unet_sites
from dsno.diffusion.analytic import GaussianMixture
from dsno.diffusion.denoisers import Denoiser, Preconditioning
from dsno.diffusion.schedules import CosineSchedule
from dsno.diffusion.time_grids import Spacing, grid_times
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.recipes.schema import Optimisation
from dsno.runs.stages import environment
from dsno.support import seeds
from dsno.support.files import write_json
from dsno.support.storage import StorageDir
from dsno.teachers.store import denoiser_of
from dsno.teachers.unet import build_unet
from dsno.training.losses import TrajectoryObjective
from dsno.training.prefetch import Batch
from dsno.training.trainer import train
from dsno.trajectories.collect import collect, scales_at
from dsno.trajectories.dataset import TrajectoryStore
from dsno.trajectories.manifest import Manifest
from dsno.trajectories.verify import inspect_trajectories

SHAPE, CIFAR, SLICES = (1, 4, 4), (3, 32, 32), 4


def manifest(denoiser: Any, count: int, shard: int, steps: int) -> Manifest:
    times = grid_times(Spacing("quadratic", denoiser.schedule), SLICES)
    return Manifest(
        tag="load",
        count=count,
        shard_size=shard,
        sample_shape=denoiser.sample_shape,
        times=tuple(times.tolist()),
        scales=scales_at(denoiser, times),
        dtype="float16",
        seed=0,
        num_classes=None,
        solver={"method": "ddim", "steps": steps, "spacing": "uniform", "nfe": steps},
    )


def peak() -> int:
    """Peak memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Watched:
    """A teacher that notes the memory and asks once for a stop."""

    def __init__(self, inner: GaussianMixture, calls: int) -> None:
        self.inner, self.calls, self.done = inner, calls, 0
        self.schedule, self.sample_shape = inner.schedule, inner.sample_shape
        self.sigma_data = inner.sigma_data
        self.memory: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None, /) -> Tensor:
        self.done += 1
        if self.done == self.calls // 2:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.done % max(self.calls // 20, 1) == 0:
            self.memory.append(peak())
        return self.inner(x, t, condition)


def million(folder: Path, count: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, *SHAPE, generator=generator)
    mixture = GaussianMixture(means, torch.full((4, 1, 1, 1), 0.3), CosineSchedule())
    batch, steps = 2048, 4
    wanted = manifest(mixture, count, 4096, steps)
    watched = Watched(mixture, -(-count // batch) * steps)
    stops = 0
    while True:
        try:
            made = collect(watched, folder, wanted, batch_size=batch)
            break
        except KeyboardInterrupt:
            stops += 1
    found, findings = inspect_trajectories(StorageDir(folder))
    store = TrajectoryStore(folder)
    rows = seeds.batch_items(0, 0, 20_000, count)
    noise, _, _ = store.rows(rows)
    expected = seeds.item_noise(0, rows[:500].tolist(), SHAPE).half().float()
    payload = 2 * (1 + SLICES) * torch.Size(SHAPE).numel()
    on_disk = sum(p.stat().st_size for p in folder.iterdir())
    return {
        "trajectories": count,
        "shards": len(found.shards),
        "stopped": stops,
        "evaluated_more_than_once": watched.done - watched.calls,
        "findings": len(findings),
        "missing": len(made.missing),
        "bytes_over_payload": on_disk / (count * payload),
        "peak_memory_at_tenths": [m / watched.memory[1] for m in watched.memory[1::2]],
        "rows_read_at_random_are_right": bool(torch.equal(noise[:500], expected)),
    }


class Timed:
    """Batches, and how long each took to make."""

    def __init__(self, store: TrajectoryStore, size: int) -> None:
        self.store, self.size, self.seconds = store, size, list[float]()

    def __call__(self, step: int, places: range) -> Batch:
        start = time.perf_counter()
        rows = seeds.batch_items(0, step, self.size, len(self.store))[places.start : places.stop]
        noise, states, _ = self.store.rows(rows)
        self.seconds.append(time.perf_counter() - start)
        return {"items": rows, "noise": noise, "states": states}


def teacher() -> Denoiser:
    torch.manual_seed(0)
    network = build_unet(CIFAR, channels=(32, 64))
    return denoiser_of(network, Preconditioning(CosineSchedule(), "v_prediction"), CIFAR)


def waiting(folder: Path, count: int, steps: int, batch: int) -> dict[str, Any]:
    """Train on trajectories on disk; shares of time."""
    means = torch.zeros(1, *CIFAR)
    mixture = GaussianMixture(means, torch.ones(1, *CIFAR), CosineSchedule())
    collect(mixture, folder / "data", manifest(mixture, count, 1024, 4), batch_size=256)
    denoiser = teacher()
    config = LiftConfig(unet_sites(denoiser.network), slices=SLICES)
    operator = DSNO.from_teacher(denoiser, config)
    scales = torch.tensor(scales_at(denoiser, operator.times))
    objective = TrajectoryObjective(operator, scales, torch.ones(SLICES))
    batches = Timed(TrajectoryStore(folder / "data"), batch)
    plan = Optimisation(
        steps=steps,
        batch_size=batch,
        learning_rate=1e-4,
        clip_norm=None,
        log_every=max(steps // 4, 1),
        log_with=("tensorboard",),
    )
    start = time.perf_counter()
    train(
        objective, batches, plan, folder / "c", seed=0, tag="load", log_folder=folder / "logs" / "s"
    )
    spent = time.perf_counter() - start
    shares = logged(folder / "logs", "waiting_for_data")
    return {
        "trajectories": count,
        "batch": batch,
        "waiting_share": statistics.median(shares),
        "making_batches_over_training": sum(batches.seconds) / spent,
    }


def logged(folder: Path, name: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: list[float] = []
    for path in sorted(folder.rglob("events*")):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            if tag.endswith(name):
                found += [event.value for event in events.Scalars(tag)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="small trajectories")
    parser.add_argument("--cifar", type=int, default=16_384, help="CIFAR-10-shaped trajectories")
    parser.add_argument("--steps", type=int, default=40, help="of training")
    parser.add_argument("--batch", type=int, default=32, help="of training")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            "collection": million(Path(folder) / "million", arguments.count),
            "training": waiting(Path(folder), arguments.cifar, arguments.steps, arguments.batch),
        }
    print(json.dumps(rows, indent=1))
    if arguments.out:
        command = shlex.join(["python", *sys.argv])
        write_json(arguments.out, {"command": command, "environment": environment(), **rows})


if __name__ == "__main__":
    main()
