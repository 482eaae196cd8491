"""Bring a teacher or trajectories made elsewhere: find out what a source is and read it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.schedules import NoiseSchedule
from dsno.support.errors import InputError
from dsno.support.hub import looks_like_hub_id
from dsno.teachers.edm import load_edm
from dsno.teachers.pipelines import diffusers_teacher, hub_teacher
from dsno.teachers.progressive import load_progressive
from dsno.teachers.schedulers import SchedulerSettings
from dsno.teachers.store import DESCRIPTION, Teacher, load_teacher

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin")
ACCEPTED = (
    "a diffusers pipeline or network (a folder or a Hub id owner/name), an exported EDM network (a "
    "folder with network.json), a progressive-distillation checkpoint (.msgpack or .safetensors), "
    "a teacher's folder of this package, or an adapter (.py, with `dsno import`)"
)


@dataclass(frozen=True)
class TeacherOptions:
    """What the user says of a source that does not say it itself; None for "as it says".

    Attributes:
        prediction_type, schedule, sigma_data: see `Preconditioning`.
        clip_sample: clip D to [-1, 1].
        null_class: the label that means "no class".
        image_size: of a checkpoint.
    """

    prediction_type: str | None = None
    schedule: NoiseSchedule | None = None
    sigma_data: float = 1.0
    clip_sample: bool | None = None
    null_class: int | None = None
    image_size: int | None = None


def is_trajectories(source: str) -> bool:
    """Whether a source holds trajectories (an LMDB) rather than a teacher."""
    path = Path(source)
    return (path / "data.mdb").is_file() or path.suffix == ".mdb"


@functools.lru_cache(maxsize=1)
def read_teacher(source: str, options: TeacherOptions) -> Teacher:
    """The teacher in a source, whatever its kind; the last one is remembered.

    Raises:
        InputError: if it is none of the kinds accepted, or cannot be read.
    """
    teacher = _reader(source)(options)
    if options.clip_sample is not None:
        teacher.denoiser.clip_sample = 1.0 if options.clip_sample else None
        teacher.denoiser.dynamic_threshold = None
    return teacher


def _reader(source: str) -> Callable[[TeacherOptions], Teacher]:
    path = Path(source).expanduser()
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"{source} is a pickle, which can run code when it is loaded, so it is not; export it "
            "to safetensors first (see docs/teachers.md)."
        )
    if path.suffix == ".py":
        raise InputError(
            f"{source} is Python code, which is run only when you name it on the command line: "
            f"`dsno import {source} --out DIR`, then give DIR."
        )
    if path.is_file():
        return lambda options: _progressive(path, options)
    if (path / DESCRIPTION).is_file():
        return lambda options: _saved(path, options)
    if (path / "network.json").is_file():
        return lambda options: _edm(path, options)
    if (path / "model_index.json").is_file() or (path / "config.json").is_file():
        return lambda options: diffusers_teacher(path, _stated(options), options.null_class)
    pickles = sorted(p.name for p in path.glob("*") if p.suffix.lower() in PICKLES)
    if pickles:
        return _reader(str(path / pickles[0]))
    if not path.exists() and looks_like_hub_id(source):
        return lambda options: hub_teacher(source, _stated(options), options.null_class)
    what = "holds none of the teachers" if path.exists() else "does not exist; among the teachers"
    raise InputError(f"{source} {what} that can be read: {ACCEPTED}.")


def _stated(options: TeacherOptions) -> SchedulerSettings | None:
    """The settings the user states, if they do."""
    if options.prediction_type is None and options.schedule is None:
        return None
    return SchedulerSettings(_preconditioning(options))


def _preconditioning(options: TeacherOptions) -> Preconditioning:
    if options.prediction_type is None or options.schedule is None:
        raise InputError(
            "A teacher's prediction_type and schedule go together: give both or neither."
        )
    return Preconditioning(options.schedule, options.prediction_type, options.sigma_data)


def _saved(path: Path, options: TeacherOptions) -> Teacher:
    _only(options, "clip_sample", kind="A teacher's folder of this package")
    return load_teacher(path)


def _edm(path: Path, options: TeacherOptions) -> Teacher:
    _only(options, "clip_sample", kind="An exported EDM network")
    denoiser = load_edm(path)
    network: Any = denoiser.network
    classes: int = network.config["label_dim"]
    dropped = network.config.get("label_dropout", 0) > 0
    return Teacher(
        denoiser,
        num_classes=classes or None,
        null_class=classes if classes and dropped else None,
        origin=str(path),
    )


def _progressive(path: Path, options: TeacherOptions) -> Teacher:
    _only(options, "clip_sample", "image_size", kind="A progressive-distillation checkpoint")
    clip = True if options.clip_sample is None else options.clip_sample
    denoiser = load_progressive(path, clip=clip, sample_size=options.image_size)
    network: Any = denoiser.network
    return Teacher(denoiser, num_classes=network.config.num_class_embeds, origin=str(path))


def _only(options: TeacherOptions, *used: str, kind: str) -> None:
    """Refuse options that the source would ignore."""
    for field in dataclasses.fields(options):
        if field.name not in used and getattr(options, field.name) != field.default:
            raise InputError(f"{kind} takes no {field.name}: it is known already; leave it out.")
