"""Measure samplers against a reference, all by the same code: distances, paired error, time."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsno.diffusion.denoisers import DenoiserProtocol, evaluations_per_call
from dsno.evaluation.equivalence import step_equivalence
from dsno.evaluation.reference import Reference
from dsno.evaluation.samplers import (
    Decode,
    Draws,
    Sampler,
    as_is,
    draw,
    samplers_of,
    teacher_sampler,
)
from dsno.evaluation.validity import warn
from dsno.operator.dsno import DSNO
from dsno.recipes.schema import Evaluate
from dsno.support.console import progress


def evaluate(
    denoiser: DenoiserProtocol,
    operator: DSNO,
    reference: Reference,
    draws: Draws,
    spec: Evaluate,
    decode: Decode = as_is,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Measure the student and the teacher's samplers from the same noise.

    Returns:
        The entries of `metrics.json` that are measured here, and the arrays the report draws.
    """
    short = reference.shortages(spec.samples)
    warn(short)
    truth = teacher_sampler(denoiser, "dpm++2m", spec.reference_steps, "uniform", decode)
    baseline = teacher_sampler(denoiser, "ddim", spec.baseline_steps, "uniform")
    samplers = samplers_of(denoiser, operator, spec, decode)
    others = [s for s in samplers if s.key != truth.key]
    total = sum(s.nfe for s in (truth, *others)) * spec.samples
    with progress("evaluating", total, unit="evaluation") as advance:
        exact = draw(truth, draws, spec.samples, advance)
        made = {truth.key: exact[: spec.pictures]}
        rows: dict[Any, dict[str, Any]] = {
            truth.key: {**reference.measure(exact), "paired_l1": None}
        }
        for sampler in others:
            samples = draw(sampler, draws, spec.samples, advance)
            made[sampler.key] = samples[: spec.pictures]
            rows[sampler.key] = {
                **reference.measure(samples),
                "paired_l1": float((samples - exact).abs().mean()),
            }
    seconds = seconds_per_sample(samplers, draws, spec.timing_rounds, min(64, spec.samples))
    feature = list(reference.spaces)[-1]
    student = rows[samplers[0].key]["frechet_distance"][feature]
    measured = [
        {
            "name": s.name,
            "label": s.label,
            "nfe": s.nfe,
            "spacing": s.spacing,
            **rows[s.key],
            "seconds_per_sample": t,
            "relative_time": t / seconds[0],
        }
        for s, t in zip(samplers, seconds, strict=True)
    ]
    equivalence = step_equivalence(measured, reference.spaces, calls=evaluations_per_call(denoiser))
    metrics = {
        "samples": spec.samples,
        "samplers": measured,
        "step_equivalence": [dataclasses.asdict(e) for e in equivalence],
        "reference": {
            "name": reference.data.name,
            "count": len(reference.data),
            "split_half_distance": dict(reference.floor),
        },
        "features": {name: dict(record) for name, record in reference.records.items()},
        "warnings": [dataclasses.asdict(s) for s in short],
        "paired_reference": {
            "method": "dpm++2m",
            "steps": spec.reference_steps,
            "spacing": "uniform",
        },
        "verdict": {
            "student": student,
            "ddim": rows[baseline.key]["frechet_distance"][feature],
            "ddim_nfe": baseline.nfe,
            "features": feature,
        },
    }
    arrays = {
        "real": reference.data.rows(torch.arange(min(spec.pictures, len(reference.data)))),
        "teacher": made[truth.key],
        "ddim": made[baseline.key],
        "student": made[samplers[0].key],
    }
    return metrics, arrays


def seconds_per_sample(
    samplers: Sequence[Sampler], draws: Draws, rounds: int, batch: int
) -> list[float]:
    """Median time per sample of each sampler over rounds in which all of them take turns.

    The order is reversed every second round, so that no sampler always follows the same one.
    """
    noise, condition = draws.batch(range(batch))
    times: list[list[float]] = [[] for _ in samplers]
    turns = list(zip(times, samplers, strict=True))
    with torch.no_grad():
        samplers[0].generate(noise, condition)  # warm up
        synchronize(draws.device)
        for index in range(rounds):
            for taken, sampler in turns if index % 2 == 0 else reversed(turns):
                start = time.perf_counter()
                sampler.generate(noise, condition)
                synchronize(draws.device)
                taken.append((time.perf_counter() - start) / batch)
    return [statistics.median(taken) for taken in times]


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
