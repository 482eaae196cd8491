"""All that is measured of a set of samples in one feature space."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsno.evaluation.class_score import SPLITS, inception_score
from dsno.evaluation.estimate import Estimate
from dsno.evaluation.frechet import Moments, frechet_distance, frechet_error, moments
from dsno.evaluation.kernel import kernel_distance
from dsno.evaluation.manifold import NEIGHBOURS, Manifold, manifold
from dsno.support import seeds

KEPT = 50_000
"""Rows of the reference whose features are kept, at most."""
COMPARED = 10_000
"""Rows of either set that precision and recall compare, at most: their cost is quadratic."""


@dataclass(frozen=True)
class ReferenceSpace:
    """The reference in one feature space.

    Attributes:
        moments: of all of it.
        features: of some of its items, (k, d), in random order; None where only the moments are
            known.
    """

    moments: Moments
    features: Tensor | None = None
    _manifolds: dict[int, Manifold] = field(default_factory=dict, init=False, repr=False)

    def distance(self, samples: Tensor) -> float:
        """The Frechet distance of samples, by their features (n, d)."""
        return frechet_distance(moments(samples.to(self.moments.mean.device)), self.moments)

    def measure(self, samples: Tensor, logits: Tensor | None = None) -> dict[str, Any]:
        """The entries of metrics.json of samples, computed where the reference is.

        What the samples are too few for, or what needs features of the reference that are not
        known, is left out. Where rows are chosen or parted it is at random, as the images of a
        folder may be sorted by class.

        Args:
            samples: their features, (n, d).
            logits: (n, classes), where the features have a classifier.

        Raises:
            InputError: for fewer than two samples, or features that are not finite.
        """
        samples = samples.to(self.moments.mean.device)
        order = torch.from_numpy(seeds.generator(0, seeds.SUBSET).permutation(len(samples)))
        made = moments(samples)
        found: dict[str, Any] = {
            "frechet_distance": frechet_distance(made, self.moments),
            "frechet_error": frechet_error(samples, made, self.moments),
        }
        if self.features is not None:
            compared = min(len(samples), len(self.features), COMPARED)
            if compared > NEIGHBOURS:
                found["kernel_distance"] = _entry(kernel_distance(samples, self.features))
                chosen = samples[order[:compared].to(samples.device)]
                real, student = self._manifold(compared), manifold(chosen)
                found["precision"] = real.share(student.points)
                found["recall"] = student.share(real.points)
        if logits is not None and len(logits) >= SPLITS:
            found["inception_score"] = _entry(inception_score(logits[order.to(logits.device)]))
        return found

    def _manifold(self, count: int) -> Manifold:
        assert self.features is not None
        if count not in self._manifolds:
            self._manifolds[count] = manifold(self.features[:count])
        return self._manifolds[count]


def by_metric(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was measured in each space, by the metric first."""
    turned: dict[str, dict[str, Any]] = {}
    for space, values in found.items():
        for metric, value in values.items():
            turned.setdefault(metric, {})[space] = value
    return turned


def _entry(estimate: Estimate) -> dict[str, float]:
    return dataclasses.asdict(estimate)
