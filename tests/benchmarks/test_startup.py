"""The benchmark of how commands start."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

STARTUP = Path(__file__).parents[2] / "benchmarks" / "startup.py"

REPORT = """\
import time: self [us] | cumulative | imported package
import time:       250 |        250 |   torch.fx
import time:   2000000 |    2000250 | torch
import time:      1000 |       1000 |     dsno.support
some line of the command's own
import time:      4000 |       5000 | dsno.cli
"""


def test_import_times_are_summed_by_package() -> None:
    found = runpy.run_path(str(STARTUP))["by_package"](REPORT)
    assert found == pytest.approx({"torch": 2.00025, "dsno": 0.005})
