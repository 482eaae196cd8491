"""An evaluation in words: its sentences and numbers as the report and a model's card print them."""

from __future__ import annotations

import math

from dsno.evaluation.estimate import Estimate
from dsno.evaluation.features import singular
from dsno.evaluation.metrics import Metrics, SamplerRecord
from dsno.evaluation.samplers import SAMPLER_NAMES, STUDENT, UNFINISHED

SHOWN = 12
"""Digits of a checksum that are printed; metrics.json has all."""


def verdict(metrics: Metrics) -> tuple[str, list[str]]:
    """The verdict in one plain sentence, and the sentences that put it in proportion."""
    v, evaluations = metrics.verdict, in_evaluations(metrics.verdict.ddim_nfe)
    word = "beats" if v.student < v.ddim else "does not beat" if v.student > v.ddim else "equals"
    remarks = [
        f"In {in_evaluations(ordered(metrics)[0].nfe)} its Frechet distance "
        f"({singular(v.features)} features) to the {metrics.reference.what} is "
        f"{number(v.student)}; with {evaluations} DDIM's is {number(v.ddim)} (lower is better)."
    ]
    if before := [row for row in metrics.samplers if row.name == UNFINISHED]:
        remarks.append(
            "Before its finish by distribution matching it was "
            f"{number(before[0].frechet_distance[v.features])}."
        )
    further = [row for row in ordered(metrics) if row.name == STUDENT and row.spacing is not None]
    if further:
        points = [
            f"{number(row.frechet_distance[v.features])} with {in_evaluations(row.nfe)}"
            for row in further
        ]
        remarks.append(
            f"Where the teacher's solver goes on {further[0].spacing} of its trajectory, it is "
            f"{' and '.join(points)} in all."
        )
    others = [row for row in metrics.samplers if row.name not in (STUDENT, UNFINISHED)]
    best = min(others, key=lambda row: (row.frechet_distance[v.features], row.nfe))
    if better := [row for row in others if row.frechet_distance[v.features] < v.student]:
        fewest = min(better, key=lambda row: (row.nfe, row.frechet_distance[v.features]))
        leads = "The fewest evaluations that do better", "The lowest distance measured"
        for lead, row in zip(leads, (fewest, best), strict=True):
            remarks.append(f"{lead}: {_with_distance(row, v.features)}.")
    else:
        remarks.append(
            "No solver of the teacher that was measured does better; the nearest is "
            f"{_with_distance(best, v.features)}."
        )
    return f"The one-step student {word} DDIM with {evaluations} on a uniform grid.", remarks


def _with_distance(row: SamplerRecord, features: str) -> str:
    """A sampler, its evaluations and its distance."""
    steps = f"{row.spacing} steps, " if row.spacing not in (None, "uniform") else ""
    distance = steps + number(row.frechet_distance[features])
    return f"{row.label} with {in_evaluations(row.nfe)} ({distance})"


def deciding(metrics: Metrics) -> list[tuple[str, str]]:
    """What else decides the numbers, line by line; nothing for files that do not say."""
    lines: list[tuple[str, str]] = []
    if metrics.seed is not None:
        kind = metrics.arithmetic
        how = "" if kind.precision == "exact" else f", networks in {kind.precision}"
        how += ", compiled" if kind.compiled else ""
        lines.append(("Samples", f"{metrics.samples:,} of seed {metrics.seed}{how}"))
    if (protocol := metrics.protocol) is not None:
        shape = "x".join(map(str, protocol.shape))
        split = f", split {protocol.split}" if protocol.split is not None else ""
        about = f"{metrics.reference.name}, {metrics.reference.count:,} of {shape}{split}"
        lines.append(("Compared with", f"{about}; SHA-256 {protocol.data_sha256[:SHOWN]}"))
        for who, decay in protocol.ema_decay:
            if decay is not None:
                lines.append((f"Averaging of the {who}'s weights", f"decay {decay:g}"))
    if (finish := metrics.finish) is not None:
        by_step = {look.step: look for look in finish.looks}
        start, kept = by_step[0], by_step[finish.kept]
        seen = f"recall {share(start.recall)} before, {share(kept.recall)} then"
        if start.distance is not None and kept.distance is not None:
            seen = f"distance {number(start.distance)} before, {number(kept.distance)} then; {seen}"
        lines.append(
            ("Finish", f"step {finish.kept:,} kept; {finish.samples:,} samples looked at: {seen}")
        )
    for name, features in metrics.features.items():
        checksum = features.sha256 or features.weights_sha256
        said = [features.network, features.file, features.resolution, features.quantisation]
        words = [word for word in said if word]
        words += [f"SHA-256 {checksum[:SHOWN]}"] if checksum else []
        if words:
            lines.append((f"Features: {singular(name)}", "; ".join(words)))
    return lines


def ordered(metrics: Metrics) -> list[SamplerRecord]:
    """The samplers: the student, then method by method, by spacing and evaluations."""
    return sorted(metrics.samplers, key=lambda row: (*order(row.name, row.spacing), row.nfe))


def in_evaluations(count: int) -> str:
    """One evaluation; 16 evaluations."""
    return "one evaluation" if count == 1 else f"{count:,} evaluations"


def interval(estimate: Estimate) -> str:
    """0.385 ± 0.011, half of a 95 % interval; the value alone if its error is not known."""
    known = not math.isnan(estimate.standard_error)
    return number(estimate.value) + (
        f" ± {short(float(f'{estimate.half_width:.2g}'))}" if known else ""
    )


def share(x: float) -> str:
    """0.750: a precision or recall."""
    return f"{x:.3f}"


def symbol(text: str) -> str:
    """Inequalities as they are printed."""
    return text.replace(">=", "\u2265").replace("< ", "<\u2009")


def duration(seconds: float) -> str:
    """0.42 s; 42.1 s; 7 min 5 s; 3 h 12 min."""
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def number(x: float) -> str:
    """Three significant digits, thousands separated: 1,610; 42.2; 0.0552; 4.56e-05."""
    if x == 0 or not math.isfinite(x):
        return "0" if x == 0 else str(x)
    x = float(f"{x:.3g}")
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:#.3g}".rstrip(".")


def short(x: float) -> str:
    """`number` without trailing zeros, for ticks and labels."""
    text = number(x)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def order(name: str, spacing: str | None) -> tuple[int, str, str]:
    """Key that sorts the student first, then method by method, uniform steps first."""
    known = list(SAMPLER_NAMES)
    rank = known.index(name) if name in known else len(known)
    return rank, name, "" if spacing in (None, "uniform") else str(spacing)
