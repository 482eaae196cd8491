"""Distances of a trained model's folder to real data, for the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsno.data.dataset import Dataset
from dsno.data.load import load_data
from dsno.diffusion.conditions import Conditions
from dsno.evaluation.reference import build_reference
from dsno.evaluation.samplers import Draws, draw, student_sampler
from dsno.evaluation.validity import warn
from dsno.pipeline import DSNOPipeline
from dsno.recipes.load import load_section
from dsno.recipes.schema import Data, Evaluate
from dsno.runs.build import shape_text
from dsno.support import distributed
from dsno.support.console import progress
from dsno.support.errors import InputError

TAKEN = ("samples", "batch_size", "features", "classifier_seed")
"""Keys of `evaluate` that mean something where there is no teacher."""


def sections(
    given: Mapping[str, str | int | None], overrides: Sequence[str]
) -> tuple[Data, Evaluate]:
    """The sections of a recipe that an evaluation of a model alone takes.

    Args:
        given: values by their keys in a recipe; those that are None are left to their defaults.
        overrides: `data.KEY=VALUE` and `evaluate.KEY=VALUE`, which go before `given`.

    Raises:
        InputError: for another key, or a wrong value.
    """
    values: dict[str, dict[str, Any]] = {"data": {}, "evaluate": {}}
    options: dict[str, list[str]] = {"data": [], "evaluate": []}
    for key, value in given.items():
        if value is not None:
            section, _, name = key.partition(".")
            values[section][name] = value
    for override in overrides:
        section, dot, option = override.partition(".")
        if not dot or section not in options:
            raise InputError(
                f"A trained model takes data.KEY=VALUE and evaluate.KEY=VALUE, not {override!r}; "
                "give the recipe of its run to override other keys."
            )
        if section == "evaluate" and (name := option.partition("=")[0]) not in TAKEN:
            raise InputError(
                f"A trained model has no teacher beside it, so of `evaluate` only "
                f"{', '.join(TAKEN)} can be given, not {name!r}."
            )
        options[section].append(option)
    return (
        load_section(Data, "data", values["data"], options["data"]),
        load_section(Evaluate, "evaluate", values["evaluate"], options["evaluate"]),
    )


def taken(spec: Evaluate) -> dict[str, Any]:
    """The keys of the section that count for a model alone."""
    return spec.model_dump(mode="json", include=set(TAKEN))


def evaluate_model(folder: Path, data: Data, spec: Evaluate, *, seed: int) -> dict[str, Any]:
    """Frechet distances of a model folder's samples to real data.

    Images are converted to the model's channels and fitted to its height and width, unless `data`
    says otherwise.

    Raises:
        InputError: for data that cannot be read or have another shape, or a text-conditional model.
    """
    device = distributed.device()
    pipeline = DSNOPipeline.from_pretrained(folder).to(device)
    model, operator = pipeline.model, pipeline.model.operator.eval()
    if model.config.is_textual:
        raise InputError(
            "A text-conditional model is measured on its run's prompts: give the run's recipe."
        )
    real = fitting_data(data, pipeline.image_shape)
    reference = build_reference(real, spec.features, seed=spec.classifier_seed)
    short = reference.shortages(spec.samples)
    warn(short)
    conditions = Conditions(model.config.class_frequencies, model.guidance_range)
    draws = Draws(seed, operator.sample_shape, conditions, spec.batch_size, device)
    with progress("sampling", spec.samples, unit="sample") as advance:
        made = draw(student_sampler(operator, pipeline.decode), draws, spec.samples, advance)
    return {
        "model": str(folder),
        "nfe": 1,
        "samples": spec.samples,
        "seed": seed,
        **reference.measure(made),
        "reference": {
            "name": real.name,
            "count": len(real),
            "split_half_distance": dict(reference.floor),
        },
        "features": {k: dict(v) for k, v in reference.records.items()},
        "warnings": [dataclasses.asdict(s) for s in short],
    }


def fitting_data(data: Data, shape: tuple[int, ...]) -> Dataset:
    """The data, as images of the model's shape.

    Args:
        data: what to read; its `size` and `channels` go before the model's where they are given.
            Digits are taken as they are: no other model should be compared with them by default.
        shape: of one sample, (C, H, W) of images.

    Raises:
        InputError: if the data cannot be read or have another shape.
    """
    options = data.model_dump(exclude={"random_flip"})
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
