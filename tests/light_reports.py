"""Reports at a fraction of their cost, for tests of what comes before them.

Everything that decides what a report says is done; figures are laid out, with fewer panels, but
not rendered, and what is shown besides the measurements is of fewer trajectories. Whole reports
are drawn in `tests/evaluation/test_report.py` and by the command that is started as a process.
"""

from __future__ import annotations

import functools

import pytest
from PIL import Image

from dsno.evaluation import figures
from dsno.evaluation.trajectories import power_spectrum, trajectory_arrays


def make_light(patch: pytest.MonkeyPatch) -> None:
    """Make the reports of this process light."""
    patch.setattr(figures, "_render", lambda figure: Image.new("RGB", (16, 16)))
    patch.setattr(figures, "COLUMNS", 2)
    patch.setattr(figures, "NOISES", 1)
    fewer = functools.partial(trajectory_arrays, count=2, steps=8)
    patch.setattr("dsno.runs.stages.trajectory_arrays", fewer)
    fewer_noises = functools.partial(power_spectrum, count=4, points=16)
    patch.setattr("dsno.runs.stages.power_spectrum", fewer_noises)
