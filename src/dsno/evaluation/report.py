"""A run's report: one html file with its figures inside, from metrics.json and arrays.safetensors.

Only layout happens here: the page can be made again anywhere from those two files.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from torch import Tensor

from dsno.evaluation import figures
from dsno.evaluation.arrays import ARRAYS, REAL, SAMPLES, TRAJECTORIES, read_arrays
from dsno.evaluation.metrics import METRICS, Metrics, read_metrics
from dsno.evaluation.template import render
from dsno.support.files import write_text
from dsno.support.images import CELL, grid, save_png

PAGE = "report.html"


def write_report(folder: Path, *, title: str = "") -> Path:
    """Write figures/*.png and report.html beside metrics.json and arrays.safetensors.

    Args:
        folder: runs/<name>/report, as `dsno evaluate` leaves it.
        title: instead of the one in metrics.json, if given.

    Returns:
        The html file, self-contained.

    Raises:
        InputError: if one of the two files is missing or malformed; nothing is written then.
        WorkError: if a file cannot be written; each is whole or not there.
    """
    metrics = read_metrics(folder / METRICS)
    if title:
        metrics = metrics.model_copy(update={"title": title})
    pictures = _draw(metrics, read_arrays(folder / ARRAYS))
    uris = {}
    for name, picture in pictures.items():
        path = folder / "figures" / f"{name}.png"
        save_png(picture, path)
        uris[name] = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    write_text(folder / PAGE, render(metrics, uris))
    return folder / PAGE


def _draw(metrics: Metrics, arrays: Mapping[str, Tensor]) -> dict[str, Image.Image]:
    """The figures by name; those without data are left out."""
    pictures: dict[str, Image.Image] = {}
    for name in (REAL, *SAMPLES):
        if name in arrays:
            side = max(arrays[name].shape[-2:])
            columns, rows = (6, 8) if side <= 64 else (4, 4)
            pictures[name] = grid(
                arrays[name][: columns * rows], columns, scale=math.ceil(2 * CELL / side), gap=4
            )
    data, times = metrics.model_dump(), metrics.trained_times
    if TRAJECTORIES[0] in arrays:
        teacher, student = (arrays[name] for name in TRAJECTORIES)
        pictures["trajectories"] = figures.trajectories(
            arrays["trajectory_times"].tolist(), teacher, student, times
        )
    halves = metrics.reference.split_half_distance
    floors = {name: halves.get(name, 0.0) for name in metrics.feature_names()}
    for name, by in (("quality", "nfe"), ("time", "time")):
        pictures[name] = figures.quality(
            data["samplers"], floors, by=by, reference=metrics.reference.what
        )
    if metrics.teacher_history or any(row.per_time for row in metrics.student_history):
        histories = data["student_history"], data["teacher_history"]
        pictures["losses"] = figures.losses(*histories, times)
    if metrics.spectrum:
        pictures["spectrum"] = figures.spectrum(**data["spectrum"])
    return pictures
