"""Read a teacher made elsewhere: find out what a source is, read it and try it once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsno.support.errors import InputError
from dsno.support.hub import looks_like_hub_id
from dsno.teachers.edm import load_edm
from dsno.teachers.options import TeacherOptions
from dsno.teachers.pipelines import (
    COMPONENTS,
    diffusers_teacher,
    hub_teacher,
    scheduler_file,
)
from dsno.teachers.progressive import load_progressive
from dsno.teachers.store import DESCRIPTION, WEIGHTS, Teacher, load_teacher
from dsno.teachers.trial import try_out

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin")
ACCEPTED = (
    "a diffusers pipeline or network (a folder or a Hub id owner/name), an exported EDM network (a "
    "folder with network.json), a progressive-distillation checkpoint (.msgpack or .safetensors), "
    "a teacher's folder of this package, or an adapter (.py, with `dsno import`)"
)

ROOT = ("*.json", "diffusion_pytorch_model*.safetensors", WEIGHTS)
"""What is read at the top of a folder of any source."""
COMPONENT_FOLDERS = (*COMPONENTS, "scheduler", "tokenizer")
IN_COMPONENT = ("*.json", "*.safetensors", "*.txt", "*.model")


def is_trajectories(source: str) -> bool:
    """Whether a source holds trajectories (an LMDB) rather than a teacher."""
    path = Path(source)
    return (path / "data.mdb").is_file() or path.suffix == ".mdb"


def files_of_teacher(source: Path) -> dict[str, Path]:
    """The files that a source's teacher may be read from, by name; none if it is not local."""
    source = source.expanduser()
    if source.is_file():
        return {source.name: source}
    patterns = [*ROOT, *(f"{name}/{kind}" for name in COMPONENT_FOLDERS for kind in IN_COMPONENT)]
    found = {file for pattern in patterns for file in source.glob(pattern) if file.is_file()}
    files = {str(file.relative_to(source)): file for file in sorted(found)}
    scheduler = scheduler_file(source)
    if files and scheduler is not None and scheduler not in found:  # beside a network's folder
        files["../scheduler"] = scheduler
    return files


def read_teacher(source: str, options: TeacherOptions) -> Teacher:
    """The teacher in a source, which has denoised once; the last one is remembered.

    Raises:
        InputError: if it is none of the sources accepted, cannot be read, or fails.
    """
    stats = [file.stat() for file in files_of_teacher(Path(source)).values()]
    return _read_once(source, options, tuple((s.st_size, s.st_mtime_ns) for s in stats))


@functools.lru_cache(maxsize=1)
def _read_once(source: str, options: TeacherOptions, _: tuple[tuple[int, int], ...]) -> Teacher:
    teacher = _reader(source)(options)
    if options.clip_sample is not None:
        teacher.denoiser.clip_sample = 1.0 if options.clip_sample else None
        teacher.denoiser.dynamic_threshold = None
    return try_out(teacher, source)


def _reader(source: str) -> Callable[[TeacherOptions], Teacher]:
    path = Path(source).expanduser()
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"{source} is a pickle, which can run code when it is loaded; export it to "
            "safetensors first (see docs/teachers.md)."
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
        return lambda options: diffusers_teacher(path, options)
    pickles = sorted(p.name for p in path.glob("*") if p.suffix.lower() in PICKLES)
    if pickles:
        return _reader(str(path / pickles[0]))
    if not path.exists() and looks_like_hub_id(source):
        return lambda options: hub_teacher(source, options)
    what = f"Found no teacher in {source}" if path.exists() else f"{source} does not exist"
    raise InputError(f"{what}; give {ACCEPTED}.")


def _saved(path: Path, options: TeacherOptions) -> Teacher:
    _only(options, "clip_sample", source="A teacher's folder of this package")
    return load_teacher(path)


def _edm(path: Path, options: TeacherOptions) -> Teacher:
    _only(options, "clip_sample", source="An exported EDM network")
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
    source = "A progressive-distillation checkpoint"
    _only(options, "clip_sample", "image_size", source=source)
    if isinstance(options.image_size, tuple):
        raise InputError(f"{source} is of square images: give image_size=N, one number.")
    clip = True if options.clip_sample is None else options.clip_sample
    denoiser = load_progressive(path, clip=clip, sample_size=options.image_size)
    network: Any = denoiser.network
    return Teacher(denoiser, num_classes=network.config.num_class_embeds, origin=str(path))


def _only(options: TeacherOptions, *used: str, source: str) -> None:
    """Refuse options that the source would ignore."""
    for field in dataclasses.fields(options):
        if field.name not in used and getattr(options, field.name) != field.default:
            raise InputError(f"{source} says its {field.name} itself: leave {field.name} out.")
