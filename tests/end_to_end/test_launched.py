"""The same commands under a launcher, as jobs side by side, and stopped in every way there."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from tests.checksums import contents
from tests.launched.processes import Child, Launch, command, launched_command, wait

from dsno.cli import main
from dsno.trajectories.manifest import load_manifest

RECIPE = [
    "collect.slices=4",
    "student.slices=4",
    "teacher.network.channels=[8]",
    "teacher.steps=10",
    "teacher.batch_size=8",
    "collect.count=240",
    "collect.shard_size=16",
    "collect.batch_size=8",
    "train.steps=40",
    "finish=null",
    "train.batch_size=8",
    "train.checkpoint_every=5",
]
SHARDS = 15
LAUNCHER = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]


def words(stage: str, out: Path, *more: str) -> list[str]:
    return [stage, "digits", *RECIPE, "--out", str(out), *more]


def alone(stage: str, out: Path, *more: str) -> Child:
    return command(words(stage, out, *more), out.with_suffix(".log"))


def together(stage: str, out: Path) -> Launch:
    return launched_command(words(stage, out), out.with_suffix(".log"))


def torchrun(stage: str, out: Path) -> Child:
    """The same by PyTorch's launcher: its agent, its rendezvous and its signals."""
    arguments = [LAUNCHER, words(stage, out)]
    return Child("tests.launched.agent:run", arguments, out.with_suffix(".log"), has_children=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and what one process, with the threads of the others, collected from it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    for stage in ("teacher", "collect"):
        assert alone(stage, out).end() == 0
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A run whose collection has not begun."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "trajectories")
    return tmp_path / "run"


def test_two_processes_collect_the_bytes_of_one(whole: Path, run: Path) -> None:
    job = together("collect", run)
    assert job.end() == [0, 0], job.said()
    assert contents(run / "trajectories") == contents(whole / "trajectories")
    assert job.said().count("collect: read") == 1  # one of them speaks


def test_jobs_side_by_side_collect_the_bytes_of_one(whole: Path, run: Path) -> None:
    ranges = ("0:6", "6:11", "11:15")
    for job in [alone("collect", run, "--shard-range", r) for r in ranges]:
        assert job.end() == 0
    assert contents(run / "trajectories") == contents(whole / "trajectories")
    assert main(["train", "digits", *RECIPE, "train.steps=1", "--out", str(run)]) == 0


def test_a_launched_collection_killed_at_any_moment_ends_with_the_same_bytes(
    whole: Path, run: Path
) -> None:
    moments, folder = random.Random(1), run / "trajectories"
    for most in (4, 9):
        job = together("collect", run)
        wait(lambda most=most: len(list(folder.glob("shard-*.safetensors"))) >= most, job)
        time.sleep(0.02 * moments.random())
        job.send_signal(signal.SIGKILL)
        assert job.end() == [-signal.SIGKILL] * 2
        assert load_manifest(folder).missing
    assert together("collect", run).end() == [0, 0]
    assert contents(folder) == contents(whole / "trajectories")


def test_a_launched_collection_that_is_pre_empted_keeps_what_it_solved(
    whole: Path, run: Path
) -> None:
    folder = run / "trajectories"
    job = torchrun("collect", run)
    wait(lambda: len(list(folder.glob("shard-*.safetensors"))) >= 3, job)
    job.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert job.end() != 0
    assert time.monotonic() - asked < 20
    assert "dsno: interrupted; the same command goes on from here." in job.said()
    assert 3 <= len(list(folder.glob("shard-*.safetensors"))) < SHARDS
    assert alone("collect", run).end() == 0  # on another number of processes
    assert contents(folder) == contents(whole / "trajectories")


def test_a_launched_training_that_is_pre_empted_ends_with_the_same_bytes(
    whole: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "whole", tmp_path / "stopped"
    for out in runs:
        shutil.copytree(whole, out)
    assert together("train", runs[0]).end() == [0, 0]
    job = together("train", runs[1])
    wait((runs[1] / "student/checkpoints/step-00000010.pt").exists, job)
    job.send_signal(signal.SIGTERM)
    assert job.end() == [130, 130]
    assert "Interrupted at step" in job.said()
    assert not (runs[1] / "student/model_index.json").exists()
    assert "Resuming from step" not in job.said()
    again = together("train", runs[1])
    assert again.end() == [0, 0]
    assert "Resuming from step" in again.said()
    assert contents(runs[1] / "student") == contents(runs[0] / "student")


def test_what_is_wrong_is_said_once_and_ends_every_process(run: Path) -> None:
    job = together("train", run)
    assert job.end() == [2, 2]
    said = [line for line in job.said().splitlines() if line.startswith("dsno") and ":" in line]
    (line,) = said
    assert line.startswith("dsno: There is no manifest at ")
