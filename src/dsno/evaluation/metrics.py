"""metrics.json: what `dsno evaluate` writes of a run, checked when it is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsno.evaluation.equivalence import Equivalence
from dsno.evaluation.estimate import Estimate
from dsno.evaluation.samplers import STUDENT
from dsno.evaluation.validity import Shortage
from dsno.support.errors import InputError
from dsno.support.files import read_json

METRICS = "metrics.json"
REMEDY = "run `dsno evaluate` again"

Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class SamplerRecord(_Record):
    """What was measured of one sampler; distances and the like by feature space.

    All but the Frechet distance may be missing in some spaces: they need the reference's features,
    enough samples or a classifier, and records of earlier versions lack them.
    """

    name: str
    label: str
    nfe: int = Field(ge=1)
    spacing: str | None = None
    frechet_distance: dict[str, float]
    frechet_error: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Standard error of the Frechet distance."""
    kernel_distance: dict[str, Estimate] = {}
    precision: dict[str, Share] = {}
    recall: dict[str, Share] = {}
    inception_score: dict[str, Estimate] = {}
    seconds_per_sample: float = Field(ge=0)
    relative_time: float | None = None
    paired_l1: float | None = None

    def frechet(self, space: str) -> Estimate:
        """The Frechet distance with its error; an error that is not known is NaN."""
        error = self.frechet_error.get(space, math.nan)
        return Estimate(self.frechet_distance[space], error)


class _Reference(_Record):
    name: str
    count: int
    split_half_distance: dict[str, float] = {}
    """Empty where only statistics of the data are known."""
    real: bool = True
    """Whether it is real data, or samples of the teacher."""

    @property
    def what(self) -> str:
        """The reference in two words."""
        return "real data" if self.real else "teacher's samples"

    @property
    def items(self) -> str:
        """What it consists of, in the plural."""
        return f"real items of {self.name}" if self.real else "samples of the teacher"


class _Features(_Record):
    dimension: int
    held_out_accuracy: float | None = None
    seed: int | None = None
    network: str | None = None
    file: str | None = None
    resolution: str | None = None
    quantisation: str | None = None
    sha256: str | None = None
    weights_sha256: str | None = None


class _Ema(_Record):
    teacher: float | None = None
    student: float | None = None


class _Protocol(_Record):
    """What decides the numbers and stands nowhere else."""

    split: str | None = None
    shape: list[int]
    ema_decay: _Ema
    full: bool
    data_sha256: str


class _PairedReference(_Record):
    method: str
    steps: int
    spacing: str | None = None


class _Verdict(_Record):
    student: float
    ddim: float
    ddim_nfe: int
    features: str


class _TeacherRecord(_Record):
    step: int
    loss: float


class _StudentRecord(_TeacherRecord):
    per_time: list[float] | None = None


class _Extended(_Record):
    """Where a training was extended whose learning rates depend on how many steps there are."""

    steps: int
    at: int


class _Look(_Record):
    step: int
    distance: float | None
    recall: float


class _Finish(_Record):
    """What was seen on the way of a finish, and the step that was kept."""

    kept: int
    samples: int
    looks: list[_Look]


class _Spectrum(_Record):
    modes: list[int]
    power: list[float]
    kept: int


class _Trajectories(_Record):
    count: int
    solver: str
    steps: int
    nfe: int
    precision: str = "exact"


class _Arithmetic(_Record):
    precision: str = "exact"
    compiled: bool = False


class Metrics(_Record):
    """metrics.json, as `dsno evaluate` writes it."""

    name: str
    title: str | None = None
    samples: int
    seed: int | None = None
    batch_size: int | None = None
    arithmetic: _Arithmetic = _Arithmetic()
    protocol: _Protocol | None = None
    """None in files of earlier versions, as `seed` and `batch_size`."""
    samplers: list[SamplerRecord]
    reference: _Reference
    features: dict[str, _Features]
    paired_reference: _PairedReference | None = None
    verdict: _Verdict
    trained_times: list[float]
    student_history: list[_StudentRecord] = []
    teacher_history: list[_TeacherRecord] = []
    extended: dict[str, list[_Extended]] = {}
    finish: _Finish | None = None
    """None without a finish."""
    spectrum: _Spectrum | None = None
    parameters: dict[str, int]
    trajectories: _Trajectories
    step_equivalence: list[Equivalence] = []
    warnings: list[Shortage] = []
    weights: dict[str, dict[str, str]] = {}
    """SHA-256 of the files of the models measured, by the models' folders; the last one is the
    student of the verdict. Empty in files of earlier versions."""
    sampling_cost: float | None = None
    """Multiply-adds of a sample of the student, in evaluations of the teacher's network."""
    durations: dict[str, float]
    recipe: dict[str, Any]
    environment: dict[str, Any]
    command: str

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        distances = [row.frechet_distance for row in self.samplers]
        for row in [*distances, self.reference.split_half_distance or distances[0]]:
            if row.keys() != self.features.keys() or self.verdict.features not in row:
                raise ValueError("every distance and the verdict must use the features listed")
        if not {row.features for row in self.step_equivalence} <= self.features.keys():
            raise ValueError("every step equivalence must use the features listed")
        self.of_one_step(STUDENT)
        known = [row.per_time for row in self.student_history if row.per_time is not None]
        if any(len(values) != len(self.trained_times) for values in known):
            raise ValueError("student_history.per_time and trained_times differ in length")
        if self.spectrum and len(self.spectrum.modes) != len(self.spectrum.power):
            raise ValueError("spectrum.modes and spectrum.power differ in length")
        return self

    def feature_names(self) -> list[str]:
        """The feature spaces, the verdict's first."""
        return sorted(self.features, key=lambda name: name != self.verdict.features)

    def of_one_step(self, name: str) -> SamplerRecord:
        """What was measured of a student's one evaluation.

        Raises:
            ValueError: if that was not measured.
        """
        for row in self.samplers:
            if row.name == name and row.spacing is None:
                return row
        raise ValueError(f"no sampler is named {name!r}")

    def equivalences(self) -> list[Equivalence]:
        """The step equivalence in the verdict's features, one for each solver."""
        return [row for row in self.step_equivalence if row.features == self.verdict.features]


def read_metrics(path: Path) -> Metrics:
    """Read and check metrics.json.

    Raises:
        InputError: if it is missing or malformed.
    """
    try:
        return Metrics.model_validate(read_json(path, "metrics file", REMEDY))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise InputError(f"The metrics file {path} is malformed ({reason}); {REMEDY}.") from None
