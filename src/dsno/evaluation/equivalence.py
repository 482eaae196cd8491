"""Step equivalence: with how many of its evaluations a solver has the student's distance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dsno.evaluation.samplers import SAMPLER_NAMES, STUDENT

SOLVERS = ("ddim", "dpm++2m", "unipc")
AS_DDIM = 2
"""Evaluations up to which these solvers take the steps of DDIM: there is nothing to extrapolate
from yet, and the step into t = 0 is the denoised estimate."""

Relation = Literal["=", ">=", "<"]


@dataclass(frozen=True)
class Equivalence:
    """A solver's evaluations with the student's distance.

    Attributes:
        solver: its name.
        features: the feature space.
        relation: whether it is `evaluations`, at least as many (more than were measured), or fewer
            (than the fewest measured).
        evaluations: of the network, per sample.
    """

    solver: str
    features: str
    relation: Relation
    evaluations: float

    @property
    def text(self) -> str:
        """5.3; 14; >= 32; < 1."""
        if self.relation != "=":
            return f"{self.relation} {self.evaluations:,.0f}"
        return f"{self.evaluations:,.{0 if self.evaluations >= 10 else 1}f}"


def in_words(found: Sequence[Equivalence]) -> str:
    """A sentence of the equivalences in one feature space, at least one."""
    solvers = [f"{SAMPLER_NAMES[row.solver]} with {row.text}" for row in found]
    return (
        f"The student's distance ({found[0].features}) is that of the teacher by "
        + ", ".join(solvers)
        + " evaluations."
    )


def equivalent(curve: Mapping[int, float], distance: float) -> tuple[Relation, float]:
    """Where a curve of distances by evaluations first comes down to a distance.

    Between two points the curve is a straight line in the logarithms of both.

    Args:
        curve: distances by evaluations, at least one.
        distance: to be reached.
    """
    points = sorted(curve.items())
    if distance > points[0][1]:
        return "<", points[0][0]
    above = points[0]
    for point in points:
        if point[1] <= distance:
            return "=", _between(above, point, distance)
        above = point
    return ">=", points[-1][0]


def _between(above: tuple[int, float], below: tuple[int, float], distance: float) -> float:
    if above == below or below[1] in (0, distance):
        return below[0]
    share = math.log(above[1] / distance) / math.log(above[1] / below[1])
    return float(above[0] * (below[0] / above[0]) ** share)


def step_equivalence(
    samplers: Sequence[Mapping[str, Any]], spaces: Iterable[str], *, calls: int = 1
) -> list[Equivalence]:
    """For each feature space and solver measured, the evaluations that have the student's distance.

    Args:
        samplers: rows of metrics.json, the student's among them; of the solvers' those on a uniform
            grid count.
        spaces: names of the feature spaces.
        calls: evaluations in a step, 2 under guidance.
    """
    student = next(
        row["frechet_distance"]
        for row in samplers
        if row["name"] == STUDENT and row["spacing"] is None
    )
    found = []
    for space in spaces:
        shared = {n: d for n, d in _curve(samplers, "ddim", space) if n <= AS_DDIM * calls}
        for solver in SOLVERS:
            if own := dict(_curve(samplers, solver, space)):
                found.append(Equivalence(solver, space, *equivalent(shared | own, student[space])))
    return found


def _curve(
    samplers: Iterable[Mapping[str, Any]], solver: str, space: str
) -> Iterable[tuple[int, float]]:
    for row in samplers:
        if row["name"] == solver and row["spacing"] == "uniform":
            yield int(row["nfe"]), float(row["frechet_distance"][space])
