"""Measure samplers against real data, all by the same code.

A sampler is any callable `(noise, condition) -> samples`; teacher and student are both one.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from dsno.data.dataset import Dataset
from dsno.diffusion.conditions import Condition, Conditions
from dsno.diffusion.denoisers import DenoiserProtocol, evaluations_per_call
from dsno.diffusion.solvers import evaluations, solve
from dsno.diffusion.time_grids import Spacing, grid_times
from dsno.evaluation.features import (
    MAX_PIXELS,
    PLAIN_SPACES,
    Features,
    TrainedClassifier,
    train_classifier,
)
from dsno.evaluation.frechet import Moments, frechet_distance, moments
from dsno.operator.dsno import DSNO
from dsno.recipes.schema import Curve, Evaluate
from dsno.support import seeds
from dsno.support.console import progress
from dsno.support.errors import InputError

CHUNK = 5000
"""Real images whose features are computed at a time."""

Generate = Callable[[Tensor, Condition | None], Tensor]
"""(noise, condition) -> samples, both (batch, *shape)."""


@dataclass(frozen=True)
class Sampler:
    """A way to make samples.

    Attributes:
        name: `dsno` or the solver's.
        label: for people.
        nfe: network evaluations per sample.
        spacing: of the solver's steps; None for the student.
        generate: the sampler itself.
    """

    name: str
    label: str
    nfe: int
    spacing: str | None
    generate: Generate

    @property
    def key(self) -> tuple[str, int, str | None]:
        """What tells it from the others."""
        return self.name, self.nfe, self.spacing


SAMPLER_NAMES = {"ddim": "DDIM", "heun": "Heun", "dpm++2m": "DPM-Solver++(2M)", "dsno": "DSNO"}


Decode = Callable[[Tensor], Tensor]
"""From a model's states to images: the autoencoder of a latent model, or nothing to do."""


def as_is(states: Tensor) -> Tensor:
    """The `Decode` of a model whose states are images."""
    return states


def student_sampler(operator: DSNO, decode: Decode = as_is) -> Sampler:
    """The operator's state at t = 0."""

    def generate(noise: Tensor, condition: Condition | None) -> Tensor:
        return decode(operator.sample(noise, condition))

    return Sampler("dsno", SAMPLER_NAMES["dsno"], 1, None, generate)


def teacher_sampler(
    denoiser: DenoiserProtocol, method: str, steps: int, spacing: str, decode: Decode = as_is
) -> Sampler:
    """A teacher's solver with `steps` steps."""

    def generate(noise: Tensor, condition: Condition | None) -> Tensor:
        solution = solve(
            denoiser, noise, method=method, steps=steps, spacing=spacing, condition=condition
        )
        return decode(solution.states[:, -1])

    nfe = evaluations(method, steps) * evaluations_per_call(denoiser)
    return Sampler(method, SAMPLER_NAMES[method], nfe, spacing, generate)


@dataclass(frozen=True)
class Reference:
    """Real data in every feature space.

    Attributes:
        data: the real data.
        spaces: name and function of each feature space.
        real: moments of the real data in each.
        records: what a report says of each space.
        floor: distance between two halves of the real data in each.
    """

    data: Dataset
    spaces: Mapping[str, Features]
    real: Mapping[str, Moments]
    records: Mapping[str, Mapping[str, Any]]
    floor: Mapping[str, float]

    def distances(self, samples: Tensor) -> dict[str, float]:
        """Frechet distance of samples to the real data in each space."""
        return {
            name: frechet_distance(moments(space(samples)), self.real[name])
            for name, space in self.spaces.items()
        }


def usual_spaces(data: Dataset) -> tuple[str, ...]:
    """The feature spaces the data allow: pixels or, if those are many, thumbnails; a classifier."""
    plain = "pixels" if math.prod(data.sample_shape) <= MAX_PIXELS else "thumbnail"
    return (plain,) if data.labels is None else (plain, "classifier")


def build_reference(data: Dataset, names: Sequence[str], *, seed: int) -> Reference:
    """Prepare the feature spaces, the usual ones if `names` is empty.

    `seed` is the classifier's and the halves'.

    Raises:
        InputError: if classifier features are asked for of data without labels.
    """
    spaces: dict[str, Features] = {}
    records: dict[str, Mapping[str, Any]] = {}
    for name in names or usual_spaces(data):
        if name in PLAIN_SPACES:
            spaces[name] = PLAIN_SPACES[name]
            example = spaces[name](data.rows(torch.zeros(1, dtype=torch.int64)))
            records[name] = {"dimension": example.shape[1]}
        elif data.labels is None or data.num_classes is None:
            raise InputError(
                f"Classifier features need labels, and {data.name} has none; give "
                "evaluate.features=[pixels] or data with labels."
            )
        else:
            trained: TrainedClassifier = train_classifier(
                data.rows, data.labels, data.num_classes, seed=seed
            )
            spaces[name] = trained.network.features
            records[name] = trained.record(seed)
    order = torch.from_numpy(seeds.generator(seed, seeds.SPLIT, 1).permutation(len(data)))
    floor, real = {}, {}
    for name, space in spaces.items():
        features = torch.cat(
            [space(data.rows(r)) for r in torch.split(torch.arange(len(data)), CHUNK)]
        )
        real[name] = moments(features)
        half = len(order) // 2
        floor[name] = frechet_distance(
            moments(features[order[:half]]), moments(features[order[half:]])
        )
    return Reference(data, spaces, real, records, floor)


@dataclass
class Draws:
    """The noise and labels every sampler starts from: item i's depend on (seed, i) alone.

    Attributes:
        seed: of the draws.
        shape: of one sample.
        conditions: how each sample's condition is drawn.
        batch_size: samples made at a time.
        device: where they are made.
    """

    seed: int
    shape: tuple[int, ...]
    conditions: Conditions
    batch_size: int
    device: torch.device = torch.device("cpu")
    _cache: dict[range, tuple[Tensor, Condition | None]] = field(default_factory=dict)

    def batch(self, items: range) -> tuple[Tensor, Condition | None]:
        """Noise and condition of some items."""
        if items not in self._cache:
            noise = seeds.item_noise(self.seed, items, self.shape, stream=seeds.SAMPLE)
            drawn = self.conditions.draw(self.seed, items, sampling=True)
            found = noise, self.conditions.expand(drawn)
            self._cache[items] = send_to_device(found, self.device)
        return self._cache[items]

    def batches(self, count: int) -> list[range]:
        """Items 0 .. count - 1 in batches."""
        return [range(i, min(i + self.batch_size, count)) for i in range(0, count, self.batch_size)]


def draw(sampler: Sampler, draws: Draws, count: int, advance: Callable[..., None]) -> Tensor:
    """`count` samples, (count, *shape), on the CPU."""
    parts = []
    with torch.no_grad():
        for items in draws.batches(count):
            parts.append(sampler.generate(*draws.batch(items)).cpu())
            advance(len(items) * sampler.nfe, note=f"{sampler.label} {sampler.nfe}")
    return torch.cat(parts)


def seconds_per_sample(
    samplers: Sequence[Sampler], draws: Draws, rounds: int, batch: int
) -> list[float]:
    """Median time per sample of each sampler over rounds in which all of them take turns.

    The order is reversed every second round, so that nobody always follows the same neighbour.
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


def samplers_of(
    denoiser: DenoiserProtocol, operator: DSNO, spec: Evaluate, decode: Decode = as_is
) -> list[Sampler]:
    """The student, then every distinct teacher sampler of the section, the baseline included."""
    curves = [*spec.curves, Curve(solver="ddim", steps=(spec.baseline_steps,))]
    wanted = {(c.solver, steps, c.spacing): None for c in curves for steps in c.steps}
    return [
        student_sampler(operator, decode),
        *(teacher_sampler(denoiser, *key, decode) for key in wanted),
    ]


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
    truth = teacher_sampler(denoiser, "dpm++2m", spec.reference_steps, "uniform", decode)
    baseline = teacher_sampler(denoiser, "ddim", spec.baseline_steps, "uniform")
    samplers = samplers_of(denoiser, operator, spec, decode)
    others = [s for s in samplers if s.key != truth.key]
    total = sum(s.nfe for s in (truth, *others)) * spec.samples
    with progress("evaluating", total, unit="evaluation") as advance:
        exact = draw(truth, draws, spec.samples, advance)
        made = {truth.key: exact[: spec.pictures]}
        rows: dict[Any, dict[str, Any]] = {
            truth.key: {"frechet_distance": reference.distances(exact), "paired_l1": None}
        }
        for sampler in others:
            samples = draw(sampler, draws, spec.samples, advance)
            made[sampler.key] = samples[: spec.pictures]
            rows[sampler.key] = {
                "frechet_distance": reference.distances(samples),
                "paired_l1": float((samples - exact).abs().mean()),
            }
    seconds = seconds_per_sample(samplers, draws, spec.timing_rounds, min(64, spec.samples))
    feature = list(reference.spaces)[-1]
    student = rows[samplers[0].key]["frechet_distance"][feature]
    metrics = {
        "samples": spec.samples,
        "samplers": [
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
        ],
        "reference": {
            "name": reference.data.name,
            "count": len(reference.data),
            "split_half_distance": dict(reference.floor),
        },
        "features": {name: dict(record) for name, record in reference.records.items()},
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


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was asked to."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@torch.no_grad()
def trajectory_arrays(
    denoiser: DenoiserProtocol,
    operator: DSNO,
    draws: Draws,
    decode: Decode = as_is,
    *,
    count: int = 8,
    points: int = 9,
    steps: int = 64,
) -> dict[str, Tensor]:
    """The same trajectories by the solver and the operator, also at times between its own."""

    def shown(states: Tensor) -> Tensor:
        images = decode(states.flatten(0, 1)).cpu()
        return images.reshape(*states.shape[:2], *images.shape[1:])

    noise, condition = draws.batch(range(count))
    times = torch.cat(
        [torch.ones(1, dtype=torch.float64), grid_times(operator.spacing, points - 1)]
    )
    solution = solve(denoiser, noise, times, steps=steps, condition=condition)
    return {
        "trajectory_times": times.float(),
        "teacher_trajectory": shown(solution.states),
        "student_trajectory": shown(operator(noise, condition, times)),
    }


def power_spectrum(
    denoiser: DenoiserProtocol,
    spacing: Spacing,
    draws: Draws,
    *,
    count: int = 128,
    points: int = 32,
) -> dict[str, Any]:
    """Mean power of trajectories in each temporal Fourier mode, over pixels and samples.

    The states at t = g(m / points) are transformed along m; power is relative to the whole.
    """
    noise, condition = draws.batch(range(count))
    solution = solve(
        denoiser, noise, grid_times(spacing, points), steps=points, condition=condition
    )
    coefficients = torch.fft.rfft(solution.states.cpu().double().flatten(2), dim=1, norm="forward")
    power = coefficients.abs().square().mean((0, 2))
    power[1 : (points + 1) // 2] *= 2  # both signs of the frequency
    return {"modes": list(range(len(power))), "power": (power / power.sum()).tolist()}
