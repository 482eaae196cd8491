"""What samples are compared with: real data or samples of the teacher; the distance of halves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsno.data.dataset import Dataset
from dsno.diffusion.denoisers import DenoiserProtocol
from dsno.evaluation.features import (
    MAX_PIXELS,
    PLAIN_SPACES,
    Features,
    TrainedClassifier,
    train_classifier,
)
from dsno.evaluation.frechet import Moments, frechet_distance, moments
from dsno.evaluation.measures import KEPT, ReferenceSpace, by_metric
from dsno.evaluation.samplers import Decode, Draws, as_is, draw, teacher_sampler
from dsno.evaluation.validity import Shortage, shortages
from dsno.support import seeds
from dsno.support.console import progress
from dsno.support.errors import InputError

CHUNK = 5000
"""Real images whose features are computed at a time."""


@dataclass(frozen=True)
class Reference:
    """Real data in every feature space.

    Attributes:
        data: the real data.
        spaces: name and function of each feature space.
        real: moments of the real data in each.
        records: the entry of each space in metrics.json.
        floor: distance between two halves of the real data in each.
        by_space: the real data in each, with all that measuring samples fully needs.
        heads: from features to a classifier's logits, in spaces that have one.
    """

    data: Dataset
    spaces: Mapping[str, Features]
    real: Mapping[str, Moments]
    records: Mapping[str, Mapping[str, Any]]
    floor: Mapping[str, float]
    by_space: Mapping[str, ReferenceSpace] = field(default_factory=dict)
    heads: Mapping[str, Features] = field(default_factory=dict)

    def measure(self, samples: Tensor) -> dict[str, dict[str, Any]]:
        """All that is measured of samples: of each metric, its value in each space that has it."""
        found = {}
        for name, space in self.by_space.items():
            features = self.spaces[name](samples)
            logits = self.heads[name](features) if name in self.heads else None
            found[name] = space.measure(features, logits)
        return by_metric(found)

    def distances(self, samples: Tensor) -> dict[str, float]:
        """Frechet distance of samples to the real data in each space."""
        return {
            name: frechet_distance(moments(space(samples)), self.real[name])
            for name, space in self.spaces.items()
        }

    def shortages(self, samples: int) -> list[Shortage]:
        """What is too small for its distance, if so many samples are measured."""
        dimensions = {name: int(record["dimension"]) for name, record in self.records.items()}
        return shortages(dimensions, samples, len(self.data))


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
    heads: dict[str, Features] = {}
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
            heads[name] = trained.network.logits
            records[name] = trained.record(seed)
    order = torch.from_numpy(seeds.generator(seed, seeds.SPLIT, 1).permutation(len(data)))
    floor, real, by_space = {}, {}, {}
    for name, space in spaces.items():
        features = torch.cat(
            [space(data.rows(r)) for r in torch.split(torch.arange(len(data)), CHUNK)]
        )
        real[name] = moments(features)
        by_space[name] = ReferenceSpace(real[name], features[order[:KEPT]])
        half = len(order) // 2
        floor[name] = frechet_distance(
            moments(features[order[:half]]), moments(features[order[half:]])
        )
    return Reference(data, spaces, real, records, floor, by_space, heads)


def samples_of_teacher(
    denoiser: DenoiserProtocol, draws: Draws, count: int, *, steps: int, decode: Decode = as_is
) -> Dataset:
    """A reference where there are no real data: the teacher's samples, solved accurately.

    They start from other noises than the samples that are measured.

    Args:
        denoiser: the teacher, on the draws' device.
        draws: of the samples that are measured.
        count: samples.
        steps: of the solver.
        decode: from states to images.
    """
    sampler = teacher_sampler(denoiser, "dpm++2m", steps, "uniform", decode)
    others = dataclasses.replace(draws, seed=(draws.seed + 1) % 2**63)
    with progress("sampling the teacher", count * sampler.nfe, unit="evaluation") as advance:
        return Dataset("samples of the teacher", draw(sampler, others, count, advance))
