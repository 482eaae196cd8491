"""The recipe `cifar10-cpu`, its networks and settings, with a few steps on made-up photographs."""

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


def test_the_recipe_goes_from_parquet_files_to_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, shards = tmp_path / "run", made_up(tmp_path / "shards", 40)
    command = ["run", "cifar10-cpu", f"data.path={shards}", *SMALL, "--out", str(run)]
    assert main(command) == 0
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    assert metrics["protocol"]["shape"] == [3, 16, 16]
    assert metrics["finish"]["looks"][-1]["step"] == 4
    samplers = {(row["name"], row["nfe"]) for row in metrics["samplers"]}
    assert {("dsno", 1), ("dsno-unfinished", 1), ("ddim", 2)} <= samplers
    assert ("dsno", 2) in samplers  # and one step of the teacher from its trajectory
    assert (run / "report" / "report.html").is_file()
    capsys.readouterr()
    assert main(["sample", str(run), "--num", "2", "--out", str(tmp_path / "grid.png")]) == 0
