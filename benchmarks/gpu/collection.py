"""Collection in cheaper arithmetic: how much faster, and what difference it makes."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dsno.diffusion.arithmetic import arithmetic, network_in
from dsno.diffusion.denoisers import DenoiserProtocol
from dsno.evaluation.samplers import Draws
from dsno.recipes import Recipe
from dsno.recipes.choices import Arithmetic
from dsno.runs.build import conditions_of
from dsno.teachers.store import Teacher
from dsno.trajectories.collect import collect
from gpu import quality
from gpu.models import placed, trained_teacher
from gpu.trajectories import manifest_of, solved_by, solving_rate
from gpu.work import Work

SHARE = 2.0
PAIRS = 1000
"""Trajectories compared one by one, and as sets."""
SECONDS = 15
"""Of a collection to disk."""

WAYS: dict[str, tuple[Arithmetic, bool]] = {
    "exact": ("exact", False),
    "tf32": ("tf32", False),
    "bf16": ("bf16", False),
    "bf16, compiled": ("bf16", True),
}
"""`collect.precision` and `collect.compile`; the first is what the others are compared with."""


def run(work: Work) -> None:
    """Compare the precisions, then collect to disk as the product does."""
    recipe = work.recipe()
    teacher = trained_teacher(work, recipe)

    def to_disk(*names: str) -> None:
        for name in names:
            work.section(
                f"collection to disk, {name}",
                lambda n=name: _to_disk(work, recipe, teacher, n),
                work.scaled(SECONDS, 0),
            )

    plain = [name for name, (_, compiled) in WAYS.items() if not compiled]
    work.section("differences", lambda: _differences(work, recipe, teacher, plain))
    to_disk("exact", "bf16")
    last = [name for name in WAYS if name not in plain]  # compiling takes longest
    work.section("differences, compiled", lambda: _differences(work, recipe, teacher, last))
    to_disk(*last)


def _differences(work: Work, recipe: Recipe, teacher: Teacher, names: Sequence[str]) -> None:
    """Rates and differences from `exact`, of which two halves say how little a distance can be."""
    using, draws = quality.ruler(work, recipe), quality.draws_of(work, recipe, teacher)
    spec, count = recipe.collect, work.scaled(PAIRS, 16)
    batch = quality.draws_of(work, recipe, teacher, spec.batch_size)
    on_device = placed(work, teacher)
    with arithmetic("exact"):
        exact = _solved(on_device, recipe, draws, count)
    for name in names:
        precision, compiled = WAYS[name]
        denoiser = network_in(on_device, precision, compiled=compiled)
        with arithmetic(precision), torch.no_grad():
            rate = solving_rate(work, denoiser, recipe, batch)
            found = _solved(denoiser, recipe, draws, count)
        work.record("trajectories solved", name, rate, "1/s", batch=spec.batch_size)
        if name == "exact":
            half = count // 2
            for space, distance in using.between(exact[:half], exact[half:]).items():
                work.record(f"Frechet distance, {space}", f"halves of {count:,}", distance)
            continue
        error = (found - exact).abs()
        work.record("difference from exact", f"{name}, mean", float(error.mean()))
        work.record("difference from exact", f"{name}, largest", float(error.max()))
        for space, distance in using.between(found, exact).items():
            work.record(f"Frechet distance, {space}", f"{name} from exact, {count:,}", distance)


def _solved(denoiser: DenoiserProtocol, recipe: Recipe, draws: Draws, count: int) -> Tensor:
    """The last states of so many trajectories, on the CPU."""
    batches = (draws.batch(items) for items in draws.batches(count))
    return torch.cat([solved_by(recipe, denoiser, *batch)[:, -1].cpu() for batch in batches])


def _to_disk(work: Work, recipe: Recipe, teacher: Teacher, name: str) -> None:
    spec, conditions = recipe.collect, conditions_of(recipe, teacher, None)
    precision, compiled = WAYS[name]
    on_device = placed(work, teacher)
    draws = quality.draws_of(work, recipe, teacher, spec.batch_size)
    with arithmetic(precision):
        solver = network_in(on_device, precision, compiled=compiled)
        rate = solving_rate(work, solver, recipe, draws)
    count = work.scaled(max(int(rate * SECONDS / 2), 1), spec.shard_size)
    count = -(-count // spec.batch_size) * spec.batch_size
    manifest = manifest_of(recipe, teacher, count, "collection")
    if precision != "exact":
        solved = {**manifest.solver, "precision": precision}
        manifest = dataclasses.replace(manifest, solver=solved)
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        start = time.perf_counter()
        collect(
            on_device,
            Path(folder),
            manifest,
            batch_size=spec.batch_size,
            conditions=conditions,
            compiled=compiled,
        )
        spent = time.perf_counter() - start
    setting = f"{name}, {count:,} trajectories"
    work.record("collected to disk", setting, count / spent, "1/s")
    work.record("collected to disk / solved", setting, rate * spent / count)
