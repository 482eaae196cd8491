"""Trajectories made on the spot, as many as the time allows."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

from torch import Tensor

from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import DenoiserProtocol
from dsno.diffusion.solvers import evaluations, solve
from dsno.diffusion.time_grids import Spacing, grid_times
from dsno.evaluation.samplers import Draws
from dsno.recipes import Recipe
from dsno.runs.build import conditions_of
from dsno.support.storage import StorageDir
from dsno.teachers.store import Teacher
from dsno.trajectories.collect import collect, scales_at
from dsno.trajectories.dataset import TrajectoryStore
from dsno.trajectories.manifest import Manifest, has_manifest, load_manifest
from gpu import quality
from gpu.models import Half, digest, placed
from gpu.work import Work


def at_times(store: TrajectoryStore, times: Sequence[float]) -> TrajectoryStore:
    """The same trajectories at some of their times, without reading every byte once more."""
    stored, view = store.manifest.times, copy.copy(store)
    view.slots = [min(range(len(stored)), key=lambda i: abs(stored[i] - t)) for t in times]
    return view


def manifest_of(recipe: Recipe, teacher: Teacher, count: int, tag: str) -> Manifest:
    """What to collect by a recipe."""
    spec, denoiser = recipe.collect, teacher.denoiser
    times = grid_times(Spacing(spec.grid, denoiser.schedule), spec.slices)
    return Manifest(
        tag=tag,
        count=count,
        shard_size=min(spec.shard_size, count),
        sample_shape=denoiser.sample_shape,
        times=tuple(times.tolist()),
        scales=scales_at(denoiser, times),
        dtype=spec.dtype,
        seed=recipe.seed,
        num_classes=teacher.num_classes,
        solver={
            "method": spec.solver,
            "steps": spec.steps,
            "spacing": spec.spacing,
            "nfe": evaluations(spec.solver, spec.steps),
        },
    )


def solved_by(
    recipe: Recipe, denoiser: DenoiserProtocol, noise: Tensor, condition: Condition | None
) -> Tensor:
    """The states (batch, M, *shape) that the recipe's solver makes of a batch of noise."""
    spec = recipe.collect
    return solve(
        denoiser,
        noise,
        method=spec.solver,
        steps=spec.steps,
        spacing=spec.spacing,
        condition=condition,
    ).states


def solving_rate(work: Work, denoiser: DenoiserProtocol, recipe: Recipe, draws: Draws) -> float:
    """Trajectories a second, once everything is warm."""
    size = recipe.collect.batch_size
    noise, condition = draws.batch(range(size))

    def solved() -> None:
        float(solved_by(recipe, denoiser, noise, condition).sum())  # until it is done

    solved()
    start = time.perf_counter()
    for _ in range(repeats := work.scaled(3, 1)):
        solved()
    return repeats * size / (time.perf_counter() - start)


def made(work: Work, recipe: Recipe, teacher: Teacher, seconds: float) -> TrajectoryStore:
    """Those of this visit, or new ones: the recipe's number, or what can be made in the time.

    The network computes in bfloat16; the part `collection` measures what difference that makes.
    """
    tag, storage = digest(teacher.denoiser.network), StorageDir(work.scratch / "trajectories")
    if has_manifest(storage):
        found = load_manifest(storage)
        if found.tag == tag and not found.missing:
            return TrajectoryStore(storage)
        storage = StorageDir(work.scratch / f"trajectories-{tag}-{time.time_ns()}")
    spec, half = recipe.collect, Half(placed(work, teacher))
    assert spec.count is not None
    conditions = conditions_of(recipe, teacher, None)
    draws = quality.draws_of(work, recipe, teacher, spec.batch_size)
    rate = solving_rate(work, half, recipe, draws)
    # whole shards; half of the time is the solver's, what else a collection does may take the rest
    shards = min(int(0.5 * rate * seconds), spec.count) // spec.shard_size
    count = max(shards, 1) * spec.shard_size
    start = time.perf_counter()
    manifest = manifest_of(recipe, teacher, count, tag)
    collect(half, storage, manifest, batch_size=spec.batch_size, conditions=conditions)
    spent = time.perf_counter() - start
    work.record("trajectories made", f"{spec.solver}, {spec.steps} steps, bf16", count)
    work.record("trajectories made", "a second, to disk", count / spent, "1/s", solving=rate)
    return TrajectoryStore(storage)
