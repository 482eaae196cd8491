"""All that is measured of a set of samples in one feature space."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dsno.evaluation.class_score import SPLITS, inception_score
from dsno.evaluation.estimate import Estimate
from dsno.evaluation.features import Features
from dsno.evaluation.frechet import Moments, frechet_distance, frechet_error, moments
from dsno.evaluation.kernel import kernel_distance
from dsno.evaluation.manifold import NEIGHBOURS, Manifold, manifold

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
        head: from features to a classifier's logits, where there is one.
    """

    moments: Moments
    features: Tensor | None = None
    head: Features | None = None
    _manifolds: dict[int, Manifold] = field(default_factory=dict, init=False, repr=False)

    def measure(self, samples: Tensor) -> dict[str, Any]:
        """The entries of metrics.json of samples, given their features (n, d).

        What the samples are too few for, or the reference's features are needed for and not known,
        is left out.

        Raises:
            InputError: for fewer than two samples, or features that are not finite.
        """
        made = moments(samples)
        found: dict[str, Any] = {
            "frechet_distance": frechet_distance(made, self.moments),
            "frechet_error": frechet_error(samples, made, self.moments),
        }
        if self.features is not None:
            compared = min(len(samples), len(self.features), COMPARED)
            if compared > NEIGHBOURS:
                found["kernel_distance"] = _entry(kernel_distance(samples, self.features))
                real, student = self._manifold(compared), manifold(samples[:compared])
                found["precision"] = real.share(student.points)
                found["recall"] = student.share(real.points)
        if self.head is not None and len(samples) >= SPLITS:
            found["inception_score"] = _entry(inception_score(self.head(samples)))
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
