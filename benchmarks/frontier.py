"""Quality against sampling time: every lift, and what one would use instead.

    python benchmarks/frontier.py make --seeds 0 1 2 --out runs/frontier        (an hour or so)
    python benchmarks/frontier.py measure --seeds 0 1 2 --out runs/frontier
    python benchmarks/frontier.py show --plot docs/images/frontier.png

`make` trains, for each seed, one teacher, its trajectories, and students of all kinds from them,
with the same training time (steps in inverse proportion to the multiply-adds of one; twice that
where a kind says so). `measure` draws samples from all of them with the same noise and labels:
Frechet distances to the real data, multiply-adds of a sample in evaluations of the teacher's
network, and time, all samplers taking turns in one process; it writes `results/frontier.json`.
What is made is not made again. The recipe is `digits`, or another with
labels that trains its teacher (`--recipe`, changed by `--set`;
`benchmarks/cifar16.yaml` has photographs), of some of the kinds (`--kinds`).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import copy
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import consistency
import torch
from safetensors.torch import load_file, save_file
from step_cost import step_cost
from timing import interleaved

from dsno.cli import main as dsno
from dsno.diffusion.denoisers import Denoiser
from dsno.evaluation.reference import build_reference
from dsno.evaluation.samplers import Draws, Sampler, draw, student_sampler, teacher_sampler
from dsno.operator.dsno import sampling_cost
from dsno.recipes.load import load_recipe
from dsno.recipes.schema import Optimisation, Recipe
from dsno.runs.build import conditions_of, load_recipe_data
from dsno.runs.stages import environment, load_operator
from dsno.support.files import write_json
from dsno.teachers.store import Teacher, load_teacher
from dsno.training.trainer import train

ALL = ("student.lift=all",)
CORE = ("student.lift=core",)
MIDDLE = ("student.lift=middle",)
READOUT = ("student.lift=readout",)
NOT_MIXED = ("student.lift=null", "student.sites=[]")
PLAIN = (*NOT_MIXED, "student.slices=1", "student.modes=1")


@dataclass(frozen=True)
class Kind:
    """A kind of student: what it changes in the recipe, and its training over the usual."""

    label: str
    changes: tuple[str, ...]
    training: int = 1


KINDS = {
    "all-m2": Kind("DSNO, all lifted, M = 2", ("student.slices=2", *ALL)),
    "all-m4": Kind("DSNO, all lifted, M = 4", ("student.slices=4", *ALL)),
    "core-m2": Kind("DSNO, core lifted, M = 2", ("student.slices=2", *CORE)),
    "core-m4": Kind("DSNO, core lifted, M = 4", ("student.slices=4", *CORE)),
    "middle-m2": Kind("DSNO, middle lifted, M = 2", ("student.slices=2", *MIDDLE)),
    "training-m2": Kind(
        "slices only in training, M = 2",
        (*NOT_MIXED, "student.slices=2", "student.shared_levels=1"),
    ),
    "plain-m1": Kind("knowledge distillation (M = 1)", PLAIN),
    "middle-m2-eighth": Kind(
        "DSNO, middle lifted, M = 2, trajectory every 8 steps",
        ("student.slices=2", *MIDDLE, "train.trajectory_every=8"),
    ),
    "middle-m2-long": Kind(
        "DSNO, middle lifted, M = 2, twice the training", ("student.slices=2", *MIDDLE), 2
    ),
    "readout-m2": Kind("DSNO, readout, M = 2", ("student.slices=2", *READOUT)),
    "readout-m4": Kind("DSNO, readout, M = 4", ("student.slices=4", *READOUT)),
    "plain-m1-long": Kind("knowledge distillation (M = 1), twice the training", PLAIN, 2),
}
CONSISTENCY = "consistency"
CONSISTENCY_INTERVALS = 18
SOLVERS: dict[str, Sequence[int]] = {
    "ddim": (1, 2, 4, 8, 16, 32),
    "dpm++2m": (1, 2, 3, 4, 6, 8, 12, 16),
    "unipc": (2, 3, 4, 6, 8, 12, 16),
}


# ---- making ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What is compared, and where.

    Attributes:
        source: the recipe, a name or a file.
        changes: to it, for all.
        steps: of knowledge distillation.
        kinds: of students, perhaps `consistency`.
        out: folder of what is made.
    """

    source: str
    changes: tuple[str, ...]
    steps: int
    kinds: tuple[str, ...]
    out: Path

    def recipe(self, seed: int, changes: Sequence[str] = ()) -> Recipe:
        """The recipe with changes."""
        return load_recipe(self.source, self.given(seed, changes))

    def given(self, seed: int, changes: Sequence[str] = ()) -> list[str]:
        """What to change in it, written out."""
        usual = (f"seed={seed}", "train.trajectory_every=1")
        return [*usual, *self.changes, *changes]

    def step(self, name: str, teacher: Teacher) -> float:
        """What a step of a kind of student costs."""
        return step_cost(self.recipe(0, KINDS[name].changes), teacher)

    def steps_of(self, name: str, teacher: Teacher) -> int:
        """Steps of a kind, such that its training takes as many multiply-adds as it should."""
        own, plain = (self.step(n, teacher) for n in (name, "plain-m1"))
        return round(KINDS[name].training * self.steps * plain / own / 10) * 10

    def training(self, name: str, teacher: Teacher, steps: int) -> float:
        """Multiply-adds of so many steps of a kind, over those of knowledge distillation."""
        own, plain = (self.step(n, teacher) for n in (name, "plain-m1"))
        return steps * own / (self.steps * plain)


def run(command: str, source: str, changes: Sequence[str], folder: Path) -> None:
    """One stage in this process."""
    code = dsno([command, source, *changes, "--out", str(folder)])
    if code:
        sys.exit(code)


def make(work: Work, seed: int, name: str) -> None:
    """Train one student, or the teacher and trajectories that all share (`base`)."""
    base = work.out / f"seed-{seed}"
    if name == "base":
        for stage in ("teacher", "collect"):
            run(stage, work.source, work.given(seed), base)
        return
    folder = work.out / f"seed-{seed}-{name}"
    teacher = load_teacher(base / "teacher")
    if name == CONSISTENCY:
        distill(work, seed, teacher, folder)
        return
    if not folder.exists():
        shutil.copytree(base, folder.with_suffix(".tmp"), dirs_exist_ok=True)
        folder.with_suffix(".tmp").rename(folder)
    steps = f"train.steps={work.steps_of(name, teacher)}"
    run("train", work.source, [*work.given(seed, KINDS[name].changes), steps], folder)


def distill(work: Work, seed: int, teacher: Teacher, folder: Path) -> None:
    """Train the consistency student: a step takes as long as one with all lifted, M = 2.

    Per image that is a student's forward and backward pass (3 evaluations), the target's (1) and
    the teacher's two; that one's is a forward and backward pass of two slices (6).
    """
    path = folder / "network.safetensors"
    if path.exists():
        return
    recipe = work.recipe(seed)
    spec = recipe.train
    assert spec.batch_size is not None
    assert spec.learning_rate is not None
    times = torch.linspace(0, 1, CONSISTENCY_INTERVALS + 1, dtype=torch.float64)
    objective = consistency.ConsistencyObjective(teacher.denoiser, times)
    plan = Optimisation(
        steps=work.steps_of("all-m2", teacher),
        batch_size=spec.batch_size,
        learning_rate=float(os.environ.get("CONSISTENCY_RATE", CONSISTENCY_RATE)),
        warmup_steps=spec.warmup_steps,
        betas=spec.betas,
        ema_decay=spec.ema_decay,
        clip_norm=None,
    )
    data = load_recipe_data(recipe)
    made = consistency.batches(data, seed, spec.batch_size, CONSISTENCY_INTERVALS)
    averaged, _ = train(objective, made, plan, folder / "checkpoints", seed=seed, tag="consistency")
    assert isinstance(averaged, Denoiser)
    save_file({k: v.contiguous() for k, v in averaged.network.state_dict().items()}, path)


CONSISTENCY_RATE = 2e-3


def make_all(work: Work, seeds: Sequence[int], jobs: int) -> None:
    """Train everything, `jobs` at a time, each on one thread."""
    work.out.mkdir(parents=True, exist_ok=True)
    set_ = ["--set", *work.changes] if work.changes else []
    given = ["--recipe", work.source, *set_, "--steps", str(work.steps), "--out", str(work.out)]

    def one(seed: int, name: str) -> None:
        command = [sys.executable, __file__, "one", "--seeds", str(seed), "--name", name]
        subprocess.run([*command, *given], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        print(f"made seed {seed}, {name}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        bases = [pool.submit(one, seed, "base") for seed in seeds]
        for base in bases:
            base.result()
        rest = [pool.submit(one, s, name) for s in seeds for name in work.kinds]
        for made in rest:
            made.result()


# ---- measuring ---------------------------------------------------------------------------------


def samplers(work: Work, seed: int) -> tuple[Teacher, dict[str, tuple[Sampler, float]]]:
    """Every sampler of a seed by name, with its multiply-adds in evaluations of the network."""
    teacher = load_teacher(work.out / f"seed-{seed}" / "teacher")
    denoiser = teacher.denoiser
    assert isinstance(denoiser, Denoiser)
    condition = {"class_labels": torch.zeros(1, dtype=torch.long)}
    found: dict[str, tuple[Sampler, float]] = {}
    for name in work.kinds:
        folder = work.out / f"seed-{seed}-{name}"
        if name == CONSISTENCY:
            found[name] = consistency_sampler(teacher, folder), 1.0
            continue
        operator = load_operator(folder / "student")
        sampler = student_sampler(operator)
        cost = sampling_cost(operator, denoiser, condition)
        found[name] = Sampler(name, KINDS[name].label, 1, None, sampler.generate), cost
    for method, every in SOLVERS.items():
        for steps in every:
            made = teacher_sampler(denoiser, method, steps, "uniform")
            found[f"{method}-{steps}"] = made, float(made.nfe)
    return teacher, found


def consistency_sampler(teacher: Teacher, folder: Path) -> Sampler:
    """The consistency student's one step."""
    distilled = copy.deepcopy(teacher.denoiser)
    assert isinstance(distilled, Denoiser)
    distilled.network.load_state_dict(load_file(folder / "network.safetensors"))
    one = torch.ones((), dtype=torch.float64)
    return Sampler(
        CONSISTENCY, "consistency distillation", 1, None, lambda x, c: distilled(x, one, c)
    )


def prepared(work: Work, seed: int, teacher: Teacher) -> Draws:
    """Noise and labels, the same for all samplers."""
    conditions = conditions_of(work.recipe(seed), teacher, None)
    return Draws(seed, teacher.denoiser.sample_shape, conditions, 500)


def distances(work: Work, seed: int, count: int, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Distances and multiply-adds of the samplers named of a seed."""
    recipe = work.recipe(seed)
    teacher, found = samplers(work, seed)
    draws = prepared(work, seed, teacher)
    reference = build_reference(
        load_recipe_data(recipe), recipe.evaluate.features, seed=recipe.evaluate.classifier_seed
    )
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        sampler, cost = found[name]
        made = draw(sampler, draws, count, lambda *_, **__: None)
        rows[name] = {"label": sampler.label, "cost": cost, **reference.distances(made)}
        print(seed, name, rows[name], flush=True)
    return rows


def times(work: Work, seed: int, names: Sequence[str]) -> dict[str, float]:
    """Time of a sample of the samplers named, 64 at a time, over one evaluation of the network."""
    teacher, found = samplers(work, seed)
    noise, condition = prepared(work, seed, teacher).batch(range(64))
    one = torch.ones((), dtype=torch.float64)

    def works(generate: Any) -> Callable[[], object]:
        return lambda: generate(noise, condition)

    turns = {name: works(found[name][0].generate) for name in names}
    turns["bare"] = lambda: teacher.denoiser(noise, one, condition)
    with torch.no_grad():
        taken = interleaved(turns, 15, noise.device)
    return {name: value / taken["bare"] for name, value in taken.items() if name != "bare"}


def training_of(work: Work, seed: int, name: str) -> float:
    """Multiply-adds of a student's training, as it was made, over knowledge distillation's."""
    teacher = load_teacher(work.out / f"seed-{seed}" / "teacher")
    if name == CONSISTENCY:  # an image's step is six evaluations' work (`distill`), theirs three
        return 6 * work.steps_of("all-m2", teacher) / (3 * work.steps)
    made = load_recipe(str(work.out / f"seed-{seed}-{name}" / "recipe.yaml"))
    assert made.train.steps is not None
    return work.training(name, teacher, made.train.steps)


def summary(
    work: Work, seeds: Sequence[int], count: int, names: Sequence[str], before: dict[str, Any]
) -> dict[str, Any]:
    """All seeds together: every seed's distances, cost, median time.

    Rows of samplers not named are those measured `before`.
    """
    torch.set_num_threads(1)
    about = {"recipe": load_recipe(work.source, work.changes).name, "samples": count}
    about["seeds"] = list(seeds)
    if before and any(before.get(key) != value for key, value in about.items()):
        sys.exit(f"What was measured before has not {about}; measure all again.")
    solvers = [f"{method}-{steps}" for method, every in SOLVERS.items() for steps in every]
    every = [*work.kinds, *solvers]
    names = names or every
    if unknown := set(names) - set(every):
        sys.exit(f"No sampler is named {', '.join(sorted(unknown))}; there are {', '.join(every)}.")
    command = shlex.join(["python", *sys.argv])
    found = [distances(work, seed, count, names) for seed in seeds]
    taken = [times(work, seed, names) for seed in seeds]
    rows = {row["name"]: row for row in before.get("rows", ())}
    for name in names:
        own = [f[name] for f in found]
        rows[name] = {
            "name": name,
            **{key: own[0][key] for key in ("label", "cost")},
            "time": statistics.median(t[name] for t in taken),
            **{key: [row[key] for row in own] for key in own[0] if key not in ("label", "cost")},
            "command": command,
        }
        if name in work.kinds:
            rows[name]["training"] = training_of(work, seeds[0], name)
    order = [name for name in (*KINDS, CONSISTENCY, *solvers) if name in rows]
    return {"environment": environment(), **about, "rows": [rows[name] for name in order]}


# ---- showing -----------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """Markdown, a row a sampler."""
    lines = [
        "| sampler | training | multiply-adds | time | distance, mean | each seed | pixels |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        label = row["label"]
        if row["name"].split("-")[0] in SOLVERS:
            label += f", {row['cost']:.0f}"
        each = ", ".join(f"{d:.3f}" for d in row["classifier"])
        training = f"{row['training']:.2f}" if "training" in row else ""
        lines.append(
            f"| {label} | {training} | {row['cost']:.2f} | {row['time']:.2f} "
            f"| {statistics.mean(row['classifier']):.3f} | {each} "
            f"| {statistics.mean(row['pixels']):.3f} |"
        )
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Distance against time, both on logarithmic axes; every sampler is named where it stands."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter

    figure, axes = plt.subplots(figsize=(8.5, 5.4), layout="constrained")
    curves: dict[str, list[tuple[float, list[float]]]] = {}
    for row in found["rows"]:
        method, point = row["name"].rpartition("-")[0], (row["time"], row["classifier"])
        if method in SOLVERS:
            curves.setdefault(row["label"], []).append(point)
        elif row["name"] in SHOWN:
            text, colour, (right, up), align = SHOWN[row["name"]]
            spread(axes, [point], color=colour, marker="*" if text.startswith("DSNO") else "s")
            at = row["time"], statistics.mean(row["classifier"])
            axes.annotate(
                text,
                at,
                (right, up),
                textcoords="offset points",
                fontsize=9,
                color=colour,
                ha=align,
                va="center",
            )
    for (label, points), grey in zip(curves.items(), ("0.7", "0.5", "0.2"), strict=False):
        spread(axes, points, color=grey, marker="o")
        x, distances = points[-1]
        axes.annotate(
            label,
            (x, statistics.mean(distances)),
            (8, 0 if len(points) < 8 else 12),
            textcoords="offset points",
            fontsize=9,
            color=grey,
            va="center",
            annotation_clip=False,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(0.8, 80)
    axes.set_ylim(0.25, 2.5)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set_yticks([0.25, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2])
    axes.minorticks_off()
    axes.set_xlabel("time of a sample, in evaluations of the teacher's network")
    axes.set_ylabel("Frechet distance (classifier features)")
    seeds = len(found["seeds"])
    axes.set_title(
        f"8x8 digits, students trained for equally long; mean and range of {seeds} seeds",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


DSNO_COLOUR, OTHER_COLOUR = "#b34700", "#0072b2"
SHOWN: dict[str, tuple[str, str, tuple[int, int], str]] = {
    "middle-m2": ("DSNO, middle", DSNO_COLOUR, (-6, 42), "left"),
    "core-m2": ("DSNO, core", DSNO_COLOUR, (-6, 27), "left"),
    "all-m2": ("DSNO, all (the paper's)", DSNO_COLOUR, (10, 0), "left"),
    "readout-m4": ("DSNO, readout", DSNO_COLOUR, (-6, 57), "left"),
    "plain-m1": ("knowledge distillation", OTHER_COLOUR, (-6, -34), "left"),
    "consistency": ("consistency distillation", OTHER_COLOUR, (10, 0), "left"),
}
"""Of the kinds, what the picture shows: its name there, its colour, where the name stands."""


def spread(axes: Any, points: Sequence[tuple[float, list[float]]], **style: Any) -> None:
    """Mean of the seeds at every time, and their range."""
    x = [time for time, _ in points]
    mean = [statistics.mean(distances) for _, distances in points]
    low = [m - min(distances) for m, (_, distances) in zip(mean, points, strict=True)]
    high = [max(distances) - m for m, (_, distances) in zip(mean, points, strict=True)]
    size = {"*": 11, "s": 7, "D": 6, "o": 4}[style["marker"]]
    axes.errorbar(x, mean, yerr=[low, high], markersize=size, linewidth=1, capsize=2, **style)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["make", "one", "measure", "show"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--recipe", default="digits", help="a name or a file")
    parser.add_argument("--set", nargs="+", default=[], help="key.sub=value, for all")
    parser.add_argument("--steps", type=int, default=4950, help="of knowledge distillation")
    parser.add_argument(
        "--kinds", nargs="+", default=[*KINDS, CONSISTENCY], choices=[*KINDS, CONSISTENCY]
    )
    parser.add_argument("--name", help="with one: which student; base for what they share")
    parser.add_argument(
        "--names",
        nargs="+",
        default=[],
        help="with measure: samplers to measure; what the file holds of the others is kept",
    )
    parser.add_argument("--jobs", type=int, default=2, help="with make: trainings at a time")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--to", type=Path, default=Path("results/frontier.json"))
    parser.add_argument("--plot", type=Path, help="with show: where to draw")
    given = parser.parse_args()
    work = Work(given.recipe, tuple(given.set), given.steps, tuple(given.kinds), given.out)
    if given.action == "one":
        make(work, given.seeds[0], given.name)
    elif given.action == "make":
        make_all(work, given.seeds, given.jobs)
    elif given.action == "measure":
        kept = given.names and given.to.exists()
        before = json.loads(given.to.read_text(encoding="utf-8")) if kept else {}
        found = summary(work, given.seeds, given.samples, given.names, before)
        write_json(given.to, found)
    else:
        found = json.loads(given.to.read_text(encoding="utf-8"))
        print(table(found))
        if given.plot is not None:
            plot(found, given.plot)


if __name__ == "__main__":
    main()
