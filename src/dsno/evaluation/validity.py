"""Whether there are enough samples for a Frechet distance to mean something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from dsno.evaluation.features import singular
from dsno.support.console import alert

PER_DIMENSION = 5
"""Samples a dimension that are enough: 10,000 for Inception's 2,048 features, which the authors of
the distance recommend (Heusel et al., github.com/bioinf-jku/TTUR)."""
FEWEST = 100
"""Samples that are enough in any dimension: a variance of so many is off by sqrt(2 / n) = 14 %."""

PROTOCOL: Mapping[str, int] = {"inception": 50_000}
"""Samples that the field's protocol has in some features, whose published figures are of so many
(github.com/NVlabs/edm, fid.py)."""

Role = Literal["samples", "reference", "half"]
_WORDS: Mapping[Role, str] = {
    "samples": "samples",
    "reference": "items of the reference",
    "half": "items in each half of the reference",
}


@dataclass(frozen=True)
class Shortage:
    """A set too small for the Frechet distance in some features.

    Attributes:
        features: name of the feature space.
        of: whether it is the samples, the reference, or each of its halves.
        count: how many there are.
        dimension: of the features.
    """

    features: str
    of: Role
    count: int
    dimension: int

    @property
    def enough(self) -> int:
        """How many would do."""
        return enough(self.dimension, self.features if self.of == "samples" else "")

    @property
    def sentence(self) -> str:
        """What it means and what to do."""
        wanted = f"{self.enough:,} or more"
        if self.of == "half":
            wanted = f"{2 * self.enough:,} or more items of the reference"
        what = "between halves of the reference " if self.of == "half" else ""
        words = f"{self.count:,} {_WORDS[self.of]} in {self.dimension:,} dimensions"
        lead = f"The Frechet distance {what}in {singular(self.features)} features"
        if self.count <= self.dimension:
            return f"{lead} is not meaningful: the covariance of {words} is singular; use {wanted}."
        if self.count >= enough(self.dimension):
            return (
                f"{lead} is not comparable with published ones: {words} bias it upwards; the "
                f"protocol has {self.enough:,}."
            )
        return f"{lead} is biased upwards: {words} are too few; use {wanted}."


def enough(dimension: int, features: str = "") -> int:
    """Samples that are enough for a distance in so many dimensions, and as the protocol has it.

    Args:
        dimension: of the features.
        features: their name, if it is the samples that are judged: the protocol speaks of those.
    """
    return max(PER_DIMENSION * dimension, FEWEST, PROTOCOL.get(features, 0))


def shortages(dimensions: Mapping[str, int], samples: int, reference: int) -> list[Shortage]:
    """Every set that is too small, space by space.

    Args:
        dimensions: of the feature spaces, by their names.
        samples: how many of each sampler are measured.
        reference: how many they are compared with.
    """
    counts: dict[Role, int] = {"samples": samples, "reference": reference, "half": reference // 2}
    return [
        short
        for features, dimension in dimensions.items()
        for of, count in counts.items()
        if (short := Shortage(features, of, count, dimension)).count < short.enough
    ]


def warn(found: Iterable[Shortage]) -> None:
    """Print a line for each."""
    for shortage in found:
        alert(f"Warning: {shortage.sentence}")
