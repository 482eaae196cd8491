"""How far a student's trajectory is from the solver's, over time, also at times it never saw.

    python benchmarks/continuous_time.py "readout=runs/digits/student" \
        "readout, finished=runs/digits/finished" --out continuous_time.png

Each NAME=FOLDER is a trained student in the folder of its run. Mean absolute difference of the
states per pixel, values spanning -1 to 1, from DPM-Solver++(2M) with many steps from the same
noise. Bold numbers and dots are at trained times. Prints Markdown, and draws with `--out`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import DenoiserProtocol
from dsno.diffusion.solvers import solve
from dsno.evaluation.samplers import Draws
from dsno.operator.dsno import DSNO
from dsno.runs.build import conditions_of, guided
from dsno.runs.locate import saved_recipe
from dsno.runs.stages import load_operator
from dsno.teachers.store import load_teacher


@dataclass(frozen=True)
class Curve:
    """A student's errors at times.

    Attributes:
        name: as given.
        trained: the times it was trained at.
        error: by time.
    """

    name: str
    trained: tuple[float, ...]
    error: dict[float, float]


@torch.no_grad()
def error_at(
    name: str,
    operator: DSNO,
    denoiser: DenoiserProtocol,
    noise: Tensor,
    condition: Condition | None,
    *,
    asked: int = 24,
    steps: int = 96,
) -> Curve:
    """Errors at the trained times and at `asked` between 1 and 0, quadratically spaced."""
    trained = tuple(operator.times.tolist())
    between = [(1 - i / asked) ** 2 for i in range(1, asked + 1)]
    times = torch.tensor(sorted({*trained, *between}, reverse=True), dtype=torch.float64)
    solution = solve(denoiser, noise, times, steps=steps, condition=condition)
    error = (operator(noise, condition, times) - solution.states).abs().flatten(2).mean((0, 2))
    return Curve(name, trained, dict(zip(times.tolist(), error.tolist(), strict=True)))


def measure(name: str, folder: Path, asked: int, count: int, steps: int) -> Curve:
    """Errors of the student in a folder of a run."""
    run = folder.resolve().parent
    recipe, teacher = saved_recipe(run), load_teacher(run / "teacher")
    draws = Draws(
        recipe.seed, teacher.denoiser.sample_shape, conditions_of(recipe, teacher, None), count
    )
    noise, condition = draws.batch(range(count))
    given = (guided(recipe, teacher), noise, condition)
    return error_at(name, load_operator(folder), *given, asked=asked, steps=steps)


def table(curves: list[Curve]) -> str:
    """Markdown: a row a time, a column a student; trained times in bold."""
    times = sorted({t for curve in curves for t in curve.error}, reverse=True)
    lines = ["| t | " + " | ".join(c.name for c in curves) + " |", "|---|" + "---|" * len(curves)]
    for t in times:
        cells = []
        for curve in curves:
            text = f"{curve.error[t]:.4f}" if t in curve.error else ""
            cells.append(f"**{text}**" if t in curve.trained else text)
        lines.append(f"| {t:.4g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(curves: list[Curve], path: Path) -> None:
    """Error over time; trained times are marked."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    colours: dict[str, str] = {}
    for curve in curves:
        kind, _, _ = curve.name.partition(",")
        is_first = kind not in colours  # the others of its kind have its colour, and are dashed
        colour = colours.setdefault(kind, f"C{len(colours)}")
        times = sorted(curve.error)
        errors, style = [curve.error[t] for t in times], "-" if is_first else "--"
        axes.plot(times, errors, style, label=curve.name, color=colour, linewidth=1)
        marked = [t for t in times if t in curve.trained]
        axes.plot(marked, [curve.error[t] for t in marked], "o", color=colour, markersize=4)
    axes.set_xlim(1, 0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time t: noise at 1, data at 0; dots are trained times")
    axes.set_ylabel("mean absolute error of the state per pixel")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("students", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--times", type=int, default=24, help="asked between 1 and 0")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--steps", type=int, default=96, help="of the solver")
    parser.add_argument("--out", type=Path, help="PNG file")
    options = parser.parse_args()
    curves = []
    for text in options.students:
        name, _, folder = text.rpartition("=")
        curves.append(measure(name, Path(folder), options.times, options.samples, options.steps))
    print(table(curves))
    if options.out is not None:
        plot(curves, options.out)


if __name__ == "__main__":
    main()
