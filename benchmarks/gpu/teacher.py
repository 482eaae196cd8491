"""A CIFAR-10 teacher, trained until the time is over, from the weights there are."""

from __future__ import annotations

import time
from typing import Any

import torch
from feed import images_per_second
from torch import Tensor, nn

from dsno.diffusion.denoisers import Denoiser
from dsno.diffusion.solvers import solve
from dsno.evaluation.samplers import Draws, teacher_sampler
from dsno.recipes import Recipe
from dsno.runs.build import load_recipe_data
from dsno.teachers.store import Teacher
from dsno.training.batches import teacher_batches
from dsno.training.losses import DenoisingObjective
from dsno.training.prefetch import threads_for
from gpu import quality, weights
from gpu.models import TEACHER, fresh_or_kept_teacher
from gpu.training import train_for
from gpu.work import Work

SHARE = 8.0
LADDER = (
    ("dpm++2m", 16, "karras"),
    ("dpm++2m", 8, "karras"),
    ("unipc", 8, "karras"),
    ("ddim", 16, "uniform"),
    ("dpm++2m", 32, "karras"),
    ("dpm++2m", 16, "uniform"),
)
"""Solvers, steps and spacings, the most wanted first."""
KEEP = 80
"""Seconds for the distances."""
LOOK_EVERY = 1000
"""Steps between weights kept in case the end is not reached."""


def run(work: Work) -> None:
    """Train, keep the weights, measure."""
    recipe = work.recipe()
    teacher, about = fresh_or_kept_teacher(work, recipe)
    work.section("training", lambda: _train(work, recipe, teacher, about))
    work.section("distances", lambda: _distances(work, recipe))


def _train(work: Work, recipe: Recipe, teacher: Teacher, about: dict[str, Any]) -> None:
    spec, data = recipe.teacher, load_recipe_data(recipe)
    assert spec.batch_size is not None
    before = int(about.get("images", 0))
    threads = threads_for(work.device)
    # another visit goes on with other noise and another order
    seed = recipe.seed + before
    batches = teacher_batches(
        data,
        spec.batch_size,
        seed=seed,
        flips=recipe.data is not None and recipe.data.random_flip,
        conditional=spec.conditional,
        label_dropout=spec.label_dropout,
        null_class=teacher.null_class,
    )
    feed = images_per_second(batches, spec.batch_size, work.scaled(2, 0), threads=threads)
    work.record("images made", f"{threads} threads, batches of {spec.batch_size}", feed, "1/s")
    if work.device.type == "cuda":
        teacher.denoiser.network.to(memory_format=torch.channels_last)
    draws = quality.draws_of(work, recipe, teacher)

    def keep(model: nn.Module, images: int) -> None:
        assert isinstance(model, Denoiser)
        said = {"images": before + images, "recipe": recipe.model_dump(mode="json")}
        state = model.network.state_dict()
        weights.save(state, work.out, TEACHER, {**said, **work.origin()})

    every = work.scaled(LOOK_EVERY, 2)
    looks = 0

    def look(model: nn.Module) -> Tensor:
        nonlocal looks
        looks += 1
        keep(model, looks * every * (spec.batch_size or 0))
        noise, condition = draws.batch(range(min(quality.COLUMNS, draws.batch_size)))
        return solve(model, noise, steps=8, condition=condition).states[:, -1]

    trained = train_for(
        work.span(1.0, KEEP),
        DenoisingObjective(teacher.denoiser),
        batches,
        spec.model_copy(update={"log_images_every": every}),
        work.scratch / f"teacher-checkpoints-{seed}",
        latest=work.until - KEEP if not work.toy else float("inf"),
        seed=seed,
        preview=look,
    )
    images = trained.steps * spec.batch_size
    keep(trained.model, images)
    setting = f"{spec.mixed_precision}, {'compiled' if spec.compile else 'eager'}"
    rate = trained.steps_per_second * spec.batch_size
    work.record("training, images a second", setting, rate, "1/s", steps=trained.steps)
    work.record("training, images in all", "", before + images, history=trained.history)
    work.record("training, loss", "last window", trained.history[-1]["loss"])


def _distances(work: Work, recipe: Recipe) -> None:
    teacher, about = fresh_or_kept_teacher(work, recipe)
    denoiser = teacher.denoiser.eval().to(work.device)
    using, draws = quality.ruler(work, recipe), quality.draws_of(work, recipe, teacher)
    count = recipe.evaluate.samples
    quality.floor(work, using, recipe, count)
    shown = _ladder(work, using, denoiser, draws, count, int(about["images"]))
    quality.picture(work, "teacher", shown[:1])


def _ladder(
    work: Work, using: quality.Ruler, denoiser: Denoiser, draws: Draws, count: int, images: int
) -> list[Tensor]:
    made: list[Tensor] = []
    each = 0.0  # seconds of an evaluation
    for method, steps, spacing in LADDER:
        sampler = teacher_sampler(denoiser, method, steps, spacing)
        if made and work.left() < 3 + each * sampler.nfe:
            continue
        begun = time.perf_counter()
        made.append(quality.judge(work, using, sampler, draws, count, images=images))
        each = (time.perf_counter() - begun) / sampler.nfe
    return made
