"""Students that differ in one thing, trained for the same time on the same trajectories."""

from __future__ import annotations

import math

from dsno.evaluation.samplers import teacher_sampler
from dsno.operator.dsno import DSNO
from dsno.recipes import Recipe
from dsno.runs.build import new_operator
from dsno.teachers.store import Teacher
from dsno.trajectories.dataset import TrajectoryStore
from gpu import quality, trajectories
from gpu.models import placed, trained_teacher
from gpu.student import DISTILLATION, KINDS, fit, named, record_training
from gpu.work import Work

SHARE = 8.0
Changes = tuple[str, ...]


def variants(levels: int) -> dict[str, Changes]:
    """What each changes in the recipe; the first is what the others are compared with.

    Args:
        levels: resolutions of the network, all of which the middle lift encodes once.
    """
    eighth = "train.trajectory_every=8"  # where a trajectory costs several times a sample
    middle = ("student.lift=middle", eighth)
    not_mixed = ("student.lift=null", "student.sites=[]", f"student.shared_levels={levels}", eighth)
    return {
        "readout, M = 4": (),
        f"{DISTILLATION}, M = 1": KINDS[DISTILLATION],
        f"{DISTILLATION}, told t = 0": (
            *KINDS[DISTILLATION],
            "student.lift=null",
            "student.sites=[]",
        ),
        "readout, whole trajectory in every eighth step": (eighth,),
        "readout, all times weigh alike": ("train.weight=flat",),
        "readout, weight cap 10": ("train.weight_max=10",),
        "middle lifted, M = 4": middle,
        "middle lifted, M = 4, not mixed": not_mixed,
        "middle lifted, M = 4, weight cap 10": (*middle, "train.weight_max=10"),
        "all lifted, M = 4": ("student.lift=all", eighth),
    }


COLLECTING = 0.2
MEASURING = 9
"""Seconds for the distances of one."""


def run(work: Work) -> None:
    """Train and measure one after the other, each compiled not at all: that would take its time."""
    recipe = work.recipe("train.compile=false")
    teacher = trained_teacher(work, recipe)
    store = trajectories.made(work, recipe, teacher, COLLECTING * work.left())
    using, draws = quality.ruler(work, recipe), quality.draws_of(work, recipe, teacher)
    spec = recipe.collect
    target = teacher_sampler(placed(work, teacher), spec.solver, spec.steps, spec.spacing)
    exact = quality.judge(work, using, target, draws, recipe.evaluate.samples)
    assert recipe.teacher.network is not None
    every = variants(len(recipe.teacher.network.channels))
    chosen = {name: changes for name, changes in every.items() if work.wants(name)}
    seconds = work.span(1 / max(len(chosen), 1)) - work.scaled(MEASURING, 0)

    def piece(name: str, changes: Changes) -> None:
        own = work.recipe("train.compile=false", *changes)
        operator = _trained(work, own, teacher, store, name, seconds)
        samples = quality.judge(work, using, named(operator, name), draws, len(exact))
        apart = float((samples - exact).abs().mean())
        work.record("mean difference from the teacher's samples", name, apart)
        quality.coverage(work, using, samples, name)

    for name, changes in chosen.items():
        work.section(name, lambda n=name, c=changes: piece(n, c), work.scaled(MEASURING, 0))


def _trained(
    work: Work,
    recipe: Recipe,
    teacher: Teacher,
    store: TrajectoryStore,
    name: str,
    seconds: float,
) -> DSNO:
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
    return trained.model.to(work.device)
