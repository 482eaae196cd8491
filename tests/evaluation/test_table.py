"""The samplers as lines of text."""

from __future__ import annotations

import re
from typing import Any

from dsno.evaluation.table import table


def test_the_table_lists_the_cheapest_first() -> None:
    rows = [("dsno", "DSNO", 1, 4.0), ("ddim", "DDIM", 16, 12.345), ("ddim", "DDIM", 2, 100.0)]
    metrics: dict[str, Any] = {
        "features": {"pixels": {}},
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
