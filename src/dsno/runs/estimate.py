"""What a collection will take, before any of it is made: evaluations, time, disk, memory."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsno.diffusion.arithmetic import arithmetic, network_in
from dsno.diffusion.conditions import Conditions
from dsno.diffusion.denoisers import DenoiserProtocol, evaluations_per_call, to_device
from dsno.diffusion.solvers import evaluations
from dsno.recipes.schema import Recipe
from dsno.runs.build import conditions_of, guided, imported_teacher, new_teacher, prompt_texts
from dsno.support import distributed, seeds
from dsno.support.environment import peak_memory
from dsno.support.errors import InputError
from dsno.support.threads import MOST, Workers, per_thread
from dsno.teachers.store import DESCRIPTION, Teacher, load_teacher
from dsno.trajectories.prompts import Prompts
from dsno.trajectories.shards import DTYPES

PATIENCE = 1.0
"""Seconds that one measured call may take: larger batches are not tried beyond it."""

REPEATS = 3


@dataclass(frozen=True)
class CollectionEstimate:
    """What a collection will take.

    Attributes:
        teacher: which network was measured, in words.
        trajectories: how many there will be.
        evaluations_per_trajectory: network evaluations, two for each guided one.
        seconds_per_evaluation: of the network, for one trajectory of a batch.
        batch_size: the largest batch of the collection, in trajectories.
        measured_batch: the batch that was measured, in trajectories; smaller if that was too slow.
        trajectory_bytes: noise, states and what conditioned them, without a shard's header.
        prompt_bytes: embeddings of all prompts, stored once; 0 without text.
        shards: files the trajectories will be in.
        memory_bytes: peak of the measurement: of this process on a CPU, on the device otherwise.
        shard_bytes: memory of two shards of each thread, one being filled and one being written, on
            top of that peak.
        device: where it was measured.
        threads: of the processor, that the measurement used.
        precision: of the network, `collect.precision`.
        compiled: whether the network was compiled.
    """

    teacher: str
    trajectories: int
    evaluations_per_trajectory: int
    seconds_per_evaluation: float
    batch_size: int
    measured_batch: int
    trajectory_bytes: int
    prompt_bytes: int
    shards: int
    memory_bytes: int
    shard_bytes: int
    device: str
    threads: int
    precision: str = "exact"
    compiled: bool = False

    @property
    def evaluations(self) -> int:
        """Network evaluations in all."""
        return self.trajectories * self.evaluations_per_trajectory

    @property
    def hours(self) -> float:
        """Time of all evaluations in one process like this one, in hours."""
        return self.evaluations * self.seconds_per_evaluation / 3600

    @property
    def total_bytes(self) -> int:
        """Disk in all."""
        return self.trajectories * self.trajectory_bytes + self.prompt_bytes


def estimate_collection(recipe: Recipe, folder: Path) -> CollectionEstimate:
    """Measure the teacher for a few seconds and compute what the collection will take.

    Nothing is written. The teacher is the run's if it is there already; else the existing one the
    recipe names, or an untrained one of the recipe's architecture, which takes the same time.

    Args:
        recipe: what to collect.
        folder: of the run; need not exist.

    Raises:
        InputError: if the recipe imports its trajectories, or its teacher, data or prompts cannot
            be read.
    """
    spec = recipe.collect
    if spec.count is None:
        raise InputError(
            "The recipe imports its trajectories, so there is no collection to estimate; remove "
            "`collect.source` and give `collect.count` to make them."
        )
    device = distributed.device()
    teacher, where = _teacher(recipe, folder)
    teacher.denoiser.eval()
    denoiser = network_in(
        to_device(guided(recipe, teacher), device), spec.precision, compiled=spec.compile
    )
    texts = prompt_texts(recipe, teacher)
    conditions = conditions_of(recipe, teacher, _one_prompt(recipe, teacher, texts))
    batch_size = min(spec.batch_size, spec.count)
    shards = -(-spec.count // spec.shard_size)
    # each makes a shard of its own; compiled code has one owner
    workers = Workers(device, 1 if spec.compile else min(MOST, shards))
    with arithmetic(spec.precision), workers:
        measured, seconds = measure(denoiser, conditions, batch_size, device, workers=workers)
    per_trajectory = trajectory_bytes(recipe, denoiser.sample_shape, conditions)
    shard = min(spec.shard_size, spec.count)
    embedding = conditions.prompts
    return CollectionEstimate(
        teacher=where,
        trajectories=spec.count,
        evaluations_per_trajectory=(
            evaluations(spec.solver, spec.steps) * evaluations_per_call(denoiser)
        ),
        seconds_per_evaluation=seconds,
        batch_size=batch_size,
        measured_batch=measured,
        trajectory_bytes=per_trajectory,
        prompt_bytes=0 if embedding is None or texts is None else len(texts) * embedding.nbytes,
        shards=shards,
        memory_bytes=peak_memory(device),
        # one is filled while another is written
        shard_bytes=2 * shard * per_trajectory * workers.count,
        device=distributed.device_name(),
        threads=torch.get_num_threads(),
        precision=spec.precision,
        compiled=spec.compile,
    )


def trajectory_bytes(recipe: Recipe, shape: tuple[int, ...], conditions: Conditions) -> int:
    """Bytes of one stored trajectory: noise, states, label, guidance scale, prompt's number."""
    kind = DTYPES[recipe.collect.dtype]
    drawn = conditions.draw(recipe.seed, range(1))
    states = math.prod(shape) * (1 + recipe.collect.slices) * kind.itemsize
    return states + sum(tensor.nbytes for tensor in drawn.values())


@torch.no_grad()
def measure(
    denoiser: DenoiserProtocol,
    conditions: Conditions,
    batch_size: int,
    device: torch.device,
    *,
    workers: Workers | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, float]:
    """Time one network evaluation, in the largest batch that takes at most `PATIENCE` a call.

    Args:
        denoiser: the teacher, on `device`.
        conditions: how conditions are drawn.
        batch_size: the batch wanted; it is reached by doubling from 1.
        device: where to compute.
        workers: threads that compute such a batch each; the calling one alone if None.
        clock: seconds.

    Returns:
        The batch that was measured, and the seconds of one network evaluation of one row: those of
        all batches side by side, over their rows.
    """
    workers = workers or Workers(device, 1)
    own = per_thread(denoiser)
    middle = torch.tensor(0.5, dtype=torch.float64)

    def seconds(rows: int) -> float:
        noise = seeds.item_noise(0, range(rows), denoiser.sample_shape).to(device)
        given = conditions.expand(conditions.draw(0, range(rows)))
        condition = None if given is None else {k: v.to(device) for k, v in given.items()}

        @torch.no_grad()
        def evaluate(_: int) -> float:
            return own()(noise, middle, condition).flatten()[0].item()  # which waits for a GPU

        start = clock()
        workers.map(evaluate, range(workers.count))
        return clock() - start

    rows = 1
    seconds(rows)  # the first call also sets the libraries up
    spent = seconds(rows)
    while rows < batch_size and 2 * spent <= PATIENCE:
        rows = min(2 * rows, batch_size)
        spent = seconds(rows)
    spent = statistics.median(seconds(rows) for _ in range(REPEATS))
    return rows, spent / (rows * workers.count * evaluations_per_call(denoiser))


def estimate_values(estimate: CollectionEstimate) -> dict[str, Any]:
    """The estimate for programs: what it holds, and its totals."""
    return {
        **dataclasses.asdict(estimate),
        "evaluations": estimate.evaluations,
        "hours": estimate.hours,
        "total_bytes": estimate.total_bytes,
    }


def estimate_lines(estimate: CollectionEstimate) -> list[str]:
    """The estimate in words, every line a comment of YAML."""
    e = estimate
    is_cpu, is_whole = e.device == "cpu", e.measured_batch == e.batch_size
    where = f"the cpu with {_plural(e.threads, 'thread')}" if is_cpu else e.device
    shrunk = "" if is_whole else f"; the collection's {e.batch_size:,} were too slow to try"
    how = " compiled" * e.compiled + f" in {e.precision}" * (e.precision != "exact")
    prompts = f", and {_bytes(e.prompt_bytes)} of prompts" if e.prompt_bytes else ""
    lines = [
        f"What this collection takes in all, by a short measurement of {e.teacher}:",
        f"evaluations  {e.evaluations:,} of the network, {e.evaluations_per_trajectory:,} for each "
        f"of {_plural(e.trajectories, 'trajectory', 'trajectories')}",
        f"time         about {_duration(e.hours)} in one process on {where}; N such processes "
        "divide it, a shard at a time",
        f"             ({_figure(e.seconds_per_evaluation * 1e3)} ms an evaluation{how}, in "
        f"batches of {e.measured_batch:,}{shrunk})",
        f"disk         about {_bytes(e.total_bytes)} in {_plural(e.shards, 'shard')}: "
        f"{e.trajectory_bytes:,} bytes a trajectory{prompts}",
        f"memory       {'about' if is_whole else 'at least'} {_bytes(e.memory_bytes)} "
        f"{'of this process' if is_cpu else 'on the device'}, and "
        f"{_bytes(e.shard_bytes)} of main memory for the shards in hand",
    ]
    return [f"# {line}" for line in lines]


def _teacher(recipe: Recipe, folder: Path) -> tuple[Teacher, str]:
    made = folder / "teacher"
    if (made / DESCRIPTION).exists():
        return load_teacher(made), f"the teacher in {made}"
    if recipe.teacher.source:
        return imported_teacher(recipe.teacher), recipe.teacher.source
    return new_teacher(recipe), "an untrained teacher of the same architecture"


def _one_prompt(recipe: Recipe, teacher: Teacher, texts: list[str] | None) -> Prompts | None:
    """The first prompt alone: every embedding has the same size."""
    if texts is None or teacher.text is None:
        return None
    embeddings = teacher.text.encode(texts[:1]).to(DTYPES[recipe.collect.dtype])
    return Prompts(tuple(texts[:1]), embeddings)


def _duration(hours: float) -> str:
    if hours < 2 / 60:
        return f"{_figure(hours * 3600)} seconds"
    return f"{_figure(hours * 60)} minutes" if hours < 2 else f"{_figure(hours)} hours"


def _bytes(count: float) -> str:
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{_figure(count)} {unit}"
    return f"{_figure(count / 1000)} TB"


def _figure(value: float) -> str:
    """Three digits, or more if they are before the point."""
    return f"{value:.3g}" if value < 99.5 else f"{value:,.0f}"


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
