"""Distances of a model, of images or of statistics to a reference, for the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsno.data.dataset import Dataset
from dsno.data.load import load_data
from dsno.diffusion.arithmetic import arithmetic
from dsno.diffusion.conditions import Conditions
from dsno.evaluation.batchwise import Desk, Work, shared_progress
from dsno.evaluation.evaluate import arithmetic_record
from dsno.evaluation.features import Wanted, distance_name
from dsno.evaluation.frechet import frechet_distance
from dsno.evaluation.reference import (
    Reference,
    build_reference,
    outputs_in,
    reference_of_statistics,
    rows_of,
)
from dsno.evaluation.samplers import Draws, student_sampler
from dsno.evaluation.statistics import load_statistics, save_statistics
from dsno.evaluation.validity import warn
from dsno.pipeline import DSNOPipeline
from dsno.recipes.schema import Data
from dsno.runs.build import shape_text
from dsno.runs.judged import Judged
from dsno.runs.request import Request
from dsno.support import distributed
from dsno.support.cache import cache_folder
from dsno.support.environment import environment, versions
from dsno.support.errors import InputError
from dsno.support.files import fingerprint, sha256
from dsno.support.threads import MOST

GIVEN_SOURCE: Mapping[str, str] = {"folder": "folder", "npz": "npz"}


@dataclass(frozen=True)
class _Subject:
    """What is judged, as something that images can be asked of.

    Attributes:
        about: its entries in the result.
        shape: of an image.
        count: images.
        images: some of them.
        identity: decides what the images are.
        label: for the progress bar.
        threads: that may ask for some side by side, at most.
    """

    about: Mapping[str, Any]
    shape: tuple[int, ...]
    count: int
    images: Callable[[range], Tensor]
    identity: Any
    label: str
    threads: int = MOST


@arithmetic("exact")
def evaluate_target(target: Judged | None, request: Request) -> dict[str, Any]:
    """Frechet distances of what is judged to a reference; under a launcher all processes call this.

    Images are made or read in memory, a batch at a time. Features of finished batches are kept
    until the end, so a command that was killed goes on where it was.

    Args:
        target: what is judged; None to prepare the reference alone, for its statistics.
        request: against what, and how.

    Raises:
        InputError: for data that cannot be read or have another shape, a text-conditional model,
            statistics of other features, or a precision where nothing is sampled.
    """
    spec = request.spec
    if (target is None or target.kind != "model") and (spec.precision != "exact" or spec.compile):
        raise InputError(
            "evaluate.precision and evaluate.compile are of the network that makes samples, and "
            "here none does; leave them out."
        )
    if target is not None and target.kind == "statistics":
        return _compare_statistics(target, request)
    subject = None if target is None else _subject(target, request)
    reference = _reference(None if subject is None else subject.shape, request)
    found: dict[str, Any] = {}
    if subject is not None:
        short = reference.shortages(subject.count)
        warn(short)
        found = {
            **subject.about,
            "samples": subject.count,
            **_measure(subject, reference, request),
            "warnings": [dataclasses.asdict(s) for s in short],
        }
    found |= _about(reference, request)
    if request.save is not None:
        distributed.on_main(lambda: _save(request, reference))
    return found


def _about(reference: Reference, request: Request) -> dict[str, Any]:
    """What decides the numbers besides what is judged."""
    of_data = reference.data is not None
    return {
        "reference": {
            **reference.summary(),
            "sha256": reference.data.digest if reference.data is not None else _hash(request),
            "data": request.data.model_dump(mode="json", exclude_defaults=True) if of_data else {},
            "split": request.data.split if of_data else None,
            "statistics": None if of_data else str(request.statistics),
        },
        "features": {
            name: {**record, "distance": distance_name(name)}
            for name, record in reference.records.items()
        },
        "environment": environment(),
    }


def _hash(request: Request) -> str:
    assert request.statistics is not None
    return sha256(request.statistics)


def _save(request: Request, reference: Reference) -> None:
    assert request.save is not None
    ((name, space),) = reference.spaces.items()
    save_statistics(request.save, reference.by_space[name].moments, reference.name, space)


def _reference(shape: tuple[int, ...] | None, request: Request) -> Reference:
    spec, device = request.spec, distributed.device()
    if request.save is not None and len(spec.features) != 1:
        raise InputError(
            "--save-statistics writes those of one feature space; name it, such as "
            "evaluate.features=[inception]."
        )
    data = None
    if request.statistics is None:
        data = fitting_data(request.data, shape)
        shape = data.sample_shape
    assert shape is not None
    wanted = Wanted(
        shape,
        data=data,
        seed=spec.classifier_seed,
        inception=spec.inception,
        torchscript=spec.torchscript,
        device=device,
    )
    if data is None:
        assert request.statistics is not None
        return reference_of_statistics(request.statistics, spec.features, wanted=wanted)
    return build_reference(
        data,
        spec.features,
        seed=spec.classifier_seed,
        wanted=wanted,
        desk=Desk(_desk_folder()),
        batch_size=spec.batch_size,
    )


def _desk_folder() -> Path:
    """Where unfinished evaluations without a run are kept."""
    return cache_folder() / "evaluations"


def _measure(subject: _Subject, reference: Reference, request: Request) -> dict[str, Any]:
    """The distances of a subject."""
    spaces = list(reference.spaces.values())
    mark = [subject.identity, subject.count, [s.identity for s in spaces], versions()]
    desk = Desk(_desk_folder())

    def run(items: range) -> dict[str, Tensor]:
        return rows_of(spaces, subject.images(items))

    size = request.spec.batch_size
    name, count = f"judged-{fingerprint(mark)}", subject.count
    work = Work(name, subject.label, count, size, run, threads=subject.threads)
    with shared_progress(
        subject.label, subject.count, done=desk.done(work), unit="image"
    ) as advance:
        desk.compute(work, advance)

        def finish() -> dict[str, Any]:
            made = outputs_in(desk.results(work, advance), reference.spaces)
            return {**reference.measure_of(made)}

        found = distributed.on_main(finish)
    if distributed.is_main():
        desk.clear(work.name)
    return found


def _subject(target: Judged, request: Request) -> _Subject:
    if target.kind == "model":
        return _model(target, request)
    data = _images(target, request.data)
    count = min(request.samples or len(data), len(data))
    return _Subject(
        {"images": target.shown, "sha256": data.digest},
        data.sample_shape,
        count,
        lambda items: data.rows(torch.arange(items.start, items.stop)),
        data.digest,
        "features of the images",
    )


def _images(target: Judged, data: Data) -> Dataset:
    """The images of a folder, a zip file or an .npz file; their labels do not matter.

    They are fitted to `data.size` and `data.channels`, where these are given.
    """
    options = {"size": data.size, "channels": data.channels, "labels": "none"}
    return load_data(GIVEN_SOURCE[target.kind], str(target.path), **options)


def _model(target: Judged, request: Request) -> _Subject:
    device = distributed.device()
    pipeline = DSNOPipeline.from_pretrained(target.path).to(device)
    model, operator = pipeline.model, pipeline.model.operator.eval()
    if model.config.is_textual:
        raise InputError(
            "A text-conditional model is measured on its run's prompts: give the run's recipe."
        )
    conditions = Conditions(model.config.class_frequencies, model.guidance_range)
    draws = Draws(request.seed, operator.sample_shape, conditions, request.spec.batch_size, device)
    spec = request.spec
    sampler = student_sampler(
        operator, pipeline.decode, precision=spec.precision, compiled=spec.compile
    )
    weights = {
        str(path.relative_to(target.path)): sha256(path)
        for pattern in ("*.safetensors", "*.json")
        for path in sorted(target.path.rglob(pattern))
        if "checkpoints" not in path.parts
    }
    about = {
        "model": target.shown,
        "sha256": fingerprint(weights),
        "nfe": sampler.nfe,
        "seed": request.seed,
        "arithmetic": arithmetic_record(spec),
    }
    return _Subject(
        about,
        pipeline.image_shape,
        request.spec.samples,
        lambda items: sampler.generate(*draws.batch(items)),
        [about["sha256"], request.seed, spec.precision],
        "sampling",
        sampler.threads,
    )


def _compare_statistics(target: Judged, request: Request) -> dict[str, Any]:
    """The distance of one file of statistics to another; no image is looked at."""
    if request.statistics is None:
        raise InputError(
            f"{target.shown} holds statistics, which are compared with others: give "
            "--reference FILE.npz."
        )
    one, other = (load_statistics(path) for path in (target.path, request.statistics))
    names = {s.space for s in (one, other) if s.space is not None}
    if len(names) > 1 or (one.identity and other.identity and one.identity != other.identity):
        raise InputError(
            f"{target.shown} and {request.statistics} are statistics of different features "
            f"({one.space}, {other.space}); make both with the same."
        )
    shapes = [len(s.moments.mean) for s in (one, other)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{target.shown} has statistics of {shapes[0]:,} features, {request.statistics} of "
            f"{shapes[1]:,}; make both with the same features."
        )
    name = names.pop() if names else ", ".join(request.spec.features) or "unnamed"
    if request.spec.features and name not in request.spec.features:
        raise InputError(
            f"{target.shown} and {request.statistics} are statistics of {name}, not of "
            f"{', '.join(request.spec.features)}; leave out evaluate.features."
        )
    return {
        "statistics": target.shown,
        "sha256": sha256(target.path),
        "samples": one.moments.count or None,
        "frechet_distance": {name: frechet_distance(one.moments, other.moments)},
        "reference": {
            "name": other.name,
            "count": other.moments.count,
            "statistics": str(request.statistics),
            "sha256": sha256(request.statistics),
        },
        "features": {name: {**(one.record or other.record or {}), "distance": distance_name(name)}},
        "environment": environment(),
    }


def fitting_data(data: Data, shape: tuple[int, ...] | None) -> Dataset:
    """The data, as images of the shape that is judged.

    Args:
        data: what to read; its `size` and `channels` go before the shape's where they are given.
            Digits are taken as they are: no other model should be compared with them by default.
        shape: of one sample, (C, H, W) of images; None to take the data as they are.

    Raises:
        InputError: if the data cannot be read or have another shape.
    """
    options = data.model_dump(exclude={"random_flip"})
    if shape is None:
        return load_data(**options)
    if len(shape) == 3 and data.source != "digits":
        channels, *size = shape
        wanted = {"channels": channels, "size": tuple(size)}
        options |= {key: value for key, value in wanted.items() if options[key] is None}
    real = load_data(**options)
    if real.sample_shape != shape:
        remedy = (
            "say with --data and --path what to compare with"
            if data.source == "digits"
            else "leave data.size and data.channels out, and images are converted"
        )
        raise InputError(
            f"The model makes samples of {shape_text(shape)}, but the data {real.name} have "
            f"{shape_text(real.sample_shape)}; {remedy}."
        )
    return real
