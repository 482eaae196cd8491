"""Tables and the figure of the students that `ablations.py` made."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation_experiments import EXPERIMENTS, Changes


def lines(path: Path) -> list[dict[str, Any]]:
    """The results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def told(given: Sequence[str]) -> list[str]:
    """Of the changes for all, those that matter: not where files lie."""
    return [text for text in given if not text.startswith(("data.path=", "train.vgg16="))]


def rows_of(options: argparse.Namespace, changes: Changes) -> list[dict[str, Any]]:
    """The lines of a variant, seed by seed."""
    found = [
        line
        for line in lines(options.to)
        if line["changes"] == sorted(changes)
        and (line["terms"], line["steps"]) == (options.terms, options.steps)
        and (line["source"], line["given"]) == (options.recipe, told(options.set))
    ]
    return sorted(found, key=lambda line: line["seed"])


def show(options: argparse.Namespace) -> None:
    """A table for each experiment; and with `--plot` a figure of all."""
    names = options.experiments or list(EXPERIMENTS)
    for name in names:
        found = EXPERIMENTS[name]
        print(f"\n**{found.question}**\n")
        print("| variant | steps | training | distance, each seed | mean | paired L1 | recall |")
        print("|---|---|---|---|---|---|---|")
        for label, changes in found.variants.items():
            print(row(label, rows_of(options, changes)))
    if options.plot is not None:
        plot(options, names)


def plot(options: argparse.Namespace, names: Sequence[str]) -> None:
    """A panel for each experiment: seeds beside the recipe's own student, a line at the mean."""
    import matplotlib.pyplot as plt

    def distances(changes: Changes) -> dict[int, float]:
        found = rows_of(options, changes)
        return {row["seed"]: row["frechet_distance"]["classifier"] for row in found}

    usual = distances(())
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    heights = [
        max(len(EXPERIMENTS[name].variants) for name in names[i * columns : (i + 1) * columns])
        for i in range(rows)
    ]
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(6 * columns, sum(0.3 * h + 0.9 for h in heights)),
        height_ratios=[h + 1 for h in heights],
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, name in itertools.zip_longest(grid.flat, names):
        if name is None:
            axes.set_axis_off()
            continue
        variants = EXPERIMENTS[name].variants
        for place, changes in enumerate(variants.values()):
            ratios = {seed: d / usual[seed] for seed, d in distances(changes).items()}
            for seed, ratio in ratios.items():
                axes.plot(ratio, place, "o", color=f"C{seed}", markersize=4)
            if ratios:
                mean = statistics.mean(ratios.values())
                axes.plot([mean, mean], [place - 0.35, place + 0.35], color="black", linewidth=1.5)
        axes.set_yticks(range(len(variants)), list(variants), fontsize=8)
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.axvline(1, color="black", linewidth=0.5)
        axes.set_title(EXPERIMENTS[name].question, fontsize=9, loc="left")
        axes.tick_params(axis="x", labelbottom=True, labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    figure.supxlabel("Frechet distance, that of the recipe's own student is 1", fontsize=9)
    figure.savefig(options.plot, dpi=110)


def row(label: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Of one variant's seeds."""
    if not rows:
        return f"| {label} | not run | | | | | |"
    distances = [r["frechet_distance"]["classifier"] for r in rows]
    paired = statistics.mean(r["paired_l1"] for r in rows)
    recall = statistics.mean(r["recall"]["classifier"] for r in rows)
    each = ", ".join(f"{d:.3f}" for d in distances)
    spread = f" ± {statistics.stdev(distances) / math.sqrt(len(rows)):.3f}" if rows[1:] else ""
    return (
        f"| {label} | {rows[0]['trained_steps']:,} | {rows[0]['training']:.2f} | {each} "
        f"| {statistics.mean(distances):.3f}{spread} | {paired:.4f} | {recall:.3f} |"
    )
