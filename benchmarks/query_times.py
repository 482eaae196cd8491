"""Can a student be asked at times it was not trained at, and does training at random times help?

    python benchmarks/query_times.py --out runs/ablations --plot query_times.png

Students of every lift with M = 4, each trained for the same number of steps twice: at its four
times, and with every second step at random ones (`--asked` of `--stored`, without those four).
Error of the states, as in `continuous_time.py`, at other times than any of these. Teacher and
trajectories are those of a seed of `ablations.py`, in its `--out`, made if they are not there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from ablations import Task, prepare, trained, trajectories
from continuous_time import Curve, error_at, plot, table
from torch import Tensor

from dsno.evaluation.samplers import Draws
from dsno.operator.dsno import DSNO
from dsno.recipes import Recipe
from dsno.runs.build import conditions_of, new_operator, trajectory_objective
from dsno.support.files import fingerprint
from dsno.teachers.store import Teacher, load_teacher
from dsno.training.batches import student_batches
from dsno.training.losses import TrajectoryObjective, trajectory_loss
from dsno.training.prefetch import Batch
from dsno.training.trainer import Batches
from dsno.trajectories.dataset import TrajectoryStore

LIFTS = ("readout", "middle", "core", "all")
TIMES = "times"


class AtAnyTime(TrajectoryObjective):
    """The objective, also of batches that name their `times`, which have weights of their own."""

    def __init__(self, base: TrajectoryObjective, weight_max: float) -> None:
        super().__init__(base.model, base.scales.flatten(), base.weights, distance=base.distance)
        self.weight_max = weight_max

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The loss; and the distance at each time, if the times are the trained ones."""
        if TIMES not in batch:
            return super().forward(batch)
        times, schedule = batch[TIMES], self.model.preconditioning.schedule

        def capped(t: Tensor) -> Tensor:
            return torch.exp(schedule.log_snr(t.double()) / 2).clamp(1, self.weight_max)

        # as the trained times are weighed: by the same factor, not to mean 1 among themselves
        weights = capped(times) / capped(self.model.times).mean()
        states = self.model(batch["noise"], batch.get("condition"), times)
        loss, _ = trajectory_loss(states, batch["states"], weights, distance=self.distance)
        return loss, None


def batches_of(
    recipe: Recipe, store: TrajectoryStore, trained: list[float], asked: int, seed: int
) -> Batches:
    """Whole trajectories; in every second step at `asked` random stored times, if that is not 0."""
    size, stored = recipe.train.batch_size or 0, store.manifest.times
    own = [min(range(len(stored)), key=lambda i: abs(stored[i] - t)) for t in trained]
    others = torch.tensor([i for i in range(len(stored)) if i not in own])
    given = student_batches(
        store, size, seed=seed, window=recipe.train.shuffle_shards, trajectory_every=1
    )

    def batch(step: int, places: range) -> Batch:
        found = given(step, places)
        if not asked or step % 2 == 0:
            return {**found, "states": found["states"][:, own]}
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(step))
        chosen = others[order[:asked]]
        return {**found, "states": found["states"][:, chosen], TIMES: torch.tensor(stored)[chosen]}

    return batch


def student(
    task: Task, recipe: Recipe, teacher: Teacher, store: TrajectoryStore, asked: int
) -> tuple[DSNO, float]:
    """A trained student, and the processor seconds of a step."""
    operator, spec = new_operator(recipe, teacher), recipe.train
    objective = AtAnyTime(trajectory_objective(spec, operator, teacher.denoiser), spec.weight_max)
    batches = batches_of(recipe, store, operator.times.tolist(), asked, task.seed)
    mark = fingerprint({**task.key, "asked": asked, "stored": len(store.manifest.times)})
    spec = spec.model_copy(update={"steps": task.steps, "checkpoint_every": 10**9})
    begun = time.process_time()
    model = trained(task, spec, objective, batches, mark)
    return model, (time.process_time() - begun) / task.steps


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="digits", help="variance-preserving, with an L1 loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--stored", type=int, default=16, help="times of the trajectories")
    parser.add_argument("--solver-steps", type=int, default=24, help="that made them")
    parser.add_argument("--asked", type=int, default=2, help="random times a step")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--plot", type=Path, help="PNG file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves: list[Curve] = []
    for lift in LIFTS:
        solved = (f"collect.slices={options.stored}", f"collect.steps={options.solver_steps}")
        changes = (f"student.lift={lift}", *solved)
        task = Task(options.recipe, (), changes, options.seed, options.steps, "steps", options.out)
        prepare(task)
        teacher, recipe = load_teacher(task.base / "teacher"), task.recipe()
        store = trajectories(task, recipe, teacher)
        draws = Draws(
            task.seed, teacher.denoiser.sample_shape, conditions_of(recipe, teacher, None), 256
        )
        noise, condition = draws.batch(range(options.samples))
        for asked in (0, options.asked):
            operator, seconds = student(task, recipe, teacher, store, asked)
            name = f"{lift}, random times" if asked else lift
            print(f"{name}: {1e3 * seconds:.1f} ms of processor time a step", flush=True)
            curves.append(error_at(name, operator.eval(), teacher.denoiser, noise, condition))
    print(table(curves))
    if options.plot is not None:
        plot(curves, options.plot)


if __name__ == "__main__":
    main()
