"""Finished runs in the features of another classifier, so that no verdict hangs on one.

    python benchmarks/second_classifier.py runs/digits-seeds/seed-*

A run's report measures in the features of one classifier (`evaluate.classifier_seed`), and its
finish keeps the step that looked best there. This measures the same samples also in the features of
one with another seed: of the outcome, of the student before its finish and of the solved teacher.
Prints Markdown, and writes the numbers with `--out`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from dsno.evaluation.reference import Reference, build_reference
from dsno.evaluation.samplers import Draws, Sampler, draw, student_sampler, teacher_sampler
from dsno.recipes.schema import Recipe
from dsno.runs.build import conditions_of, load_recipe_data
from dsno.runs.locate import FINISHED, STUDENT, saved_recipe
from dsno.runs.stages import load_operator
from dsno.support.environment import environment
from dsno.support.files import write_json
from dsno.teachers.store import Teacher, load_teacher

METRICS = ("frechet_distance", "precision", "recall")
LABELS = {FINISHED: "student", STUDENT: "student before its finish"}


def samplers(run: Path, recipe: Recipe, teacher: Teacher) -> dict[str, Sampler]:
    """What is measured of a run, by label."""
    found = {
        LABELS[name]: student_sampler(load_operator(run / name))
        for name in (FINISHED, STUDENT)
        if (run / name).is_dir()
    }
    steps = recipe.evaluate.reference_steps  # the solved teacher of the report
    solved = teacher_sampler(teacher.denoiser, "dpm++2m", steps, "uniform")
    return {**found, f"teacher, {steps} steps": solved}


def measure(run: Path, references: dict[int, Reference]) -> list[dict[str, Any]]:
    """A row for every sampler of a run."""
    recipe = saved_recipe(run)
    teacher = load_teacher(run / "teacher")
    conditions = conditions_of(recipe, teacher, None)
    spec = recipe.evaluate
    draws = Draws(recipe.seed, teacher.denoiser.sample_shape, conditions, spec.batch_size)
    rows = []
    for label, sampler in samplers(run, recipe, teacher).items():
        images = draw(sampler, draws, spec.samples, lambda *_, **__: None)
        row: dict[str, Any] = {"run": run.name, "seed": recipe.seed, "sampler": label}
        for seed, reference in references.items():
            made = reference.measure(images)
            row[f"classifier {seed}"] = {m: made[m]["classifier"] for m in METRICS}
        rows.append(row)
        print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table: distance and recall in each classifier's features."""
    cells = [
        f"{float(found['frechet_distance']):.3f} | {float(found['recall']):.3f}"
        for name, found in row.items()
        if name.startswith("classifier")
    ]
    return f"| {row['seed']} | {row['sampler']} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs of one recipe")
    parser.add_argument("--classifiers", nargs="+", type=int, default=[0, 1], help="their seeds")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_recipe_data(saved_recipe(options.runs[0]))
    references = {s: build_reference(data, ["classifier"], seed=s) for s in options.classifiers}
    names = " | ".join(f"classifier {s} | recall" for s in references)
    print(f"| seed | sampler | {names} |\n|---|---|{'---|' * (2 * len(references))}")
    rows = [row for run in options.runs for row in measure(run, references)]
    if options.out is not None:
        write_json(options.out, {"rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
