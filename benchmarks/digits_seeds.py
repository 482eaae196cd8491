"""The digits recipe over several seeds: the table of results/digits.md.

    .venv/bin/python benchmarks/digits_seeds.py --seeds 0 1 2 --out runs/digits-seeds

Runs `dsno run digits seed=S` for each seed with every sampler of `CURVES` and prints Markdown;
`--plot` draws it. Finished runs are not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from frontier import DSNO_COLOUR, spread

from dsno.cli import main as dsno
from dsno.evaluation.estimate import Estimate

CURVES = [
    {"solver": "ddim", "steps": [1, 2, 4, 8, 16, 32]},
    {"solver": "dpm++2m", "steps": [4, 8, 16, 32]},
    {"solver": "unipc", "steps": [3, 4, 6, 8]},
]


def measure(seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """What `dsno run digits` measures with one seed and every sampler of `CURVES`."""
    run = folder / f"seed-{seed}"
    curves = f"evaluate.curves={json.dumps(CURVES)}"
    code = dsno(["run", "digits", f"seed={seed}", *overrides, curves, "--out", str(run)])
    if code:
        sys.exit(code)
    metrics: dict[str, Any] = json.loads((run / "report" / "metrics.json").read_text())
    return metrics


def key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["label"], row["spacing"] or "-", row["nfe"]


def interval(row: dict[str, Any]) -> str:
    """Distance in classifier features and half of its 95 % interval."""
    found = Estimate(row["frechet_distance"]["classifier"], row["frechet_error"]["classifier"])
    return f"{found.value:.3f} ± {found.half_width:.2f}"


def mean_of(rows: list[dict[str, Any]], metric: str, features: str) -> float:
    """Of all seeds."""
    return statistics.mean(row[metric][features] for row in rows)


def table(metrics: list[dict[str, Any]], seeds: list[int]) -> str:
    """One row a sampler: distances per seed with intervals, their mean, and other measures."""
    by = [{key(r): r for r in m["samplers"]} for m in metrics]
    seed_names = " | ".join(f"seed {s}" for s in seeds)
    lines = [
        f"| sampler | spacing | evaluations | {seed_names} | mean | pixels | precision | recall "
        "| paired L1 | time / student's, median |",
        "|---|---|---|" + "---|" * (len(seeds) + 6),
    ]
    for k in by[0]:
        rows = [b[k] for b in by]
        distances = [r["frechet_distance"]["classifier"] for r in rows]
        paired = [r["paired_l1"] for r in rows if r["paired_l1"] is not None]
        time = statistics.median(r["relative_time"] for r in rows)
        lines.append(
            f"| {k[0]} | {k[1]} | {k[2]} | "
            + " | ".join(interval(r) for r in rows)
            + f" | {statistics.mean(distances):.3f} | "
            f"{mean_of(rows, 'frechet_distance', 'pixels'):.3f} | "
            f"{mean_of(rows, 'precision', 'classifier'):.3f} | "
            f"{mean_of(rows, 'recall', 'classifier'):.3f} | "
            + (f"{statistics.mean(paired):.4f}" if paired else "-")
            + f" | {time:.2f} |"
        )
    return "\n".join(lines)


SHOWN = {
    "DSNO": ("*", DSNO_COLOUR, (10, 0), "left"),
    "DSNO before its finish": ("*", "#e69f66", (8, 8), "left"),
    "DSNO, then its teacher": ("D", DSNO_COLOUR, (8, -4), "left"),
}
"""Of the student's rows: marker, colour, where the name stands, how it is aligned."""


def plot(metrics: list[dict[str, Any]], path: Path) -> None:
    """Distance against evaluations, both on logarithmic axes; mean and range of the seeds."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, NullFormatter

    by = [{key(r): r["frechet_distance"]["classifier"] for r in m["samplers"]} for m in metrics]
    curves: dict[str, list[tuple[float, list[float]]]] = {}
    for k in by[0]:
        curves.setdefault(k[0], []).append((float(k[2]), [b[k] for b in by]))
    figure, axes = plt.subplots(figsize=(8.5, 5), layout="constrained")
    greys = iter(("0.7", "0.5", "0.2"))
    for label, points in curves.items():
        marker, colour, offset, align = SHOWN.get(label, ("o", "", (8, 0), "left"))
        colour = colour or next(greys)
        spread(axes, points, color=colour, marker=marker)
        nfe, distances = points[-1]
        at = nfe, statistics.mean(distances)
        style: dict[str, Any] = {"fontsize": 9, "color": colour, "ha": align, "va": "center"}
        axes.annotate(label, at, offset, textcoords="offset points", **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(0.85, 90)
    axes.set_ylim(0.18, 3)
    axes.set_yticks([0.2, 0.3, 0.4, 0.6, 1, 2, 3])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("network evaluations per sample")
    axes.set_ylabel("Frechet distance (classifier features)")
    axes.set_title(f"8x8 digits; mean and range of {len(metrics)} seeds", fontsize=10)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/digits-seeds"))
    parser.add_argument("--plot", type=Path, help="PNG file")
    parser.add_argument("overrides", nargs="*", help="key.sub=value, for every run")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = [measure(s, arguments.out, arguments.overrides) for s in arguments.seeds]
    print(table(found, arguments.seeds))
    if arguments.plot is not None:
        plot(found, arguments.plot)
    print("\nfeatures:", json.dumps(found[0]["features"]))
    print("two halves of the real data:", json.dumps(found[0]["reference"]["split_half_distance"]))
    for seed, metrics in zip(arguments.seeds, found, strict=True):
        print(f"seed {seed} seconds:", json.dumps(metrics["durations"]))
    print("environment:", json.dumps(found[0]["environment"]))


if __name__ == "__main__":
    main()
