"""With how many evaluations a solver has the student's distance."""

from __future__ import annotations

from typing import Any

import pytest

from dsno.evaluation.equivalence import Equivalence, equivalent, in_words, step_equivalence


@pytest.mark.parametrize(
    ("curve", "distance", "expected"),
    [
        ({1: 100, 4: 10}, 31.6227766, ("=", 2)),  # halfway in both logarithms
        ({8: 1, 2: 16}, 4, ("=", 4)),  # in any order; 16 / N^2 x 4
        ({1: 100, 4: 10}, 10, ("=", 4)),
        ({1: 100, 4: 10}, 100, ("=", 1)),
        ({1: 100, 4: 10}, 101, ("<", 1)),
        ({4: 10, 32: 1}, 12, ("<", 4)),
        ({1: 100, 32: 10}, 9, (">=", 32)),
        ({16: 5}, 4, (">=", 16)),
        ({1: 100, 2: 10, 4: 20, 8: 1}, 15, ("=", 1.770)),  # the first crossing of a wavy curve
        ({1: 100, 2: 0}, 0.5, ("=", 2)),
    ],
)
def test_the_curve_is_straight_between_points_in_both_logarithms(
    curve: dict[int, float], distance: float, expected: tuple[str, float]
) -> None:
    relation, evaluations = equivalent(curve, distance)
    assert (relation, evaluations) == (expected[0], pytest.approx(expected[1], rel=1e-3))


def row(name: str, nfe: int, distance: float, spacing: str | None = "uniform") -> dict[str, Any]:
    found = {"pixels": distance, "classifier": 2 * distance}
    return {"name": name, "nfe": nfe, "spacing": spacing, "frechet_distance": found}


ROWS = [
    row("dsno", 1, 2.0, None),
    row("ddim", 1, 64.0),
    row("ddim", 2, 16.0),
    row("ddim", 4, 4.0),
    row("ddim", 4, 1.0, "karras"),
    row("dpm++2m", 8, 1.0),
]


def test_each_solver_has_its_number_in_each_space_on_a_uniform_grid() -> None:
    """DPM-Solver++ takes DDIM's first two steps: from (2, 16) to (8, 1) is 64 / N^2, 2 at 5.66."""
    found = step_equivalence(ROWS, ["pixels", "classifier"])
    assert found[:2] == [
        Equivalence("ddim", "pixels", ">=", 4),
        Equivalence("dpm++2m", "pixels", "=", pytest.approx(5.657, rel=1e-3)),
    ]
    assert [(e.solver, e.features) for e in found[2:]] == [
        ("ddim", "classifier"),
        ("dpm++2m", "classifier"),
    ]
    assert found[3].evaluations == pytest.approx(5.657, rel=1e-3)


def test_under_guidance_a_step_costs_two_evaluations() -> None:
    rows = [row("dsno", 1, 2.0, None), row("ddim", 4, 16.0), row("dpm++2m", 16, 1.0)]
    assert step_equivalence(rows, ["pixels"])[1].relation == "<"
    found = step_equivalence(rows, ["pixels"], calls=2)[1]
    assert (found.relation, found.evaluations) == ("=", pytest.approx(11.31, rel=1e-3))


def test_the_numbers_are_written_as_a_reader_expects() -> None:
    found = [
        Equivalence("ddim", "pixels", ">=", 32),
        Equivalence("dpm++2m", "pixels", "=", 5.27),
        Equivalence("unipc", "pixels", "<", 1),
        Equivalence("ddim", "pixels", "=", 14.3),
    ]
    assert [row.text for row in found] == [">= 32", "5.3", "< 1", "14"]
    assert in_words(found[:2]) == (
        "The student's distance (pixels) is that of the teacher by DDIM with >= 32, "
        "DPM-Solver++(2M) with 5.3 evaluations."
    )
