"""A run's report: one html file with its figures inside, from metrics.json and arrays.safetensors.

Only layout happens here: the page can be made again anywhere from those two files.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Self

import yaml
from jinja2 import Environment, StrictUndefined
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dsno.evaluation import figures
from dsno.evaluation.evaluate import SAMPLER_NAMES
from dsno.evaluation.figures import STUDENT, number, order, singular
from dsno.support.errors import InputError
from dsno.support.files import read_json, write_text
from dsno.support.images import CELL, MODES, grid, save_png

METRICS, ARRAYS, PAGE = "metrics.json", "arrays.safetensors", "report.html"
TEMPLATE = "report_template.html.j2"
REMEDY = "run `dsno evaluate` again"
SAMPLES = ("real", "teacher", "ddim", "student")
TRAJECTORIES = ("teacher_trajectory", "student_trajectory")


class _Part(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class _Sampler(_Part):
    name: str
    label: str
    nfe: int = Field(ge=1)
    spacing: str | None = None
    frechet_distance: dict[str, float]
    seconds_per_sample: float = Field(ge=0)
    relative_time: float | None = None
    paired_l1: float | None = None


class _Reference(_Part):
    name: str
    count: int
    split_half_distance: dict[str, float]
    real: bool = True
    """Whether it is real data, or samples of the teacher."""

    @property
    def what(self) -> str:
        """The reference in two words."""
        return "real data" if self.real else "teacher's samples"

    @property
    def items(self) -> str:
        """One of its items, in the plural."""
        return f"real items of {self.name}" if self.real else "samples of the teacher"


class _Features(_Part):
    dimension: int
    held_out_accuracy: float | None = None
    seed: int | None = None


class _PairedReference(_Part):
    method: str
    steps: int
    spacing: str | None = None


class _Verdict(_Part):
    student: float
    ddim: float
    ddim_nfe: int
    features: str


class _TeacherRecord(_Part):
    step: int
    loss: float


class _StudentRecord(_TeacherRecord):
    per_time: list[float] | None = None


class _Spectrum(_Part):
    modes: list[int]
    power: list[float]
    kept: int


class _Trajectories(_Part):
    count: int
    solver: str
    steps: int
    nfe: int


class Metrics(_Part):
    """metrics.json, as `dsno evaluate` writes it."""

    name: str
    title: str | None = None
    samples: int
    samplers: list[_Sampler]
    reference: _Reference
    features: dict[str, _Features]
    paired_reference: _PairedReference | None = None
    verdict: _Verdict
    trained_times: list[float]
    student_history: list[_StudentRecord] = []
    teacher_history: list[_TeacherRecord] = []
    spectrum: _Spectrum | None = None
    parameters: dict[str, int]
    trajectories: _Trajectories
    durations: dict[str, float]
    recipe: dict[str, Any]
    environment: dict[str, Any]
    command: str

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        distances = [row.frechet_distance for row in self.samplers]
        for row in [*distances, self.reference.split_half_distance]:
            if row.keys() != self.features.keys() or self.verdict.features not in row:
                raise ValueError("every distance and the verdict must use the features listed")
        if STUDENT not in (row.name for row in self.samplers):
            raise ValueError(f"no sampler is named {STUDENT!r}")
        known = [row.per_time for row in self.student_history if row.per_time is not None]
        if any(len(values) != len(self.trained_times) for values in known):
            raise ValueError("student_history.per_time and trained_times differ in length")
        if self.spectrum and len(self.spectrum.modes) != len(self.spectrum.power):
            raise ValueError("spectrum.modes and spectrum.power differ in length")
        return self

    def feature_names(self) -> list[str]:
        """The feature spaces, the verdict's first."""
        return sorted(self.features, key=lambda name: name != self.verdict.features)


def write_report(folder: Path) -> Path:
    """Write figures/*.png and report.html beside metrics.json and arrays.safetensors.

    Args:
        folder: runs/<name>/report, as `dsno evaluate` leaves it.

    Returns:
        The html file, self-contained.

    Raises:
        InputError: if one of the two files is missing or malformed; nothing is written then.
        WorkError: if a file cannot be written; each is whole or not there.
    """
    metrics = _read_metrics(folder / METRICS)
    pictures = _draw(metrics, _read_arrays(folder / ARRAYS))
    uris = {}
    for name, picture in pictures.items():
        path = folder / "figures" / f"{name}.png"
        save_png(picture, path)
        uris[name] = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    write_text(folder / PAGE, _render(metrics, uris))
    return folder / PAGE


def _read_metrics(path: Path) -> Metrics:
    """metrics.json, checked; `InputError` if it is missing or malformed."""
    try:
        return Metrics.model_validate(read_json(path, "metrics file", REMEDY))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise InputError(f"The metrics file {path} is malformed ({reason}); {REMEDY}.") from None


def _read_arrays(path: Path) -> dict[str, Tensor]:
    """arrays.safetensors, checked; its images are there in whole groups or not at all."""
    try:
        arrays = load_file(path)
    except FileNotFoundError:
        raise InputError(f"There is no arrays file at {path}; {REMEDY}.") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"The arrays file {path} cannot be read ({error}); {REMEDY}.") from None
    for group, ndim in ((SAMPLES, 4), (TRAJECTORIES, 5)):
        if reason := _problem(arrays, group, ndim):
            raise InputError(f"The arrays file {path} is malformed ({reason}); {REMEDY}.")
    return arrays


def _problem(arrays: Mapping[str, Tensor], group: tuple[str, ...], ndim: int) -> str | None:
    """What is wrong with a group of images (n, ..., C, H, W), None if nothing is."""
    missing = [name for name in group if name not in arrays]
    if len(missing) == len(group):
        return None
    if missing:
        return f"{missing[0]!r} is missing"
    if ndim == 5 and arrays.get("trajectory_times", arrays[group[0]]).ndim != 1:
        return "'trajectory_times' is missing or not a list"
    last = arrays[group[-1]]
    for name in group:
        array = arrays[name]
        shape = tuple(array.shape)
        if array.ndim != ndim or shape[-3] not in MODES or not array.numel():
            return f"{name!r} has shape {shape}"
        if shape[1:] != last.shape[1:] or (name != "real" and len(array) != len(last)):
            return f"the shapes of {name!r} and {group[-1]!r} differ"
        if array.isnan().any():
            return f"{name!r} holds NaN"
        if ndim == 5 and shape[1] != len(arrays["trajectory_times"]):
            return f"{name!r} and 'trajectory_times' differ in length"
    return None


def _draw(metrics: Metrics, arrays: Mapping[str, Tensor]) -> dict[str, Image.Image]:
    """The figures by name; those without data are left out."""
    pictures: dict[str, Image.Image] = {}
    if SAMPLES[0] in arrays:
        side = max(arrays["real"].shape[-2:])
        columns, rows = (6, 8) if side <= 64 else (4, 4)
        for name in SAMPLES:
            pictures[name] = grid(
                arrays[name][: columns * rows], columns, scale=math.ceil(2 * CELL / side), gap=4
            )
    data, times = metrics.model_dump(), metrics.trained_times
    if TRAJECTORIES[0] in arrays:
        teacher, student = (arrays[name] for name in TRAJECTORIES)
        pictures["trajectories"] = figures.trajectories(
            arrays["trajectory_times"].tolist(), teacher, student, times
        )
    floors = {name: metrics.reference.split_half_distance[name] for name in metrics.feature_names()}
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


def verdict(metrics: Metrics) -> tuple[str, list[str]]:
    """The verdict in one plain sentence, and the sentences that put it in proportion."""
    v, evaluations = metrics.verdict, _evaluations(metrics.verdict.ddim_nfe)
    word = "beats" if v.student < v.ddim else "does not beat" if v.student > v.ddim else "equals"
    told = [
        f"In {_evaluations(_ordered(metrics)[0].nfe)} its Frechet distance "
        f"({singular(v.features)} features) to the {metrics.reference.what} is "
        f"{number(v.student)}; with {evaluations} DDIM's is {number(v.ddim)} (lower is better)."
    ]
    others = [row for row in metrics.samplers if row.name != STUDENT]
    if better := [row for row in others if row.frechet_distance[v.features] < v.student]:
        best = min(better, key=lambda row: row.frechet_distance[v.features])
        fewest = min(better, key=lambda row: (row.nfe, row.frechet_distance[v.features]))
        leads = "The fewest evaluations that do better", "The lowest distance measured"
        for lead, row in zip(leads, (fewest, best), strict=True):
            steps = f"{row.spacing} steps, " if row.spacing not in (None, "uniform") else ""
            distance = steps + number(row.frechet_distance[v.features])
            told.append(f"{lead}: {row.label} with {_evaluations(row.nfe)} ({distance}).")
    else:
        told.append("No measured sampler has a lower distance.")
    return f"The one-step student {word} DDIM with {evaluations} on a uniform grid.", told


def _ordered(metrics: Metrics) -> list[_Sampler]:
    """The samplers: the student, then method by method, by spacing and evaluations."""
    return sorted(metrics.samplers, key=lambda row: (*order(row.name, row.spacing), row.nfe))


def _render(metrics: Metrics, uris: Mapping[str, str]) -> str:
    """The page, with the figures' `uris` by name."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "duration": _duration}
    environment.filters |= {"evaluations": _evaluations, "singular": singular}
    text = (resources.files("dsno.evaluation") / TEMPLATE).read_text(encoding="utf-8")
    sentence, told = verdict(metrics)
    return environment.from_string(text).render(
        m=metrics,
        sentence=sentence,
        told=told,
        rows=_ordered(metrics),
        names=metrics.feature_names(),
        labels=SAMPLER_NAMES,
        uris=uris,
        recipe=yaml.safe_dump(metrics.recipe, sort_keys=False, allow_unicode=True),
    )


def _evaluations(count: int) -> str:
    return "one evaluation" if count == 1 else f"{count:,} evaluations"


def _duration(seconds: float) -> str:
    """0.42 s; 42.1 s; 7 min 5 s; 3 h 12 min."""
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"
