"""What each part of the method is worth: students that differ in one thing, on equal terms.

    python benchmarks/ablations.py make --seeds 0 1 2 --out runs/ablations      (hours; goes on)
    python benchmarks/ablations.py make --terms steps --experiments lift slices
    python benchmarks/ablations.py show

For each seed a teacher is trained and trajectories are made once; every student learns from them,
with as many multiply-adds in training as the recipe's own student in `--steps` steps (`--terms
time`), or in as many steps (`--terms steps`). One evaluation of each is measured: Frechet distance
to the real data, precision and recall, and how far its samples are from the teacher's exact ones of
the same noise. A line of `--to` is a student; what is there is not made again. The recipe is
`digits`, or another with labels that trains its teacher (`--recipe`, changed by `--set`).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from ablation_experiments import EXPERIMENTS, FRESH, Changes
from ablation_tables import lines, show, told
from gpu.trajectories import at_times, manifest_of
from gpu.visit import commit
from safetensors.torch import load_file, save_file
from step_cost import step_cost
from torch import Tensor

from dsno.cli import main as dsno
from dsno.diffusion.solvers import solve
from dsno.evaluation.reference import Reference, build_reference
from dsno.evaluation.samplers import Draws, draw, student_sampler
from dsno.operator.dsno import DSNO
from dsno.recipes import Recipe, load_recipe
from dsno.recipes.schema import Train
from dsno.runs.build import (
    conditions_of,
    load_recipe_data,
    new_operator,
    new_teacher,
    trajectory_objective,
)
from dsno.support.files import fingerprint, replacing
from dsno.support.storage import StorageDir
from dsno.teachers.store import Teacher, load_teacher
from dsno.training.batches import student_batches
from dsno.training.losses import Objective
from dsno.training.trainer import Batches, train
from dsno.trajectories.collect import collect
from dsno.trajectories.dataset import TrajectoryStore

PAIRED, SOLUTION_STEPS = 1000, 64
"""Samples compared one by one with the teacher's, and how exactly those are solved."""


@dataclass(frozen=True)
class Task:
    """One student: the recipe with changes, a seed, and how long it is trained.

    Attributes:
        source: the recipe, a name or a file.
        given: changes for all.
        changes: of the variant.
        seed: of everything.
        steps: of the recipe's own student.
        terms: `time` or `steps`, what is equal.
        out: folder of teachers and trajectories.
    """

    source: str
    given: Changes
    changes: Changes
    seed: int
    steps: int
    terms: str
    out: Path

    @property
    def key(self) -> dict[str, Any]:
        """What distinguishes it in the file of results."""
        own = {name: getattr(self, name) for name in ("source", "seed", "steps", "terms")}
        return {**own, "given": told(self.given), "changes": sorted(self.changes)}

    def recipe(self, *, own: bool = True) -> Recipe:
        """The recipe, with the variant's changes or without."""
        changes = [text for text in self.changes if own and text != FRESH]
        usual = (f"seed={self.seed}", "train.cpu_replicas=1", "train.trajectory_every=1")
        return load_recipe(self.source, [*usual, *self.given, *changes])

    @property
    def base(self) -> Path:
        """Folder of the seed's run."""
        return self.out / f"seed-{self.seed}"


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    """All students, seed by seed, each once."""
    names = options.experiments or list(EXPERIMENTS)
    for seed in options.seeds:
        every = itertools.chain.from_iterable(EXPERIMENTS[name].variants.values() for name in names)
        for changes in dict.fromkeys(tuple(sorted(c)) for c in every):
            yield Task(
                options.recipe,
                tuple(options.set),
                changes,
                seed,
                options.steps,
                options.terms,
                options.out,
            )


# ---- making --------------------------------------------------------------------------------------


def trajectories(task: Task, recipe: Recipe, teacher: Teacher) -> TrajectoryStore:
    """Of the seed's teacher, as the recipe has them collected; made once."""
    spec = recipe.collect
    assert spec.count is not None
    # the same for all that have them collected alike
    name = f"trajectories-{fingerprint(spec.model_dump(mode='json'))}"
    storage, done = StorageDir(task.base / name), task.base / f"{name}.done"
    if not done.exists():
        manifest = manifest_of(recipe, teacher, spec.count, name)
        conditions = conditions_of(recipe, teacher, None)
        collect(
            teacher.denoiser, storage, manifest, batch_size=spec.batch_size, conditions=conditions
        )
        done.touch()
    return TrajectoryStore(storage)


def collected(task: Task) -> None:
    """What several students of a seed share: a task of its own, so that none makes it twice."""
    torch.set_num_threads(1)
    trajectories(task, task.recipe(), load_teacher(task.base / "teacher"))


def student(task: Task, recipe: Recipe, teacher: Teacher, store: TrajectoryStore) -> DSNO:
    """Trained."""
    spec = recipe.train
    if FRESH in task.changes:
        untrained = new_teacher(recipe).denoiser
        operator = new_operator(recipe, dataclasses.replace(teacher, denoiser=untrained))
    else:
        operator = new_operator(recipe, teacher)
    objective = trajectory_objective(spec, operator, teacher.denoiser)
    assert spec.batch_size is not None
    batches = student_batches(
        at_times(store, operator.times.tolist()),
        spec.batch_size,
        seed=task.seed,
        window=spec.shuffle_shards,
        trajectory_every=spec.trajectory_every,
    )
    return trained(task, spec, objective, batches, fingerprint(task.key))


def trained(task: Task, spec: Train, objective: Objective, batches: Batches, mark: str) -> DSNO:
    """The averaged student of a training, whose checkpoints are kept under its mark."""
    folder = task.out / "checkpoints" / mark
    model, _ = train(objective, batches, spec, folder, seed=task.seed, tag=mark, label=mark)
    assert isinstance(model, DSNO)
    return model


def solutions(task: Task, teacher: Teacher, draws: Draws) -> Tensor:
    """The teacher's exact samples, (PAIRED, C, H, W); made once a seed."""
    path = task.base / f"solutions-{PAIRED}-{SOLUTION_STEPS}.safetensors"
    if not path.exists():
        parts = [
            solve(teacher.denoiser, x, method="dpm++2m", steps=SOLUTION_STEPS, condition=condition)
            for x, condition in (draws.batch(items) for items in draws.batches(PAIRED))
        ]
        with replacing(path) as temporary:
            save_file({"samples": torch.cat([part.states[:, -1] for part in parts])}, temporary)
    return load_file(path)["samples"]


@functools.cache
def reference_of(source: str, given: Changes, seed: int) -> Reference:
    """What samples are compared with: no variant changes it, and it takes long to make."""
    recipe = Task(source, given, (), seed, 0, "", Path()).recipe()
    spec = recipe.evaluate
    return build_reference(load_recipe_data(recipe), spec.features, seed=spec.classifier_seed)


def make(task: Task) -> dict[str, Any]:
    """Train a student and measure it; its line of the results."""
    torch.set_num_threads(1)
    recipe, teacher = task.recipe(), load_teacher(task.base / "teacher")
    cost, usual = step_cost(recipe, teacher), step_cost(task.recipe(own=False), teacher)
    steps = task.steps
    if task.terms == "time":
        steps = round(task.steps * usual / cost)
    spec = recipe.train.model_copy(update={"steps": steps, "checkpoint_every": 10**9})
    recipe = recipe.model_copy(update={"train": spec})
    operator = student(task, recipe, teacher, trajectories(task, recipe, teacher))
    draws = Draws(
        task.seed, teacher.denoiser.sample_shape, conditions_of(recipe, teacher, None), 500
    )
    samples = draw(
        student_sampler(operator.eval()), draws, recipe.evaluate.samples, lambda *_, **__: None
    )
    exact = solutions(task, teacher, draws)
    reference = reference_of(task.source, task.given, task.seed)
    return {
        **task.key,
        "trained_steps": steps,
        "training": steps * cost / (task.steps * usual),
        "paired_l1": float((samples[:PAIRED] - exact[: len(samples)]).abs().mean()),
        **reference.measure(samples),
    }


def prepare(task: Task) -> None:
    """Train the seed's teacher."""
    if not (task.base / "teacher").exists():
        given = [f"seed={task.seed}", *task.given]
        if code := dsno(["teacher", task.source, *given, "--out", str(task.base)]):
            sys.exit(code)


def is_of(line: Mapping[str, Any], task: Task) -> bool:
    """Whether a line is a task's."""
    return all(line[name] == value for name, value in task.key.items())


def end_with_parent() -> None:
    """In a worker: end when the process that started it does, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def make_all(options: argparse.Namespace) -> None:
    """Everything that is not there, `--jobs` at a time, each on one thread."""
    known = lines(options.to)
    todo = [t for t in tasks(options) if not any(is_of(line, t) for line in known)]
    for task in {t.seed: t for t in todo}.values():
        prepare(task)
    shared = {(t.seed, str(t.recipe().collect)): t for t in todo}
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, context, end_with_parent) as pool:
        for _ in pool.map(collected, shared.values()):
            pass
        waiting = {pool.submit(make, task): task for task in todo}
        for done in concurrent.futures.as_completed(waiting):
            found = {
                **done.result(),
                "commit": options.commit or commit(),
                "torch": torch.__version__,
            }
            with options.to.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            print(f"{len(lines(options.to))} {waiting[done].key}", flush=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["make", "show"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--experiments", nargs="+", choices=list(EXPERIMENTS))
    parser.add_argument("--terms", choices=["time", "steps"], default="time")
    parser.add_argument("--steps", type=int, default=1500, help="of the recipe's own student")
    parser.add_argument("--recipe", default="digits", help="a name or a file")
    parser.add_argument("--set", nargs="+", default=[], help="key.sub=value, for all")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--to", type=Path, default=Path("results/ablations.jsonl"))
    parser.add_argument("--plot", type=Path, help="PNG file of `show`")
    parser.add_argument("--commit", default="", help="of the code, where git cannot tell")
    options = parser.parse_args()
    if options.action == "make":
        make_all(options)
    else:
        show(options)


if __name__ == "__main__":
    main()
