"""The report's figures, each a function of plain numbers; one colour per method throughout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image
from torch import Tensor

from dsno.evaluation.estimate import Z95
from dsno.evaluation.features import singular
from dsno.evaluation.samplers import STUDENT, UNFINISHED
from dsno.evaluation.wording import order, short
from dsno.support.images import to_pil

Row = Mapping[str, Any]
Curve = tuple[str, Any, Sequence[int], Sequence[float]]
"""Label, colour, x, y."""
COLOURS = {
    STUDENT: "#D55E00",
    UNFINISHED: "#F0A878",
    "ddim": "#0072B2",
    "dpm++2m": "#009E73",
    "unipc": "#E69F00",
    "heun": "#CC79A7",
}
OTHER, GREY = "#7A5BA6", "#777777"
MARKERS = {None: "o", "uniform": "o", "quadratic": "s", "karras": "^"}
STYLE: Any = {  # matplotlib spells out every key as a type
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.edgecolor": "none",
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "figure.dpi": 160,
    "text.parse_math": False,
}
COLUMNS, NOISES = 9, 4


def quality(
    samplers: Sequence[Row],
    floors: Mapping[str, float],
    *,
    by: str,
    reference: str = "real data",
) -> Image.Image:
    """Distance of every sampler, one panel per feature space, both axes logarithmic.

    Args:
        samplers: rows of metrics.json; uniform steps are joined by a line, others are markers.
        floors: for each panel's features, the distance between two halves of the reference; 0
            where it is not known.
        reference: what the samples are compared with.
        by: "nfe", or "time" for milliseconds per sample, with DDIM's evaluations written beside.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(7.2, 4.8 * len(floors)), 4.4), layout="constrained")
        panels = figure.subplots(1, len(floors), squeeze=False)[0]
        for panel, (features, floor) in zip(panels, floors.items(), strict=True):
            for key, rows in _series(samplers).items():
                _draw_series(panel, key, rows, features, by)
            if floor > 0:
                label = f"two halves of {reference}"
                panel.axhline(floor, color=GREY, ls="--", lw=1.3, zorder=1, label=label)
            panel.set_title(f"{singular(features)} features")
            _log_axis(panel.yaxis)
            if by == "nfe":
                _powers_of_two(panel, max(row["nfe"] for row in samplers))
                panel.set_xlabel("network evaluations per sample")
            else:
                panel.set_xscale("log")
                panel.margins(x=0.12)
                _log_axis(panel.xaxis)
                panel.set_xlabel("time per sample (ms)")
        panels[0].set_ylabel("Frechet distance (lower is better)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, 1 + len(floors)))
        return _render(figure)


def _series(samplers: Sequence[Row]) -> dict[tuple[str, str | None], list[Row]]:
    """Rows by method and spacing, in order of evaluations."""
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in sorted(samplers, key=lambda row: int(row["nfe"])):
        groups.setdefault((row["name"], row["spacing"]), []).append(row)
    return dict(sorted(groups.items(), key=lambda item: order(*item[0])))


def _draw_series(
    panel: Axes, key: tuple[str, str | None], rows: Sequence[Row], features: str, by: str
) -> None:
    name, spacing = key
    rows = [row for row in rows if row["frechet_distance"].get(features, 0) > 0]
    if not rows:
        return
    x = [row["nfe"] if by == "nfe" else 1e3 * row["seconds_per_sample"] for row in rows]
    y = [row["frechet_distance"][features] for row in rows]
    half = [Z95 * row.get("frechet_error", {}).get(features, 0) for row in rows]
    colour, label = COLOURS.get(name, OTHER), rows[0]["label"]
    if any(half):
        low = [min(h, 0.9 * v) for h, v in zip(half, y, strict=True)]  # the axis is logarithmic
        panel.errorbar(x, y, [low, half], fmt="none", ecolor=colour, elinewidth=1.1, capsize=2)
    if name == STUDENT and spacing is None:
        panel.axhline(y[0], color=colour, ls=":", lw=1.1, zorder=1)
        panel.plot(
            x,
            y,
            "*",
            color=colour,
            ms=17,
            mec="white",
            mew=0.8,
            zorder=4,
            label=f"{label} (student)",
        )
        for point in zip(x, y, strict=True):
            _note(panel, short(point[1]), point, 9, 5, color=colour, weight="bold")
        return
    line = spacing in (None, "uniform") or name == STUDENT
    panel.plot(
        x,
        y,
        MARKERS.get(spacing, "D") + ("-" if line else ""),
        color=colour,
        ms=6 if line else 7.5,
        mfc=colour if line else "none",
        mew=1.4,
        zorder=3 if line else 3.5,
        label=_described(name, label, spacing),
    )
    if by == "time" and line and name == "ddim":
        for row, point in zip(rows, zip(x, y, strict=True), strict=True):
            _note(panel, f"{row['nfe']:,}", point, 5, 5, color=colour)


def _described(name: str, label: str, spacing: str | None) -> str:
    """A series in the legend."""
    if name == STUDENT or spacing is None:
        return f"{label}, {spacing}" if spacing else label
    return f"{label}, {spacing} steps"


def _note(
    panel: Axes, text: str, point: tuple[float, float], dx: int, dy: int, **style: Any
) -> None:
    offset: Any = {"xytext": (dx, dy), "textcoords": "offset points"}
    panel.annotate(text, point, **offset, **style, fontsize=9, zorder=5)


def losses(student: Sequence[Row], teacher: Sequence[Row], times: Sequence[float]) -> Image.Image:
    """The student's loss at each trained time, and the teacher's loss if it was trained here.

    Args:
        student: records with `step` and perhaps `per_time`, in the order of `times`.
        teacher: records with `step` and `loss`; may be empty.
        times: trained times, t = 1 noise and t = 0 data.
    """
    with mpl.rc_context(STYLE):
        curves: list[tuple[str, list[Curve]]] = []
        student = [row for row in student if row.get("per_time")]
        if student:
            steps = [row["step"] for row in student]
            colours = mpl.colormaps["viridis"](np.linspace(0, 0.88, len(times)))
            per_time: list[Curve] = [
                (f"t = {t:.4g}", colours[i], steps, [row["per_time"][i] for row in student])
                for i, t in enumerate(times)
            ]
            curves.append(("Student: trajectory loss at each time t", per_time))
        if teacher:
            steps, values = [row["step"] for row in teacher], [row["loss"] for row in teacher]
            curves.append(("Teacher: denoising loss", [("teacher", GREY, steps, values)]))
        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for panel, (title, lines) in zip(panels, curves, strict=True):
            for label, colour, x, y in lines:
                style = "o-" if len(x) < 10 else "-"
                panel.plot(x, y, style, color=colour, ms=4, lw=1.4, label=label)
            panel.set_title(title)
            panel.set_xlabel("training step")
            panel.set_ylabel("loss")
            panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
            _log_axis(panel.yaxis)
            if len(lines) > 1:
                panel.legend(loc="upper right", ncols=math.ceil(len(lines) / 4))
        return _render(figure)


def spectrum(modes: Sequence[int], power: Sequence[float], kept: int) -> Image.Image:
    """Mean power of the trajectories in each temporal Fourier mode; the first `kept` stand out."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        panel = figure.subplots()
        groups = (
            (slice(kept), COLOURS[STUDENT], "kept by the student"),
            (slice(kept, None), "#BBBBBB", "left out"),
        )
        floor = min((p for p in power if p > 0), default=1.0) / 3
        for group, colour, label in groups:
            if modes[group]:
                panel.bar(modes[group], power[group], color=colour, label=label, width=0.75)
        _log_axis(panel.yaxis)
        panel.set_ylim(bottom=floor)
        panel.set_xticks(list(modes)[:: math.ceil(len(modes) / 17)])
        panel.grid(visible=False, axis="x")
        panel.set_xlabel("temporal Fourier mode (0 is the mean over time)")
        panel.set_ylabel("mean power")
        panel.legend()
        return _render(figure)


def trajectories(
    times: Sequence[float], teacher: Tensor, student: Tensor, trained: Sequence[float]
) -> Image.Image:
    """For a few noises, the solver's states above the student's, one column per time.

    Args:
        times: Q falling times.
        teacher: (n, Q, C, H, W) in [-1, 1], the solver's states.
        student: (n, Q, C, H, W), the student's, from the same noise.
        trained: times the student was trained at; their labels are bold.
    """
    count = len(times)
    columns = sorted({round(i) for i in np.linspace(0, count - 1, min(count, COLUMNS))})
    noises = min(NOISES, len(teacher))
    left, top, cell, gap, apart = 0.82, 0.34, 0.92, 0.05, 0.2  # inches
    width = left + len(columns) * (cell + gap)
    height = top + noises * (2 * (cell + gap) + apart) - apart
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        for i in range(2 * noises):
            name, states = ("solver", teacher) if i % 2 == 0 else ("student", student)
            down = top + i * (cell + gap) + i // 2 * apart
            colour = "#333333" if i % 2 == 0 else COLOURS[STUDENT]
            y = 1 - (down + cell / 2) / height
            figure.text(0.02, y, name, color=colour, va="center", fontsize=11)
            for j, image in enumerate(to_pil(states[i // 2, columns])):
                x = left + j * (cell + gap)
                box = (x / width, 1 - (down + cell) / height, cell / width, cell / height)
                panel = figure.add_axes(box)
                panel.imshow(np.asarray(image.convert("RGBA")), interpolation="nearest")
                panel.set_axis_off()
        for j, column in enumerate(columns):
            t = times[column]
            style: Any = {"ha": "center", "va": "center"}
            if any(abs(t - other) < 1e-4 for other in trained):
                style["weight"] = "bold"
            x = (left + j * (cell + gap) + cell / 2) / width
            figure.text(x, 1 - 0.2 / height, f"t = {t:.4g}", **style)
        return _render(figure)


def _log_axis(axis: Axis) -> None:
    """A logarithmic axis whose labels are plain numbers, denser where it spans little."""
    panel = axis.axes
    (panel.set_xscale if axis is panel.xaxis else panel.set_yscale)("log")
    low, high = axis.get_view_interval()
    ratio = high / low if low > 0 else math.inf
    subs = (
        range(1, 10)
        if ratio < 5
        else (1, 2, 3, 5)
        if ratio < 30
        else (1, 2, 5)
        if ratio < 300
        else (1,)
    )
    axis.set_major_locator(LogLocator(10, subs=list(subs)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    axis.set_minor_formatter(NullFormatter())


def _powers_of_two(panel: Axes, largest: int) -> None:
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator([2**i for i in range(largest.bit_length() + 1)]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def _render(figure: Figure) -> Image.Image:
    canvas: Any = FigureCanvasAgg(figure)  # its methods are untyped
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
