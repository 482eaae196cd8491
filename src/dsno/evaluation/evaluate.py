"""Measure samplers against a reference, all by the same code: distances, paired error, time."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsno.diffusion.arithmetic import arithmetic
from dsno.diffusion.denoisers import DenoiserProtocol, evaluations_per_call
from dsno.evaluation.batchwise import Desk, Work, shared_progress
from dsno.evaluation.equivalence import step_equivalence
from dsno.evaluation.measured import Row, read_row, write_row
from dsno.evaluation.reference import Reference, outputs_in, rows_of
from dsno.evaluation.samplers import (
    STUDENT,
    Decode,
    Draws,
    Sampler,
    as_is,
    samplers_of,
    teacher_sampler,
)
from dsno.evaluation.validity import warn
from dsno.operator.dsno import DSNO
from dsno.recipes.schema import Evaluate
from dsno.support import distributed
from dsno.support.console import Advance
from dsno.support.transfers import synchronize, to_device


@arithmetic("exact")
def evaluate(
    denoiser: DenoiserProtocol,
    operator: DSNO,
    reference: Reference,
    draws: Draws,
    spec: Evaluate,
    decode: Decode = as_is,
    *,
    unfinished: DSNO | None = None,
    desk: Desk | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Measure the student and the teacher's samplers from the same noise.

    Their networks compute as `spec` says; features, and the solution that paired errors are
    measured from, are exact in any case.

    Under a launcher every process calls this and gets the same; batches are shared among them.

    Args:
        denoiser: the teacher.
        operator: the student.
        reference: what samples are compared with.
        draws: noise and conditions.
        spec: what is measured.
        decode: from states to images.
        unfinished: the student before its finish, if it has one.
        desk: where finished samplers and batches are kept; in memory if None.

    Returns:
        The entries of `metrics.json` that are measured here, and the arrays the report draws.
    """
    short = reference.shortages(spec.samples)
    warn(short)
    truth = teacher_sampler(denoiser, "dpm++2m", spec.reference_steps, "uniform", decode)
    samplers = samplers_of(denoiser, operator, spec, decode, unfinished=unfinished)
    of_baseline = teacher_sampler(denoiser, "ddim", spec.baseline_steps, "uniform").nfe, "uniform"
    baseline = next(s for s in samplers if s.name == "ddim" and (s.nfe, s.spacing) == of_baseline)
    rows = Measurement(reference, draws, spec, truth, desk or Desk()).rows(samplers)
    seconds = distributed.on_main(
        lambda: seconds_per_sample(samplers, draws, spec.timing_rounds, min(64, spec.samples))
    )
    feature = list(reference.spaces)[-1]
    student = rows[samplers[0].key].measures["frechet_distance"][feature]
    measured = [
        {
            "name": s.name,
            "label": s.label,
            "nfe": s.nfe,
            "spacing": s.spacing,
            **rows[s.key].measures,
            "seconds_per_sample": t,
            "relative_time": t / seconds[0],
        }
        for s, t in zip(samplers, seconds, strict=True)
    ]
    equivalence = step_equivalence(measured, reference.spaces, calls=evaluations_per_call(denoiser))
    metrics = {
        "samples": spec.samples,
        "seed": draws.seed,
        "batch_size": draws.batch_size,
        "arithmetic": arithmetic_record(spec),
        "samplers": measured,
        "step_equivalence": [dataclasses.asdict(e) for e in equivalence],
        "reference": reference.summary(),
        "features": {name: dict(record) for name, record in reference.records.items()},
        "warnings": [dataclasses.asdict(s) for s in short],
        "paired_reference": {
            "method": "dpm++2m",
            "steps": spec.reference_steps,
            "spacing": "uniform",
        },
        "verdict": {
            "student": student,
            "ddim": rows[baseline.key].measures["frechet_distance"][feature],
            "ddim_nfe": baseline.nfe,
            "features": feature,
        },
    }
    arrays = {
        "teacher": rows[truth.key].pictures,
        "ddim": rows[baseline.key].pictures,
        "student": rows[samplers[0].key].pictures,
    }
    if reference.data is not None:
        first = torch.arange(min(spec.pictures, reference.count))
        arrays = {"real": reference.data.rows(first), **arrays}
    return metrics, arrays


def arithmetic_record(spec: Evaluate) -> dict[str, Any]:
    """What metrics.json says of the way networks that make samples computed."""
    return {"precision": spec.precision, "compiled": spec.compile}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The rows of metrics.json, sampler after sampler; what is finished is read from the desk.

    Attributes:
        reference: what samples are compared with.
        draws: what they start from.
        spec: how many.
        truth: the sampler that paired errors are measured from.
        desk: where finished work is kept.
    """

    reference: Reference
    draws: Draws
    spec: Evaluate
    truth: Sampler
    desk: Desk

    def rows(self, samplers: Sequence[Sampler]) -> dict[Any, Row]:
        """A row for the truth and each of the samplers."""
        every = [self.truth, *(s for s in samplers if s.key != self.truth.key)]
        rows: dict[Any, Row] = distributed.on_main(
            lambda: {s.key: row for s in every if (row := read_row(self.desk, s)) is not None}
        )
        left = [s for s in every if s.key not in rows]
        if not left:
            return rows
        if left[0].key != self.truth.key:  # its solutions are gone, and the others need them
            left.insert(0, self.truth)
        total = sum(s.nfe for s in every) * self.spec.samples
        exact: Tensor | None = None
        works = {s.key: self._work(s, lambda items: self._exact(exact, items)) for s in left}
        done = total - sum(s.nfe * (self.spec.samples - self.desk.done(works[s.key])) for s in left)
        with shared_progress("evaluating", total, done=done, unit="evaluation") as advance:
            for sampler in left:
                if sampler.key in rows:  # the truth, for the errors of the others
                    self.desk.compute(works[sampler.key], advance)
                    continue
                row, images = self._row(sampler, works[sampler.key], advance)
                rows[sampler.key] = row
                exact = images if sampler.key == self.truth.key else exact
        if distributed.is_main():
            for sampler in every:  # the truth's solutions, and what a kill left of others
                self.desk.clear(sampler.slug)
        return rows

    def _work(self, sampler: Sampler, exact: Any) -> Work:
        def run(items: range) -> dict[str, Tensor]:
            images = sampler.generate(*self.draws.batch(items))
            rows = rows_of(self.reference.spaces.values(), images)
            rows["pictures"] = images[: max(self.spec.pictures - items.start, 0)].clone()
            if sampler.key == self.truth.key:
                rows["images"] = images
            else:
                gap = (images - to_device(exact(items), images.device)).abs()
                rows["paired_l1"] = gap.flatten(1).double().mean(1)
            return rows

        label, size = f"{sampler.label} {sampler.nfe}", self.draws.batch_size
        work = Work(sampler.slug, label, self.spec.samples, size, run, cost=sampler.nfe)
        return dataclasses.replace(work, threads=sampler.threads)

    def _exact(self, images: Tensor | None, items: range) -> Tensor:
        """Solutions from the same noises."""
        if images is not None:
            return images[items.start : items.stop]
        return self.desk.batch(self.truth.slug, items)["images"]

    def _row(self, sampler: Sampler, work: Work, advance: Advance) -> tuple[Row, Tensor | None]:
        """Measure a sampler; in memory, also the images of the truth."""
        self.desk.compute(work, advance)
        exact: list[Tensor] = []

        def finish() -> Row:
            found = self.desk.results(work, advance)
            if self.desk.folder is None and "images" in found:
                exact.append(found["images"])
            made = outputs_in(found, self.reference.spaces)
            paired = float(found["paired_l1"].mean()) if "paired_l1" in found else None
            measures = {**self.reference.measure_of(made), "paired_l1": paired}
            row = Row(measures, found["pictures"])
            write_row(self.desk, sampler, row)
            if sampler.key != self.truth.key:
                self.desk.clear(work.name)
            return row

        row = distributed.on_main(finish)
        return row, exact[0] if exact else None


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
        for sampler in _one_of_each(samplers):  # warm up: kernels are chosen, or compiled
            sampler.generate(noise, condition)
        synchronize(draws.device)
        for index in range(rounds):
            for taken, sampler in turns if index % 2 == 0 else reversed(turns):
                start = time.perf_counter()
                sampler.generate(noise, condition)
                synchronize(draws.device)
                taken.append((time.perf_counter() - start) / batch)
    return [statistics.median(taken) for taken in times]


def _one_of_each(samplers: Sequence[Sampler]) -> list[Sampler]:
    """The first, then the cheapest of the student in more steps and of the solvers."""
    others = {s.name == STUDENT: s for s in sorted(samplers[1:], key=lambda s: -s.nfe)}
    return [samplers[0], *others.values()]
