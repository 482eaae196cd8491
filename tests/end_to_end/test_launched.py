"""The same commands under a launcher, as jobs side by side, and stopped in every way there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dsno.cli import main
from dsno.support.files import sha256
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
    "train.batch_size=8",
    "train.checkpoint_every=5",
]
SHARDS = 15
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
LAUNCHER += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
PLAIN = [sys.executable]


def start(launcher: list[str], command: str, out: Path, *more: str) -> subprocess.Popen[str]:
    words = [*launcher, "-m", "dsno", command, "digits", *RECIPE, "--out", str(out), *more]
    return subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 0, err
    return err


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wait(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert process.poll() is None, "the process ended before it could be stopped"
        assert time.monotonic() < end, "the process never came so far"
        time.sleep(0.001)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and what one process, with the threads of the others, collected from it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(PLAIN, "teacher", out))
    finish(start(PLAIN, "collect", out))
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A run whose collection has not begun."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "trajectories")
    return tmp_path / "run"


def test_two_processes_collect_the_bytes_of_one(whole: Path, run: Path) -> None:
    err = finish(start(LAUNCHER, "collect", run))
    assert contents(run / "trajectories") == contents(whole / "trajectories")
    assert err.count("collect: read") == 1  # one of them speaks


def test_jobs_side_by_side_collect_the_bytes_of_one(whole: Path, run: Path) -> None:
    ranges = ("0:6", "6:11", "11:15")
    for job in [start(PLAIN, "collect", run, "--shard-range", r) for r in ranges]:
        finish(job)
    assert contents(run / "trajectories") == contents(whole / "trajectories")
    assert main(["train", "digits", *RECIPE, "train.steps=1", "--out", str(run)]) == 0


def test_a_launched_collection_killed_at_any_moment_ends_with_the_same_bytes(
    whole: Path, run: Path
) -> None:
    moments, folder = random.Random(1), run / "trajectories"
    for most in (4, 9):
        job = start(LAUNCHER, "collect", run)
        wait(lambda most=most: len(list(folder.glob("shard-*.safetensors"))) >= most, job)
        time.sleep(0.02 * moments.random())
        subprocess.run(["pkill", "-KILL", "-P", str(job.pid)], check=True)  # both workers
        job.communicate(timeout=60)
        assert job.returncode != 0
        assert load_manifest(folder).missing
    finish(start(LAUNCHER, "collect", run))
    assert contents(folder) == contents(whole / "trajectories")


def test_a_launched_collection_that_is_pre_empted_keeps_what_it_solved(
    whole: Path, run: Path
) -> None:
    folder = run / "trajectories"
    job = start(LAUNCHER, "collect", run)
    wait(lambda: len(list(folder.glob("shard-*.safetensors"))) >= 3, job)
    job.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    err = job.communicate(timeout=60)[1]
    assert time.monotonic() - asked < 20
    assert job.returncode != 0
    assert "dsno: interrupted; the same command goes on from here." in err
    assert 3 <= len(list(folder.glob("shard-*.safetensors"))) < SHARDS
    finish(start(PLAIN, "collect", run))  # on another number of processes
    assert contents(folder) == contents(whole / "trajectories")


def test_a_launched_training_that_is_pre_empted_ends_with_the_same_bytes(
    whole: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "whole", tmp_path / "stopped"
    for out in runs:
        shutil.copytree(whole, out)
    finish(start(LAUNCHER, "train", runs[0]))
    job = start(LAUNCHER, "train", runs[1])
    wait((runs[1] / "student/checkpoints/step-00000010.pt").exists, job)
    job.send_signal(signal.SIGTERM)
    err = job.communicate(timeout=60)[1]
    assert "Interrupted at step" in err
    assert not (runs[1] / "student/model_index.json").exists()
    assert "Resuming from step" in finish(start(LAUNCHER, "train", runs[1]))
    assert contents(runs[1] / "student") == contents(runs[0] / "student")


def test_what_is_wrong_is_said_once_and_ends_every_process(run: Path) -> None:
    job = start(LAUNCHER, "train", run)
    err = job.communicate(timeout=60)[1]
    said = [line for line in err.splitlines() if line.startswith("dsno") and ":" in line]
    (line,) = said
    assert line.startswith("dsno: There is no manifest at ")
    assert job.returncode != 0
