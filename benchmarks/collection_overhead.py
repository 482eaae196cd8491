"""What collecting costs over the network's bare evaluations, side by side.

    python benchmarks/collection_overhead.py --out results/collection_overhead.json

A round is one `dsno.trajectories.collect.collect` into a temporary folder, with all that
belongs to it: noise,
preconditioning, the solver's arithmetic, rounding, checksums, fsync. After each of its evaluations
(before it, every second time) the clock of the collection stops while one bare forward pass of the
same network on the same rows is timed, so that both meet the same disturbances. The overhead is
the collection's time over that of as many bare passes, less one.

The ratio of processor times is steadier than that of wall times on a shared machine, but does not
count waiting for the disk; both are given. Steadier still, because small numbers are not taken from
the difference of large ones, is the time of the same collection with a network that does nothing:
the collection's own work, as a share of the bare passes' time. A shard is one batch by default, so
the costs of a shard (file, checksum, manifest) weigh more than with the recipes' thousands.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsno.diffusion.denoisers import Denoiser, Preconditioning
from dsno.diffusion.schedules import CosineSchedule
from dsno.diffusion.solvers import evaluations
from dsno.diffusion.time_grids import Spacing, grid_times
from dsno.runs.stages import environment
from dsno.support import distributed
from dsno.support.files import write_json
from dsno.teachers.store import denoiser_of
from dsno.teachers.unet import build_unet
from dsno.trajectories.collect import collect, scales_at
from dsno.trajectories.manifest import Manifest

SHAPE = (3, 32, 32)
CHANNELS = (64, 128, 128)
SOLVER, SLICES = "dpm++2m", 4
TARGET = 1.05


def now() -> Tensor:
    """Wall and processor seconds, (2,), float64, with nothing left to do on a GPU."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


class Beside:
    """A denoiser that times a bare pass of its network beside each of its own calls."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.schedule, self.sample_shape = inner.schedule, inner.sample_shape
        self.sigma_data = inner.sigma_data
        self.passes: list[Tensor] = []  # wall and processor seconds of each bare pass
        self.stopped = torch.zeros(2, dtype=torch.float64)  # that the collection stood still

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None, /) -> Tensor:
        bare_first = len(self.passes) % 2 == 1
        if bare_first:
            self.bare(x, t)
        denoised = self.inner(x, t, condition)
        if not bare_first:
            self.bare(x, t)
        return denoised

    def bare(self, x: Tensor, t: Tensor) -> None:
        begin = now()
        told = self.inner.preconditioning.c_noise(t).float().to(x.device)
        start = now()
        self.inner.network(x, told)
        end = now()
        self.passes.append(end - start)
        self.stopped += now() - begin


def plan(denoiser: Denoiser, arguments: argparse.Namespace) -> Manifest:
    times = grid_times(Spacing("quadratic", denoiser.schedule), SLICES)
    steps = arguments.steps
    return Manifest(
        tag="benchmark",
        count=arguments.batch * arguments.batches,
        shard_size=arguments.shard or arguments.batch,
        sample_shape=SHAPE,
        times=tuple(times.tolist()),
        scales=scales_at(denoiser, times),
        dtype="float16",
        seed=0,
        num_classes=None,
        solver={
            "method": SOLVER,
            "steps": steps,
            "spacing": "uniform",
            "nfe": evaluations(SOLVER, steps),
        },
    )


def measure(denoiser: Denoiser, manifest: Manifest, batch: int) -> dict[str, Any]:
    """One round: seconds per evaluation of the collection and of the bare passes."""
    beside = Beside(denoiser)
    with tempfile.TemporaryDirectory() as folder:
        start = now()
        collect(beside, Path(folder), manifest, batch_size=batch)
        spent = now() - start - beside.stopped
    passes = torch.stack(beside.passes)
    ratio = spent / passes.sum(0)
    return {
        "collection_seconds_per_evaluation": (spent / len(passes)).tolist(),
        "bare_seconds_per_evaluation": passes.mean(0).tolist(),
        "ratio": {"wall": float(ratio[0]), "processor": float(ratio[1])},
    }


def own_seconds(denoiser: Denoiser, manifest: Manifest, batch: int) -> list[float]:
    """Wall and processor seconds an evaluation of a collection whose network costs nothing."""
    free = Denoiser(
        torch.nn.Linear(1, 1, device=distributed.device()),  # says where to compute
        denoiser.schedule,
        prediction_type=denoiser.preconditioning.prediction_type,
        sample_shape=SHAPE,
        call=lambda network, x, told, condition: x,
    )
    with tempfile.TemporaryDirectory() as folder:
        start = now()
        collect(free, Path(folder), manifest, batch_size=batch)
        spent = now() - start
    calls = math.ceil(manifest.count / batch) * manifest.solver["nfe"]
    return (spent / calls).tolist()


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "src", "benchmarks") else ""
    return git("rev-parse", "HEAD") + changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="noises solved at a time")
    parser.add_argument("--batches", type=int, default=1, help="batches of a round")
    parser.add_argument("--shard", type=int, default=0, help="trajectories of a shard; one batch")
    parser.add_argument("--steps", type=int, default=16, help="of dpm++2m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels", type=int, nargs="+", default=CHANNELS)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    network = build_unet(SHAPE, channels=tuple(arguments.channels), layers_per_block=2).eval()
    meaning = Preconditioning(CosineSchedule(), "v_prediction")
    denoiser = denoiser_of(network, meaning, SHAPE).to(distributed.device())
    manifest = plan(denoiser, arguments)
    with torch.no_grad():
        network(torch.zeros(arguments.batch, *SHAPE, device=network.device), 0)  # warm-up
    rounds = []
    for index in range(arguments.rounds):
        rounds.append(measure(denoiser, manifest, arguments.batch))
        own = own_seconds(denoiser, manifest, arguments.batch)
        rounds[-1]["own_seconds_per_evaluation"] = own
        print(f"round {index + 1}: {json.dumps(rounds[-1])}", flush=True)
    ratio = {clock: spread([r["ratio"][clock] for r in rounds]) for clock in ("processor", "wall")}
    for clock, found in ratio.items():
        print(
            f"collection / bare evaluations, {clock} time: "
            f"{found['median']:.4f} ({found['min']:.4f} .. {found['max']:.4f}), "
            f"asked for at most {TARGET}"
        )
    shares = [
        r["own_seconds_per_evaluation"][1] / r["bare_seconds_per_evaluation"][1] for r in rounds
    ]
    own_share = spread(shares)
    print(
        "the collection's own processor time / bare evaluations: "
        f"{own_share['median']:.4f} ({own_share['min']:.4f} .. {own_share['max']:.4f})"
    )
    if arguments.out:
        record = {
            "command": shlex.join(["python", *sys.argv]),
            "commit": commit(),
            "environment": environment(),
            "network": {
                "channels": list(arguments.channels),
                "parameters": sum(p.numel() for p in network.parameters()),
            },
            "sample_shape": list(SHAPE),
            "solver": manifest.solver,
            "slices": SLICES,
            "batch": arguments.batch,
            "trajectories_per_round": manifest.count,
            "shard_size": manifest.shard_size,
            "dtype": manifest.dtype,
            "target": TARGET,
            "ratio": ratio,
            "own_share": own_share,
            "clocks_of_pairs": ["wall", "processor"],
            "rounds": rounds,
        }
        write_json(arguments.out, record)


if __name__ == "__main__":
    main()
