"""A run's evaluation: by several processes, killed in the middle, and made fuller."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.test_run import TINY
from tests.launched.processes import launched_command, wait

from dsno.cli import main

RECIPE = [
    *TINY,
    "evaluate.samples=80",
    "evaluate.batch_size=4",
    "evaluate.curves=[{solver: ddim, steps: [1]}]",
    "evaluate.more_curves=[{solver: heun, steps: [2]}, {solver: ddim, steps: [3]}]",
]
Key = tuple[str, int]


def words(command: str, out: Path, *more: str) -> list[str]:
    return [command, "digits", *RECIPE, "--out", str(out), *more]


def rows(out: Path) -> dict[Key, dict[str, Any]]:
    """What was measured of each sampler, but its time."""
    metrics = json.loads((out / "report" / "metrics.json").read_text())
    timed = ("seconds_per_sample", "relative_time")
    return {
        (row["name"], row["nfe"]): {k: v for k, v in row.items() if k not in timed}
        for row in metrics["samplers"]
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    for stage in ("teacher", "collect", "train"):
        assert main(words(stage, out)) == 0
    return out


@pytest.fixture(scope="module")
def measured(trained: Path) -> Path:
    """The same, evaluated by one process without a stop, with a report."""
    out = trained.with_name("measured")
    shutil.copytree(trained, out)
    for stage in ("evaluate", "report"):
        assert main(words(stage, out)) == 0
    return out


def test_two_processes_that_are_killed_measure_what_one_measures(
    trained: Path, measured: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(trained, out)
    first = launched_command(words("evaluate", out), log)
    wait(lambda: len(list(out.glob("evaluation/*/*/ddim-1-uniform/*"))) > 3, first)
    first.send_signal(signal.SIGKILL)
    assert first.end() == [-signal.SIGKILL] * 2
    assert not (out / "report" / "metrics.json").exists()
    finished = {p: p.stat().st_mtime_ns for p in out.glob("evaluation/*/*/*.json")}
    assert {p.stem for p in finished} == {"dpmpp2m-2-uniform", "dsno-1"}  # finished before
    second = launched_command(words("evaluate", out), log)
    assert second.end() == [0, 0], second.said()
    assert rows(out) == rows(measured)
    for path, changed in finished.items():
        # The solutions that errors are measured from are made again only if they are gone.
        assert path.stat().st_mtime_ns == changed
    left = {p.suffix for p in out.glob("evaluation/**/*") if p.is_file()}
    assert left == {".json", ".safetensors"}
    assert not list(out.glob("evaluation/*/*/*/"))  # no batches are left


def test_a_fuller_evaluation_keeps_what_is_measured(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(measured, out)
    before, page = rows(out), (out / "report" / "report.html").read_bytes()
    assert main(words("evaluate", out, "--full")) == 0
    after = rows(out)
    assert after.keys() - before.keys() == {("heun", 3), ("ddim", 3)}
    assert {key: after[key] for key in before} == before
    protocol = json.loads((out / "report" / "metrics.json").read_text())["protocol"]
    assert protocol["full"] is True
    capsys.readouterr()
    for more in (["--full"], []):  # and the shorter one is part of it
        assert main(words("evaluate", out, *more)) == 0
        assert "evaluate: finished already" in capsys.readouterr().err
    assert main(words("report", out)) == 0
    assert (out / "report" / "report.html").read_bytes() != page
    assert not list(out.parent.glob("run/report.*"))  # nothing was set aside


def test_an_evaluation_says_what_decides_its_numbers(measured: Path) -> None:
    metrics = json.loads((measured / "report" / "metrics.json").read_text())
    assert metrics["samples"] == 80
    assert metrics["seed"] == 0
    assert metrics["batch_size"] == 4
    assert metrics["features"] == {"pixels": {"dimension": 64}}
    assert metrics["protocol"] == {
        "split": None,  # digits have none
        "shape": [1, 8, 8],
        "ema_decay": {"teacher": 0.999, "student": 0.999},
        "full": False,
        "data_sha256": metrics["protocol"]["data_sha256"],
    }
    assert len(metrics["protocol"]["data_sha256"]) == 64
    assert {"dsno", "torch", "diffusers"} <= metrics["environment"].keys()
