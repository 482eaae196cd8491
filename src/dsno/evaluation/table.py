"""The samplers of an evaluation as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(metrics: Mapping[str, Any]) -> str:
    """The samplers of metrics.json, cheapest first, and the distance of the reference's halves."""
    spaces = list(metrics["features"])
    head = ["sampler", "evaluations", "spacing", *(f"distance ({s})" for s in spaces)]
    rows = [[*head, "time / student's"]]
    for row in sorted(metrics["samplers"], key=lambda r: (r["nfe"], r["name"])):
        distances = (f"{row['frechet_distance'][s]:.3g}" for s in spaces)
        about = row["label"], str(row["nfe"]), row["spacing"] or "-"
        rows.append([*about, *distances, f"{row['relative_time']:.2f}"])
    floor = metrics["reference"]["split_half_distance"]
    name = "real" if metrics["reference"].get("real", True) else "reference"
    rows.append([f"{name}, half against half", "-", "-", *(f"{floor[s]:.3g}" for s in spaces), "-"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
