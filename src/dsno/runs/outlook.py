"""What a stage will take, said before it starts; the progress bar adds the time it needs."""

from __future__ import annotations

from dsno.diffusion.solvers import evaluations
from dsno.recipes.schema import Curve, Optimisation, Recipe


def outlook(
    stage: str, recipe: Recipe, *, shards: range | None = None, full: bool = False
) -> str | None:
    """The amount of work of a stage in words; None where it is a matter of seconds.

    Args:
        stage: which.
        recipe: of the run.
        shards: of `collect`, those that this job makes; all if None.
        full: whether `evaluate.more_curves` are measured too.
    """
    if stage == "teacher":
        return None if recipe.teacher.source else _training(recipe.teacher, "images")
    if stage == "collect":
        return _collection(recipe, shards)
    if stage == "train":
        return _training(recipe.train, "trajectories")
    if stage == "finish" and recipe.finish is not None:
        return _training(recipe.finish, "samples")
    return _evaluation(recipe, full) if stage == "evaluate" else None


def _training(spec: Optimisation, items: str) -> str:
    return f"{spec.steps:,} steps of {spec.batch_size:,} {items}"


def _collection(recipe: Recipe, shards: range | None) -> str | None:
    spec = recipe.collect
    if spec.source or spec.count is None:  # they are imported
        return None
    size = spec.shard_size
    count = spec.count
    if shards is not None:
        count = max(0, min(shards.stop * size, count) - shards.start * size)
    each = evaluations(spec.solver, spec.steps) * (1 if spec.guidance_scale is None else 2)
    return (
        f"{count:,} trajectories by {spec.solver} with {spec.steps:,} steps, {count * each:,} "
        "network evaluations"
    )


def _evaluation(recipe: Recipe, full: bool) -> str:
    spec = recipe.evaluate
    curves = [*spec.curves, *(spec.more_curves if full else ())]
    curves.append(Curve(solver="ddim", steps=(spec.baseline_steps,)))
    of_teacher = {(c.solver, steps, c.spacing) for c in curves for steps in c.steps}
    of_teacher -= {("dpm++2m", spec.reference_steps, "uniform")}  # the solution, said besides
    of_student = len({1, *(spec.dial or ())}) if recipe.student.slices > 1 else 1
    of_student += recipe.finish is not None  # and what it was before
    most = max(evaluations(solver, steps) for solver, steps, _ in of_teacher)
    return (
        f"{spec.samples:,} samples of each of {len(of_teacher) + of_student:,} samplers, of "
        f"up to {most:,} evaluations, and of the teacher's solution in {spec.reference_steps:,} "
        "steps"
    )
