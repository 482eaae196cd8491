"""Plan the paper's ImageNet-64 run: hours, nodes and disk; and simulate its queue of shards.

    python benchmarks/plan_imagenet64.py --out results/plan_imagenet64.json \\
        --figure docs/images/shard_queue.png

The work is counted (floating-point operations of the recipe's own networks, bytes of the format);
the rates it is done at are assumptions, each an option. The simulation has workers of unequal
speed, some of them stragglers, that fail now and then, under the two ways `dsno collect` shares its
shards:

* `queue`: one launch (torchrun, accelerate). Who has finished a shard takes the next one. When a
  worker dies the launcher stops all, which save what they solved, and starts all again.
* `ranges`: an array of independent jobs, each with its equal range of shards. When one dies, only
  it starts again.

A worker that dies loses what it solved since it last saved, at most five minutes of work.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import math
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.schedules import CosineSchedule
from dsno.diffusion.solvers import evaluations
from dsno.operator.dsno import DSNO
from dsno.recipes import Recipe, load_recipe
from dsno.runs.build import lift_config
from dsno.support.files import replacing, write_json
from dsno.teachers.store import denoiser_of
from dsno.teachers.unet import build_unet
from dsno.trajectories.collect import SAVE_EVERY

WORKERS = [2**i for i in range(11)]


# --------------------------------------------------------------------------------- the queue


@dataclass(frozen=True)
class Fleet:
    """Workers, and what befalls them.

    Attributes:
        spread: standard deviation of the logarithm of their speeds.
        stragglers: share of workers that are slow.
        slowness: how many times slower those are.
        mtbf: mean time between failures of one worker, hours; infinite for none.
        restart: hours from a failure until work goes on.
        save: hours between saves of an unfinished shard.
    """

    spread: float = 0.0
    stragglers: float = 0.0
    slowness: float = 3.0
    mtbf: float = math.inf
    restart: float = 0.1
    save: float = SAVE_EVERY / 3600

    def paces(self, workers: int, draw: np.random.Generator) -> np.ndarray:
        """Time each worker takes for a unit of work."""
        pace = np.exp(self.spread * draw.standard_normal(workers))
        slow = draw.random(workers) < self.stragglers
        return np.where(slow, self.slowness * pace, pace)


@dataclass(frozen=True)
class Outcome:
    """How it went: hours until the last shard, failures, and hours of work done twice."""

    hours: float
    failures: int
    lost: float


def queue(shards: int, hours: float, workers: int, fleet: Fleet, seed: int) -> Outcome:
    """One launch: the next free worker takes the next shard; a failure stops and restarts all."""
    draw = np.random.default_rng(seed)
    pace = fleet.paces(workers, draw)
    begun = [0.0] * workers  # since when each has been on its shard, less the stops
    ends = [(hours * pace[w], w) for w in range(min(workers, shards))]
    heapq.heapify(ends)
    left = shards - len(ends)
    stopped, failures, lost = 0.0, 0, 0.0  # `now` below is working time, without stops
    failure = _next(draw, fleet.mtbf / workers)
    now = 0.0
    while ends:
        end, worker = ends[0]
        if failure < end:
            now = failure
            at = int(draw.integers(workers))
            failures += 1
            stopped += fleet.restart
            failure = now + _next(draw, fleet.mtbf / workers)
            again = [(e, w) for e, w in ends if w == at]
            if again:
                unsaved = (now - begun[at]) % fleet.save
                lost += unsaved
                ends.remove(again[0])
                heapq.heapify(ends)
                heapq.heappush(ends, (again[0][0] + unsaved, at))
            continue
        now = end
        heapq.heappop(ends)
        if left:
            left -= 1
            begun[worker] = now
            heapq.heappush(ends, (now + hours * pace[worker], worker))
    return Outcome(now + stopped, failures, lost)


def ranges(shards: int, hours: float, workers: int, fleet: Fleet, seed: int) -> Outcome:
    """Independent jobs with equal ranges; a failure stops one of them."""
    draw = np.random.default_rng(seed)
    pace = fleet.paces(workers, draw)
    last, failures, lost = 0.0, 0, 0.0
    for worker in range(workers):
        work = len(range(worker, shards, workers)) * hours * pace[worker]
        now = 0.0
        while True:
            alive = _next(draw, fleet.mtbf)
            if alive >= work:
                now += work
                break
            unsaved = alive % fleet.save
            now += alive + fleet.restart
            work -= alive - unsaved
            failures, lost = failures + 1, lost + unsaved
        last = max(last, now)
    return Outcome(last, failures, lost)


def _next(draw: np.random.Generator, mean: float) -> float:
    return float(draw.exponential(mean)) if math.isfinite(mean) else math.inf


def efficiency(shards: int, hours: float, workers: int, outcome: Outcome) -> float:
    """Time of perfectly shared work by workers of the usual speed, over the time it took."""
    return shards * hours / workers / outcome.hours


# ------------------------------------------------------------------------------------ the plan


def flops(recipe: Recipe, classes: int) -> dict[str, float]:
    """Operations of one evaluation of the teacher and of the student, for one sample each."""
    data, spec = recipe.data, recipe.teacher.network
    assert data is not None
    assert spec is not None
    shape = (data.channels or 3, data.size or 64, data.size or 64)
    condition = {"class_labels": torch.zeros(1, dtype=torch.int64, device="meta")}
    with torch.device("meta"):
        network = build_unet(shape, num_classes=classes, **spec.model_dump()).eval()
        denoiser = denoiser_of(network, Preconditioning(CosineSchedule(), "sample"), shape)
        operator = DSNO.from_teacher(
            denoiser, lift_config(recipe, network), condition=condition
        ).eval()
        x = torch.zeros(1, *shape)
        with torch.no_grad(), FlopCounterMode(display=False) as teacher:
            network(x, torch.zeros(1), **condition)
        with torch.no_grad(), FlopCounterMode(display=False) as student:
            operator(x, condition)
    return {
        "teacher_evaluation": teacher.get_total_flops(),
        "student_evaluation": student.get_total_flops(),
        "parameters": sum(p.numel() for p in operator.parameters()),
        "numbers": math.prod(shape),
    }


def plan(recipe: Recipe, o: argparse.Namespace) -> dict[str, Any]:
    """The run in figures."""
    counted = flops(recipe, o.classes)
    c, t = recipe.collect, recipe.train
    assert c.count is not None
    assert t.steps is not None
    assert t.batch_size is not None
    nfe = evaluations(c.solver, c.steps)
    item = 2 * (1 + c.slices) * counted["numbers"] + 8  # and the label
    collecting = c.count * nfe * counted["teacher_evaluation"]
    training = 3 * t.steps * t.batch_size * counted["student_evaluation"]
    gpus = o.nodes * o.gpus_per_node
    rate = {"collect": o.collect_tflops * 1e12, "train": o.train_tflops * 1e12}
    hours = {
        "collect": collecting / rate["collect"] / 3600,
        "train": training / rate["train"] / 3600,
    }
    return {
        "counted": {
            **counted,
            "evaluations": c.count * nfe,
            "collect_operations": collecting,
            "train_operations": training,
            "bytes_per_trajectory": item,
            "disk_gb": c.count * item / 1e9,
            "checkpoint_gb": 4 * 4 * counted["parameters"] / 1e9,
        },
        "gpu_hours": hours,
        "hours": {k: v / gpus / o.scaling for k, v in hours.items()},
        "gpus": gpus,
        "papers_training_gpu_hours": 64 * 6.5 * 24,
        "papers_sustained_tflops": training / (64 * 6.5 * 24 * 3600) / 1e12,
        "shards": {str(s): -(-c.count // s) for s in o.shard_sizes},
    }


def simulate(count: int, gpu_hours: float, o: argparse.Namespace) -> list[dict[str, Any]]:
    """Efficiency for every number of workers, shard size, policy and kind of fleet."""
    even = Fleet(spread=o.spread)
    slow = dataclasses.replace(even, stragglers=o.stragglers, slowness=o.slowness)
    fleets = {
        "even": even,
        "stragglers": slow,
        "stragglers and failures": dataclasses.replace(slow, mtbf=o.mtbf, restart=o.restart),
    }
    rows = []
    for size in o.shard_sizes:
        shards = -(-count // size)
        hours = gpu_hours / shards
        for name, fleet in fleets.items():
            for policy in (queue, ranges):
                for workers in WORKERS:
                    made = [policy(shards, hours, workers, fleet, s) for s in range(o.seeds)]
                    rows.append(
                        {
                            "shard_size": size,
                            "fleet": name,
                            "policy": policy.__name__,
                            "workers": workers,
                            "efficiency": statistics.mean(
                                efficiency(shards, hours, workers, m) for m in made
                            ),
                            "hours": statistics.mean(m.hours for m in made),
                            "failures": statistics.mean(m.failures for m in made),
                            "lost_share": statistics.mean(m.lost for m in made) / gpu_hours,
                        }
                    )
    return rows


def draw_figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Efficiency against workers: a panel a fleet, a colour a policy, a line style a shard size."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from dsno.evaluation.figures import COLOURS, STYLE

    fleets = list(dict.fromkeys(r["fleet"] for r in rows))
    sizes = sorted({r["shard_size"] for r in rows})
    colours = {"queue": COLOURS["dsno"], "ranges": COLOURS["ddim"]}
    titles = {"queue": "one launch, a queue", "ranges": "an array of jobs"}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(fleets), sharey=True)
        for panel, fleet in zip(panels, fleets, strict=True):
            for policy, colour in colours.items():
                for size, style in zip(sizes, ("-", "--"), strict=False):
                    found = [
                        r
                        for r in rows
                        if (r["fleet"], r["policy"], r["shard_size"]) == (fleet, policy, size)
                    ]
                    panel.plot(
                        [r["workers"] for r in found],
                        [100 * r["efficiency"] for r in found],
                        style,
                        color=colour,
                        label=f"{titles[policy]}, shards of {size:,}",
                    )
            panel.set_xscale("log", base=2)
            panel.set_xticks(WORKERS[::2], [f"{w:,}" for w in WORKERS[::2]])
            panel.minorticks_off()
            panel.set_ylim(0, 105)
            panel.set_title(fleet)
            panel.set_xlabel("GPUs")
        panels[0].set_ylabel("work / (GPUs x time), %")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--recipe", default="imagenet64")
    add("--classes", type=int, default=1000)
    add("--nodes", type=int, default=8)
    add("--gpus-per-node", type=int, default=8)
    add("--collect-tflops", type=float, default=8.0, help="sustained by a GPU in float32")
    add("--train-tflops", type=float, default=60.0, help="sustained by a GPU in bf16")
    add("--scaling", type=float, default=0.9, help="share of that kept on all GPUs together")
    add("--shard-sizes", type=int, nargs="+", default=[512, 4096])
    add("--spread", type=float, default=0.03, help="of speeds")
    add("--stragglers", type=float, default=0.02, help="share of workers")
    add("--slowness", type=float, default=3.0, help="of stragglers")
    add("--mtbf", type=float, default=720.0, help="hours between failures of one GPU's process")
    add("--restart", type=float, default=0.1, help="hours")
    add("--seeds", type=int, default=40)
    add("--out", type=Path, help="JSON file to write")
    add("--figure", type=Path, help="PNG file to write")
    o = parser.parse_args()
    recipe = load_recipe(o.recipe)
    found = plan(recipe, o)
    assert recipe.collect.count is not None
    rows = simulate(recipe.collect.count, found["gpu_hours"]["collect"], o)
    print(json.dumps(found, indent=1))
    for row in rows:
        if row["workers"] in (1, 64, 1024):
            print(json.dumps(row))
    if o.figure:
        draw_figure(rows, o.figure)
    if o.out:
        assumed = {k: str(v) if isinstance(v, Path) else v for k, v in vars(o).items()}
        command = shlex.join(["python", *sys.argv])
        write_json(o.out, {"command": command, "assumed": assumed, "plan": found, "queue": rows})


if __name__ == "__main__":
    main()
