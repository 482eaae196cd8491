"""Collection in cheaper arithmetic: how much faster, and what difference it makes."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from dsno.diffusion.denoisers import Denoiser, DenoiserProtocol
from dsno.evaluation.samplers import Draws
from dsno.recipes import Recipe
from dsno.runs.build import conditions_of
from dsno.support import distributed
from dsno.teachers.store import Teacher
from dsno.trajectories.collect import collect, exact_arithmetic
from gpu import quality
from gpu.models import Half, arithmetic, placed, trained_teacher
from gpu.trajectories import manifest_of, solved_by, solving_rate
from gpu.work import Work

SHARE = 2.0
PAIRS = 1000
"""Trajectories compared one by one, and as sets."""
SECONDS = 15
"""Of a collection to disk."""

Arithmetic = tuple[Callable[[], AbstractContextManager[None]], DenoiserProtocol]


def run(work: Work) -> None:
    """Compare the precisions, then collect to disk as the product does."""
    recipe = work.recipe()
    teacher = trained_teacher(work, recipe)
    work.section("differences", lambda: _differences(work, recipe, teacher))
    denoiser = placed(work, teacher)
    for name, kind in (("float32", denoiser), ("bf16", Half(denoiser))):
        work.section(
            f"collection to disk, {name}",
            lambda n=name, d=kind: _to_disk(work, recipe, teacher, n, d),
            work.scaled(SECONDS, 0),
        )


def precisions(exact: Denoiser) -> dict[str, Arithmetic]:
    """By name: what surrounds the solver, and the denoiser it calls. The exact one is first."""
    return {
        "float32": (exact_arithmetic, exact),
        "tf32": (lambda: arithmetic("tf32", distributed.device()), exact),
        "bf16": (nullcontext, Half(exact)),
        "bf16, compiled": (nullcontext, Half(_compiled(exact))),
    }


def _compiled(denoiser: Denoiser) -> Denoiser:
    """The same with the network's call compiled."""
    call, found = denoiser.call, copy.copy(denoiser)
    compiled = torch.compile(lambda *given: call(denoiser.network, *given))
    found.call = lambda _, *given: compiled(*given)
    return found


def _differences(work: Work, recipe: Recipe, teacher: Teacher) -> None:
    using, draws = quality.ruler(work, recipe), quality.draws_of(work, recipe, teacher)
    spec, count = recipe.collect, work.scaled(PAIRS, 16)
    batch = quality.draws_of(work, recipe, teacher, spec.batch_size)
    exact: Tensor | None = None
    for name, (around, denoiser) in precisions(placed(work, teacher)).items():
        with around(), torch.no_grad():
            rate = solving_rate(work, denoiser, recipe, batch)
            found = _solved(denoiser, recipe, draws, count)
        work.record("trajectories solved", name, rate, "1/s", batch=spec.batch_size)
        if exact is None:
            exact = found
            half = count // 2
            for space, distance in using.between(exact[:half], exact[half:]).items():
                work.record(f"Frechet distance, {space}", f"halves of {count:,}", distance)
            continue
        error = (found - exact).abs()
        work.record("difference from float32", f"{name}, mean", float(error.mean()))
        work.record("difference from float32", f"{name}, largest", float(error.max()))
        for space, distance in using.between(found, exact).items():
            work.record(f"Frechet distance, {space}", f"{name} from float32, {count:,}", distance)


def _solved(denoiser: DenoiserProtocol, recipe: Recipe, draws: Draws, count: int) -> Tensor:
    """The last states of so many trajectories, on the CPU."""
    batches = (draws.batch(items) for items in draws.batches(count))
    return torch.cat([solved_by(recipe, denoiser, *batch)[:, -1].cpu() for batch in batches])


def _to_disk(
    work: Work, recipe: Recipe, teacher: Teacher, name: str, denoiser: DenoiserProtocol
) -> None:
    spec, conditions = recipe.collect, conditions_of(recipe, teacher, None)
    draws = quality.draws_of(work, recipe, teacher, spec.batch_size)
    with exact_arithmetic():
        rate = solving_rate(work, denoiser, recipe, draws)
    count = work.scaled(max(int(rate * SECONDS / 2), 1), spec.shard_size)
    count = -(-count // spec.batch_size) * spec.batch_size
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        start = time.perf_counter()
        manifest = manifest_of(recipe, teacher, count, "collection")
        collect(denoiser, Path(folder), manifest, batch_size=spec.batch_size, conditions=conditions)
        spent = time.perf_counter() - start
    setting = f"{name}, {count:,} trajectories"
    work.record("collected to disk", setting, count / spent, "1/s")
    work.record("collected to disk / solved", setting, rate * spent / count)
