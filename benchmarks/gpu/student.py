"""A student and plain knowledge distillation, equal time on the same trajectories; its finish."""

from __future__ import annotations

import copy
import math

from torch import Tensor, nn

from dsno.evaluation.samplers import Sampler, dial_sampler, student_sampler, teacher_sampler
from dsno.operator.dsno import DSNO, sampling_cost
from dsno.recipes import Recipe
from dsno.runs.build import conditions_of, new_operator, trajectory_objective
from dsno.teachers.store import Teacher
from dsno.training.batches import student_batches
from dsno.training.matching import MatchingObjective, Pair, matching_batches
from dsno.training.trainer import Preview
from dsno.trajectories.dataset import TrajectoryStore
from gpu import quality, trajectories, weights
from gpu.models import STUDENT, digest, placed, put, trained_teacher
from gpu.training import Trained, train_for
from gpu.work import Work

SHARE = 8.0
OPERATOR, DISTILLATION = "operator", "knowledge distillation"
KINDS: dict[str, tuple[str, ...]] = {
    OPERATOR: (),
    DISTILLATION: ("student.slices=1", "train.trajectory_every=1"),
}
"""What each changes in the recipe. With one head the readout is the teacher's network, told the
time of its input, t = 1."""
FINISHED = (OPERATOR, DISTILLATION)
"""Those that are finished, by distribution matching, alike."""
LOOKED_AT = 5000
"""Samples of a half-finished operator that are measured."""
BASELINES = (
    ("unipc", 8, "karras"),
    ("dpm++2m", 8, "karras"),
    ("ddim", 16, "uniform"),
    ("ddim", 8, "uniform"),
    ("ddim", 4, "uniform"),
    ("dpm++2m", 4, "karras"),
    ("ddim", 1, "uniform"),
    ("dpm++2m", 32, "karras"),
)
"""The teacher's solvers beside them and beside the one that made the trajectories."""
FURTHER = (2, 3, 4)
"""Evaluations of the finished operator with its teacher after it."""
KEEP = 60
"""Seconds for the distances."""
COLLECTING = 0.35
"""Share of the time for making trajectories."""
TRAINING = 0.55
"""Share of what is left then for the trainings; the finishes take the rest."""
CHANGES = ("train.compile=false",)
LOOK_EVERY = 1000


def run(work: Work) -> None:
    """Make trajectories, train both, finish both, keep their weights, measure all.

    Nothing is compiled: both trainings together are shorter than their compilation.
    """
    recipe = work.recipe(*CHANGES)
    teacher = trained_teacher(work, recipe)
    store = trajectories.made(work, recipe, teacher, COLLECTING * (work.left() - KEEP))
    operators: dict[str, DSNO] = {}
    # the same time for both, whatever happens to one
    seconds = work.span(TRAINING / len(KINDS), KEEP)
    for name, changes in KINDS.items():
        own = work.recipe(*CHANGES, *changes)
        work.section(
            name,
            lambda n=name, r=own: operators.update(
                {n: _train(work, r, teacher, store, n, seconds)}
            ),
        )
    seconds = work.span(1 / len(FINISHED), KEEP)
    for name in FINISHED:
        own = work.recipe(*CHANGES, *KINDS[name])
        work.section(
            finished := f"{name}, finished",
            lambda n=name, r=own, f=finished: operators.update(
                {f: _finish(work, r, teacher, operators[n], f, seconds)}
            ),
        )
    work.section("distances", lambda: _distances(work, recipe, teacher, operators))


def started(work: Work, recipe: Recipe, teacher: Teacher, name: str) -> tuple[DSNO, int]:
    """A student with the weights that are kept of one of this teacher, and its images so far."""
    operator = new_operator(recipe, teacher)
    found = weights.load((work.out, *work.weights), file_name(name))
    if found is None or found[1]["teacher"] != digest(teacher.denoiser.network):
        return operator, 0
    put(operator, found[0], name)
    return operator, int(found[1]["images"])


def file_name(name: str) -> str:
    """Of the weights of a kind of student."""
    return f"{STUDENT}-{name.replace(',', '').replace(' ', '-')}"


def fit(
    work: Work,
    recipe: Recipe,
    teacher: Teacher,
    store: TrajectoryStore,
    operator: DSNO,
    seconds: float,
    *,
    seed: int,
    latest: float = math.inf,
    preview: Preview | None = None,
    folder: str,
) -> Trained:
    """Train an operator for some seconds as the recipe says."""
    spec = recipe.train
    assert spec.batch_size is not None
    own = trajectories.at_times(store, operator.times.tolist())
    objective = trajectory_objective(spec, operator, teacher.denoiser)
    batches = student_batches(
        own,
        spec.batch_size,
        seed=seed,
        window=spec.shuffle_shards,
        trajectory_every=spec.trajectory_every,
    )
    every = work.scaled(LOOK_EVERY, 2) if preview is not None else None
    return train_for(
        seconds,
        objective,
        batches,
        spec.model_copy(update={"log_images_every": every}),
        work.scratch / f"{folder}-checkpoints-{seed}",
        latest=latest,
        seed=seed,
        preview=preview,
    )


def _train(
    work: Work, recipe: Recipe, teacher: Teacher, store: TrajectoryStore, name: str, seconds: float
) -> DSNO:
    operator, before = started(work, recipe, teacher, name)
    size = recipe.train.batch_size or 0
    draws, looks = quality.draws_of(work, recipe, teacher), 0

    def keep(model: object, images: int) -> None:
        assert isinstance(model, DSNO)
        about = {
            "images": before + images,
            "teacher": digest(teacher.denoiser.network),
            "recipe": recipe.model_dump(mode="json"),
            **work.origin(),
        }
        weights.save(model.state_dict(), work.out, file_name(name), about)

    def look(model: nn.Module) -> Tensor:
        nonlocal looks
        looks += 1
        keep(model, looks * work.scaled(LOOK_EVERY, 2) * size)
        assert isinstance(model, DSNO)
        return model.sample(*draws.batch(range(1)))

    trained = fit(
        work,
        recipe,
        teacher,
        store,
        operator,
        seconds,
        seed=recipe.seed + before,
        latest=math.inf if work.toy else work.until - KEEP,
        preview=look,
        folder=file_name(name),
    )
    assert isinstance(trained.model, DSNO)
    keep(trained.model, trained.steps * size)
    record_training(work, recipe, teacher, trained, name, before)
    return trained.model


def _finish(
    work: Work, recipe: Recipe, teacher: Teacher, operator: DSNO, name: str, seconds: float
) -> DSNO:
    """Match the distribution of an operator's samples to the teacher's; it stays as it is."""
    spec = recipe.finish
    assert spec is not None
    assert spec.batch_size is not None
    denoiser = teacher.denoiser
    pair = Pair(copy.deepcopy(operator).cpu(), denoiser)
    objective = MatchingObjective(pair, copy.deepcopy(denoiser), fake_rate=spec.fake_rate)
    using, draws = quality.ruler(work, recipe), quality.draws_of(work, recipe, teacher)
    every, looks = work.scaled(spec.checkpoint_every, 2), 0

    def keep(model: DSNO) -> None:
        about = {"teacher": digest(denoiser.network), "recipe": recipe.model_dump(mode="json")}
        weights.save(model.state_dict(), work.out, file_name(name), {**about, **work.origin()})

    def look(model: nn.Module) -> Tensor:
        nonlocal looks
        looks += 1
        assert isinstance(model, Pair)
        keep(model.student)
        count = work.scaled(LOOKED_AT, 16)
        sampler = named(model.student, f"{name}, {looks * every:,} steps")
        return quality.judge(work, using, sampler, draws, count)[: quality.COLUMNS]

    trained = train_for(
        seconds,
        objective,
        matching_batches(
            spec.batch_size,
            denoiser.sample_shape,
            conditions_of(recipe, teacher, None),
            seed=recipe.seed,
            times=spec.times,
            fake_steps=spec.fake_steps,
            fake_first=spec.fake_first,
        ),
        spec.model_copy(update={"log_images_every": every}),
        work.scratch / f"{file_name(name)}-checkpoints",
        latest=math.inf if work.toy else work.until - KEEP,
        seed=recipe.seed,
        preview=look,
    )
    assert isinstance(trained.model, Pair)
    keep(trained.model.student)
    steps = trained.steps_per_second
    work.record("finishing, steps a second", f"{name}, batches of {spec.batch_size}", steps, "1/s")
    work.record("finishing, steps in all", name, trained.steps, history=trained.history)
    return trained.model.student


def record_training(
    work: Work, recipe: Recipe, teacher: Teacher, trained: Trained, name: str, before: int = 0
) -> None:
    """Record how fast and how far a student was trained, and what it costs."""
    size = recipe.train.batch_size or 0
    assert isinstance(trained.model, DSNO)
    work.record("training, trajectories a second", name, trained.steps_per_second * size, "1/s")
    work.record(
        "training, trajectories in all",
        name,
        before + trained.steps * size,
        history=trained.history,
    )
    cost = sampling_cost(trained.model, teacher.denoiser, teacher.example_condition())
    work.record("multiply-adds of a sample, in evaluations", name, cost)


def named(operator: DSNO, name: str) -> Sampler:
    """A student as a sampler with its own name."""
    sampler = student_sampler(operator)
    return Sampler(name, name, sampler.nfe, sampler.spacing, sampler.generate)


def _distances(work: Work, recipe: Recipe, teacher: Teacher, operators: dict[str, DSNO]) -> None:
    using, draws = quality.ruler(work, recipe), quality.draws_of(work, recipe, teacher)
    count = recipe.evaluate.samples
    denoiser = placed(work, teacher)
    spec = recipe.collect
    target = teacher_sampler(denoiser, spec.solver, spec.steps, spec.spacing)
    others = [teacher_sampler(denoiser, *baseline) for baseline in BASELINES]
    if (finished := operators.get(f"{OPERATOR}, finished")) is not None:
        operator = finished.to(work.device).eval()
        others[:0] = [dial_sampler(operator, denoiser, steps) for steps in FURTHER]
    exact = quality.judge(work, using, target, draws, count)
    quality.coverage(work, using, exact, target.label)
    shown = [exact]
    for name, operator in operators.items():
        samples = quality.judge(
            work, using, named(operator.to(work.device).eval(), name), draws, count
        )
        apart = float((samples - exact).abs().mean())
        work.record("mean difference from the teacher's samples", name, apart)
        quality.coverage(work, using, samples, name)
        shown.append(samples)
        quality.picture(work, STUDENT, shown)
    for sampler in others:
        if work.left() > 5:
            made = quality.judge(work, using, sampler, draws, count)
            quality.coverage(work, using, made, f"{sampler.label}, {sampler.nfe} evaluations")
    quality.floor(work, using, recipe, count)
