"""Students that differ in one thing, trained for the same time on the same trajectories."""

from __future__ import annotations

import math

from dsno.operator.dsno import DSNO
from dsno.recipes import Recipe
from dsno.runs.build import new_operator
from dsno.teachers.store import Teacher
from dsno.trajectories.dataset import TrajectoryStore
from gpu import quality, trajectories
from gpu.models import trained_teacher
from gpu.student import DISTILLATION, KINDS, fit, named, record_training
from gpu.work import Work

SHARE = 8.0
VARIANTS: dict[str, tuple[str, ...]] = {
    "readout, M = 4": (),
    f"{DISTILLATION}, M = 1": KINDS[DISTILLATION],
    "readout, M = 2": ("student.slices=2",),
    "middle lifted, M = 2": ("student.slices=2", "student.lift=middle"),
    "all lifted, M = 4": ("student.lift=all",),
    "whole trajectory in every step": ("train.trajectory_every=1",),
    "all times weigh alike": ("train.weight=flat",),
    "weight cap 10": ("train.weight_max=10",),
}
"""What each changes in the recipe; the first is what the others are compared with."""
COLLECTING = 0.2
MEASURING = 8
"""Seconds for the distances of one."""


def run(work: Work) -> None:
    """Train and measure one after the other, each compiled not at all: that would take its time."""
    recipe = work.recipe("train.compile=false")
    teacher = trained_teacher(work, recipe)
    store = trajectories.made(work, recipe, teacher, COLLECTING * work.left())
    using = quality.ruler(work, recipe)
    seconds = work.span(1 / len(VARIANTS)) - work.scaled(MEASURING, 0)
    for name, changes in VARIANTS.items():
        work.section(
            name,
            lambda n=name, c=changes: _variant(
                work, work.recipe("train.compile=false", *c), teacher, store, using, n, seconds
            ),
            work.scaled(MEASURING, 0),
        )


def _variant(
    work: Work,
    recipe: Recipe,
    teacher: Teacher,
    store: TrajectoryStore,
    using: quality.Ruler,
    name: str,
    seconds: float,
) -> None:
    trained = fit(
        work,
        recipe,
        teacher,
        store,
        new_operator(recipe, teacher),
        seconds,
        seed=recipe.seed,
        latest=math.inf if work.toy else work.until - MEASURING,
        folder=name.replace(" ", "-"),
    )
    assert isinstance(trained.model, DSNO)
    record_training(work, recipe, teacher, trained, name)
    draws = quality.draws_of(work, recipe, teacher)
    sampler = named(trained.model.to(work.device), name)
    quality.judge(work, using, sampler, draws, recipe.evaluate.samples)
