"""A number that was estimated from samples, with its standard error."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = statistics.NormalDist().inv_cdf(0.975)
"""Standard errors on each side of a 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error: how far another draw of samples would move it."""

    value: float
    standard_error: float

    @property
    def half_width(self) -> float:
        """Half of a 95 % interval: 1.96 standard errors."""
        return Z95 * self.standard_error


def of_parts(values: Sequence[float]) -> Estimate:
    """Mean of what independent parts of the samples gave, and the error of that mean.

    Raises:
        ValueError: for fewer than two parts.
    """
    spread = statistics.stdev(values)
    return Estimate(statistics.fmean(values), spread / len(values) ** 0.5)
