"""The samplers as lines of text."""

from __future__ import annotations

import re
from typing import Any

from dsno.evaluation.table import table


def test_the_table_lists_the_cheapest_first() -> None:
    rows = [("dsno", "DSNO", 1, 4.0), ("ddim", "DDIM", 16, 12.345), ("ddim", "DDIM", 2, 100.0)]
    metrics: dict[str, Any] = {
        "features": {"pixels": {}},
        "verdict": {"features": "pixels"},
        "reference": {"split_half_distance": {"pixels": 0.25}},
        "samplers": [
            {
                "name": name,
                "label": label,
                "nfe": nfe,
                "spacing": None if name == "dsno" else "uniform",
                "frechet_distance": {"pixels": distance},
                "relative_time": nfe / 2,
            }
            for name, label, nfe, distance in rows
        ],
    }
    assert [re.split(r"\s{2,}", line) for line in table(metrics).splitlines()] == [
        ["sampler", "evaluations", "spacing", "distance (pixels)", "time / student's"],
        ["DSNO", "1", "-", "4", "0.50"],
        ["DDIM", "2", "uniform", "100", "1.00"],
        ["DDIM", "16", "uniform", "12.3", "8.00"],
        ["real, half against half", "-", "-", "0.25", "-"],
    ]


def test_intervals_the_other_metrics_and_the_step_equivalence_follow() -> None:
    shared = {"nfe": 1, "spacing": None, "relative_time": 1.0}
    metrics: dict[str, Any] = {
        "features": {"pixels": {}, "classifier": {}},
        "verdict": {"features": "classifier"},
        "reference": {"split_half_distance": {"pixels": 0.25, "classifier": 0.5}},
        "samplers": [
            {
                "name": "dsno",
                "label": "DSNO",
                **shared,
                "frechet_distance": {"pixels": 4.0, "classifier": 2.0},
                "frechet_error": {"pixels": 0.5, "classifier": 0.05},
                "kernel_distance": {"classifier": {"value": 0.01234, "standard_error": 0.001}},
                "precision": {"pixels": 0.9, "classifier": 0.8125},
                "recall": {"pixels": 0.7, "classifier": 0.75},
            },
            {
                "name": "ddim",
                "label": "DDIM",
                **shared,
                "frechet_distance": {"pixels": 40.0, "classifier": 20.0},
            },
        ],
        "step_equivalence": [
            {"solver": "ddim", "features": "pixels", "relation": "=", "evaluations": 3.0},
            {"solver": "ddim", "features": "classifier", "relation": ">=", "evaluations": 16},
        ],
    }
    first, second, note, equivalence = table(metrics).split("\n\n")
    rows = [re.split(r"\s{2,}", line) for line in first.splitlines()]
    assert rows[1][3:5] == ["40", "20"]
    assert rows[2][3:5] == ["4 ± 0.98", "2 ± 0.098"]  # 1.96 standard errors
    assert [re.split(r"\s{2,}", line)[3:] for line in second.splitlines()] == [
        ["kernel distance (classifier)", "precision (classifier)", "recall (classifier)"],
        ["-", "-", "-"],
        ["0.0123 ± 0.002", "0.812", "0.750"],
    ]
    assert note.startswith("± is half of a 95 % interval")
    assert equivalence == (
        "The student's distance (classifier) is that of the teacher by DDIM with >= 16 evaluations."
    )
