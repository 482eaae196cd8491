"""Quality against sampling time on the digits recipe: every lift, and what one would use instead.

    python benchmarks/frontier.py make --seeds 0 1 2 --out runs/frontier        (an hour or so)
    python benchmarks/frontier.py measure --seeds 0 1 2 --out runs/frontier
    python benchmarks/frontier.py show --plot docs/images/frontier.png

`make` trains, for each seed, one teacher, its trajectories, and students of all kinds from them,
with the same training time (steps in inverse proportion to the multiply-adds of one; twice that
where a kind says so). `measure` draws samples from all of them with the same noise and labels:
Frechet distances to the real digits, multiply-adds of a sample in evaluations of the teacher's
network, and time, all samplers taking turns in one process; it writes `results/frontier.json`.
What is made is not made again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
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
import diffusers
import torch
from safetensors.torch import load_file, save_file
from timing import interleaved
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dsno.assembly import conditions_of, load_recipe_data, new_operator
from dsno.cli import main as dsno
from dsno.denoisers import Condition, Denoiser
from dsno.evaluate import (
    Draws,
    Sampler,
    build_reference,
    draw,
    student_sampler,
    teacher_sampler,
)
from dsno.files import write_json
from dsno.operator import DSNO, sampling_cost
from dsno.recipes.load import load_recipe
from dsno.recipes.schema import Recipe
from dsno.stages import environment, load_operator
from dsno.teachers.store import Teacher, load_teacher
from dsno.training import Plan, train

NOT_SHARED = ("student.shared=[]",)
ALL = ("student.sites=[default]", *NOT_SHARED)
CORE = (*ALL, "student.lifted_from=1", "student.shared_levels=1")
MIDDLE = (*NOT_SHARED, "student.sites=[mid_block]", "student.shared_levels=2")
PLAIN = (*NOT_SHARED, "student.slices=1", "student.modes=1", "student.sites=[]")


@dataclass(frozen=True)
class Kind:
    """A kind of student: what it changes in the recipe."""

    label: str
    steps: int
    changes: tuple[str, ...]


KINDS = {
    "all-m2": Kind("DSNO, all lifted, M = 2", 2400, ("student.slices=2", *ALL)),
    "all-m4": Kind("DSNO, all lifted, M = 4", 1200, ("student.slices=4", *ALL)),
    "core-m2": Kind("DSNO, core lifted, M = 2", 2550, ("student.slices=2", *CORE)),
    "core-m4": Kind("DSNO, core lifted, M = 4", 1300, ("student.slices=4", *CORE)),
    "middle-m2": Kind("DSNO, middle lifted, M = 2", 2700, ("student.slices=2", *MIDDLE)),
    "training-m2": Kind(
        "slices only in training, M = 2",
        2600,
        (*NOT_SHARED, "student.slices=2", "student.sites=[]", "student.shared_levels=1"),
    ),
    "plain-m1": Kind("knowledge distillation (M = 1)", 4950, PLAIN),
    "middle-m2-long": Kind(
        "DSNO, middle lifted, M = 2, twice the training", 5400, ("student.slices=2", *MIDDLE)
    ),
    "plain-m1-long": Kind("knowledge distillation (M = 1), twice the training", 9900, PLAIN),
}
"""Steps are such that training takes about as many multiply-adds; `training` in the results says
how many, over knowledge distillation's."""
CONSISTENCY = "consistency"
CONSISTENCY_INTERVALS = 18
SOLVERS: dict[str, Sequence[int]] = {
    "ddim": (1, 2, 4, 8, 16, 32),
    "dpm++2m": (1, 2, 3, 4, 6, 8, 12, 16),
    "unipc": (2, 3, 4, 6, 8, 12, 16),
}


# ---- making ------------------------------------------------------------------------------------


def recipe_of(seed: int, changes: Sequence[str] = ()) -> Recipe:
    """The digits recipe with changes."""
    return load_recipe("digits", [f"seed={seed}", *changes])


def forward_flops(operator: DSNO) -> float:
    """Multiply-adds of a training forward pass of one sample."""
    noise = torch.zeros(1, *operator.sample_shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        operator(noise, {"class_labels": torch.zeros(1, dtype=torch.long)})
    return float(counted.get_total_flops())


def training(kind: Kind, teacher: Teacher) -> float:
    """Multiply-adds of its training, over those of knowledge distillation."""
    plain = KINDS["plain-m1"]
    own, base = (
        k.steps * forward_flops(new_operator(recipe_of(0, k.changes), teacher))
        for k in (kind, plain)
    )
    return own / base


def run(command: str, changes: Sequence[str], folder: Path) -> None:
    """One stage in this process."""
    code = dsno([command, "digits", *changes, "--out", str(folder)])
    if code:
        sys.exit(code)


def make(seed: int, name: str, out: Path) -> None:
    """Train one student; its teacher and trajectories first, if they are not there."""
    base = out / f"seed-{seed}"
    given = [f"seed={seed}"]
    if name == "base":
        for stage in ("teacher", "collect"):
            run(stage, given, base)
        return
    folder = out / f"seed-{seed}-{name}"
    teacher = load_teacher(base / "teacher")
    if name == CONSISTENCY:
        distill(seed, teacher, folder)
        return
    if not folder.exists():
        shutil.copytree(base, folder.with_suffix(".tmp"), dirs_exist_ok=True)
        folder.with_suffix(".tmp").rename(folder)
    kind = KINDS[name]
    run("train", [*given, *kind.changes, f"train.steps={kind.steps}"], folder)


def distill(seed: int, teacher: Teacher, folder: Path) -> None:
    """Train the consistency student: a step takes as long as one with all lifted, M = 2.

    Per image that is a student's forward and backward pass (3 evaluations), the target's (1) and
    the teacher's two; that one's is a forward and backward pass of two slices (6).
    """
    path = folder / "network.safetensors"
    if path.exists():
        return
    recipe = recipe_of(seed)
    spec = recipe.train
    assert spec.batch_size is not None
    assert spec.learning_rate is not None
    times = torch.linspace(0, 1, CONSISTENCY_INTERVALS + 1, dtype=torch.float64)
    objective = consistency.ConsistencyObjective(teacher.denoiser, times)
    plan = Plan(
        steps=KINDS["all-m2"].steps,
        batch_size=spec.batch_size,
        learning_rate=float(os.environ.get("CONSISTENCY_RATE", CONSISTENCY_RATE)),
        warmup_steps=spec.warmup_steps,
        betas=spec.betas,
        ema_decay=spec.ema_decay,
        seed=seed,
    )
    data = load_recipe_data(recipe)
    made = consistency.batches(data, seed, spec.batch_size, CONSISTENCY_INTERVALS)
    averaged, _ = train(objective, made, plan, folder / "checkpoints", tag="consistency")
    assert isinstance(averaged, Denoiser)
    save_file({k: v.contiguous() for k, v in averaged.network.state_dict().items()}, path)


CONSISTENCY_RATE = 2e-3


def make_all(seeds: Sequence[int], out: Path, jobs: int) -> None:
    """Train everything, `jobs` at a time, each on one thread."""
    out.mkdir(parents=True, exist_ok=True)

    def one(seed: int, name: str) -> None:
        command = [sys.executable, __file__, "one", "--seeds", str(seed), "--name", name]
        subprocess.run(
            [*command, "--out", str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
        )
        print(f"made seed {seed}, {name}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        bases = [pool.submit(one, seed, "base") for seed in seeds]
        for base in bases:
            base.result()
        rest = [pool.submit(one, s, name) for s in seeds for name in (*KINDS, CONSISTENCY)]
        for made in rest:
            made.result()


# ---- measuring ---------------------------------------------------------------------------------


def unipc(denoiser: Denoiser, steps: int) -> Callable[[Tensor, Condition | None], Tensor]:
    """diffusers' UniPC on this teacher: its schedule in a thousand steps, samples predicted."""
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    kept = denoiser.schedule.alpha(t).square()
    betas = 1 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])

    def generate(noise: Tensor, condition: Condition | None) -> Tensor:
        scheduler = diffusers.UniPCMultistepScheduler(
            trained_betas=betas.clamp(max=1 - 1e-9).numpy(),
            prediction_type="sample",
            timestep_spacing="linspace",
            final_sigmas_type="zero",
        )
        scheduler.set_timesteps(steps)
        x = noise
        for step in scheduler.timesteps:
            clean = denoiser(x, t[int(step)], condition)
            x = scheduler.step(clean, step, x, return_dict=False)[0]
        return x

    return generate


def samplers(seed: int, out: Path) -> tuple[Teacher, dict[str, tuple[Sampler, float]]]:
    """Every sampler of a seed by name, with its multiply-adds in evaluations of the network."""
    base = out / f"seed-{seed}"
    teacher = load_teacher(base / "teacher")
    denoiser = teacher.denoiser
    assert isinstance(denoiser, Denoiser)
    condition = {"class_labels": torch.zeros(1, dtype=torch.long)}
    found: dict[str, tuple[Sampler, float]] = {}
    for name, kind in KINDS.items():
        operator = load_operator(out / f"seed-{seed}-{name}")
        sampler = student_sampler(operator)
        cost = sampling_cost(operator, denoiser, condition)
        found[name] = Sampler(name, kind.label, 1, None, sampler.generate), cost
    distilled = load_teacher(base / "teacher").denoiser
    assert isinstance(distilled, Denoiser)
    path = out / f"seed-{seed}-{CONSISTENCY}" / "network.safetensors"
    distilled.network.load_state_dict(load_file(path))
    one = torch.ones((), dtype=torch.float64)
    found[CONSISTENCY] = (
        Sampler(
            CONSISTENCY, "consistency distillation", 1, None, lambda x, c: distilled(x, one, c)
        ),
        1.0,
    )
    for method, every in SOLVERS.items():
        for steps in every:
            if method == "unipc":
                made = Sampler(method, "UniPC", steps, "uniform", unipc(denoiser, steps))
            else:
                made = teacher_sampler(denoiser, method, steps, "uniform")
            found[f"{method}-{steps}"] = made, float(made.nfe)
    return teacher, found


def prepared(seed: int, teacher: Teacher) -> Draws:
    """Noise and labels, the same for all samplers."""
    conditions = conditions_of(recipe_of(seed), teacher, None)
    return Draws(seed, teacher.denoiser.sample_shape, conditions, 500)


def distances(
    seed: int, out: Path, count: int, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Distances and multiply-adds of the samplers named, or of all, of a seed."""
    recipe = recipe_of(seed)
    teacher, found = samplers(seed, out)
    draws = prepared(seed, teacher)
    reference = build_reference(
        load_recipe_data(recipe), recipe.evaluate.features, seed=recipe.evaluate.classifier_seed
    )
    rows: dict[str, dict[str, float]] = {}
    for name, (sampler, cost) in found.items():
        if names and name not in names:
            continue
        made = draw(sampler, draws, count, lambda *_, **__: None)
        rows[name] = {"cost": cost, **reference.distances(made)}
        print(seed, name, rows[name], flush=True)
    return rows


def times(seed: int, out: Path) -> dict[str, float]:
    """Time of a sample of every sampler, 64 at a time, over one evaluation of the network."""
    teacher, found = samplers(seed, out)
    noise, condition = prepared(seed, teacher).batch(range(64))
    one = torch.ones((), dtype=torch.float64)

    def work(generate: Any) -> Callable[[], object]:
        return lambda: generate(noise, condition)

    works = {name: work(sampler.generate) for name, (sampler, _) in found.items()}
    works["bare"] = lambda: teacher.denoiser(noise, one, condition)
    with torch.no_grad():
        taken = interleaved(works, 15, noise.device)
    return {name: value / taken["bare"] for name, value in taken.items() if name != "bare"}


def summary(
    seeds: Sequence[int], out: Path, count: int, names: Sequence[str], before: dict[str, Any]
) -> dict[str, Any]:
    """All seeds together: every seed's distances, cost, median time.

    Distances of samplers not named are those measured `before`; times are all measured now.
    """
    torch.set_num_threads(1)
    about = {"samples": count, "seeds": list(seeds)}
    if any(before.get(key, value) != value for key, value in about.items()):
        sys.exit(f"What was measured before has not {about}; measure all again.")
    command = shlex.join(["python", *sys.argv])
    found = [distances(seed, out, count, names) for seed in seeds]
    taken = [times(seed, out) for seed in seeds]
    teacher, every = samplers(seeds[0], out)
    rows = {row["name"]: row for row in before.get("rows", ())}
    for name in found[0]:
        own = [f[name] for f in found]
        rows[name] = {
            "name": name,
            "label": every[name][0].label,
            "cost": own[0]["cost"],
            "classifier": [row["classifier"] for row in own],
            "pixels": [row["pixels"] for row in own],
            "command": command,
        }
    for name in every:
        rows[name]["time"] = statistics.median(t[name] for t in taken)
    for name in KINDS:
        rows[name]["training"] = training(KINDS[name], teacher)
    # an image's step is six evaluations' work (`distill`), knowledge distillation's three
    passes = 6 * KINDS["all-m2"].steps / (3 * KINDS["plain-m1"].steps)
    rows[CONSISTENCY]["training"] = passes
    return {"environment": environment(), **about, "rows": [rows[name] for name in every]}


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
    """Distance against time, both on logarithmic axes."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter

    figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
    by: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        by.setdefault(row["label"], []).append(row)
    colours = iter(plt.get_cmap("tab10").colors)  # type: ignore[attr-defined]
    greys = iter(["0.75", "0.5", "0.2"])
    for label, rows in by.items():
        x = [row["time"] for row in rows]
        y = [statistics.mean(row["classifier"]) for row in rows]
        low = [v - min(row["classifier"]) for v, row in zip(y, rows, strict=True)]
        high = [max(row["classifier"]) - v for v, row in zip(y, rows, strict=True)]
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1}
        if len(rows) > 1:
            style["color"] = next(greys)
        else:
            style |= {"marker": "*" if label.startswith("DSNO") else "s", "linestyle": "none"}
            style |= {"color": next(colours), "markersize": 11 if style["marker"] == "*" else 7}
        axes.errorbar(x, y, yerr=[low, high], label=label, capsize=2, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(0.25, 2.5)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set_yticks([0.25, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2])
    axes.minorticks_off()
    axes.set_xlabel("time of a sample, in evaluations of the teacher's network")
    axes.set_ylabel("Frechet distance (classifier features)")
    seeds = len(found["seeds"])
    axes.set_title(f"8x8 digits; {seeds} seeds: their mean and their range", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["make", "one", "measure", "show"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--name", help="with one: which student; base for what they share")
    parser.add_argument(
        "--names",
        nargs="+",
        default=[],
        help="with measure: samplers to measure again, the others are kept (times are not)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="with make: trainings at a time")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--to", type=Path, default=Path("results/frontier.json"))
    parser.add_argument("--plot", type=Path, help="with show: where to draw")
    given = parser.parse_args()
    if given.action == "one":
        make(given.seeds[0], given.name, given.out)
    elif given.action == "make":
        make_all(given.seeds, given.out, given.jobs)
    elif given.action == "measure":
        before = json.loads(given.to.read_text(encoding="utf-8")) if given.names else {}
        found = summary(given.seeds, given.out, given.samples, given.names, before)
        write_json(given.to, found)
    else:
        found = json.loads(given.to.read_text(encoding="utf-8"))
        print(table(found))
        if given.plot is not None:
            plot(found, given.plot)


if __name__ == "__main__":
    main()
