"""The samplers of an evaluation as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dsno.evaluation.equivalence import Equivalence, in_words
from dsno.evaluation.estimate import Z95

NONE = "-"
ABOUT = ["sampler", "evaluations", "spacing"]
MEASURES = {
    "kernel_distance": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "inception score",
}
"""Metrics beside the Frechet distance, by their names in metrics.json."""
INTERVALS = (
    "± is half of a 95 % interval over draws of as many samples; the reference is fixed, but for "
    "the kernel distance, where it is drawn too."
)


def table(metrics: Mapping[str, Any]) -> str:
    """What metrics.json says of the samplers, cheapest first.

    Distances and times, with the distance of the reference's halves; the other metrics in the
    verdict's features; the step equivalence in the same.
    """
    rows = sorted(metrics["samplers"], key=lambda row: (row["nfe"], row["name"]))
    space = metrics["verdict"]["features"]
    texts = [_distances(metrics, rows)]
    if named := [name for name in MEASURES if any(space in row.get(name, ()) for row in rows)]:
        texts.append(_measures(rows, space, named))
    if any(row.get("frechet_error") for row in rows):
        texts.append(INTERVALS)
    found = [Equivalence(**row) for row in metrics.get("step_equivalence", ())]
    if found := [row for row in found if row.features == space]:
        texts.append(in_words(found))
    return "\n\n".join(texts)


def _distances(metrics: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> str:
    spaces = list(metrics["features"])
    lines = [[*ABOUT, *(f"distance ({s})" for s in spaces), "time / student's"]]
    for row in rows:
        errors = row.get("frechet_error", {})
        distances = (_text(row["frechet_distance"][s], errors.get(s)) for s in spaces)
        lines.append([*_about(row), *distances, f"{row['relative_time']:.2f}"])
    floor = metrics["reference"]["split_half_distance"]
    name = "real" if metrics["reference"].get("real", True) else "reference"
    halves = (_text(floor[s]) for s in spaces)
    lines.append([f"{name}, half against half", NONE, NONE, *halves, NONE])
    return _aligned(lines)


def _measures(rows: Iterable[Mapping[str, Any]], space: str, named: Sequence[str]) -> str:
    lines = [[*ABOUT, *(f"{MEASURES[name]} ({space})" for name in named)]]
    for row in rows:
        lines.append([*_about(row), *(_measure(row.get(name, {}).get(space)) for name in named)])
    return _aligned(lines)


def _about(row: Mapping[str, Any]) -> list[str]:
    return [row["label"], str(row["nfe"]), row["spacing"] or NONE]


def _measure(found: float | Mapping[str, float] | None) -> str:
    if found is None:
        return NONE
    if isinstance(found, Mapping):
        return _text(found["value"], found["standard_error"])
    return f"{found:.3f}"


def _text(value: float, error: float | None = None) -> str:
    """Three significant digits, and half of the 95 % interval to two."""
    return f"{value:.3g}" + ("" if error is None else f" ± {Z95 * error:.2g}")


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
