"""Stopped at any instant, the same command goes on and ends with the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from dsno.cli import main
from dsno.support.files import sha256

RECIPE = [
    "collect.slices=4",
    "student.slices=4",
    "teacher.network.channels=[8]",
    "teacher.steps=60",
    "teacher.batch_size=8",
    "teacher.checkpoint_every=5",
    "collect.count=160",
    "collect.shard_size=16",
    "collect.batch_size=8",
    "train.steps=60",
    "train.batch_size=8",
    "train.checkpoint_every=5",
]
OUTPUTS = ("teacher", "trajectories", "student")
COMMANDS = ("teacher", "collect", "train")


def work(arguments: list[str], log: Path) -> None:
    """One command in a process of its own."""
    with log.open("a") as sys.stderr:
        sys.exit(main(arguments))


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Where children start from: a process that has everything imported and one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before its first child
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["dsno.cli", "dsno.runs.run", "sklearn.datasets"])
    return found


class Runner:
    """Runs commands on one folder, whole or until something is on disk."""

    def __init__(self, context: ForkServerContext, out: Path) -> None:
        self.context, self.out = context, out

    def start(self, command: str) -> Any:
        process = self.context.Process(
            target=work, args=([command, "digits", *RECIPE, "--out", str(self.out)], self.log)
        )
        process.start()
        return process

    def finish(self, command: str) -> None:
        process = self.start(command)
        process.join(120)
        assert process.exitcode == 0

    def stop(self, command: str, number: signal.Signals, when: Callable[[], bool]) -> int:
        """Send a signal as soon as `when`, return the exit code."""
        process = self.start(command)
        wait(when, process.is_alive)
        os.kill(process.pid, number)
        process.join(60)
        code: int = process.exitcode
        return code

    @property
    def log(self) -> Path:
        """What the commands said."""
        return self.out.with_suffix(".log")

    def found(self, pattern: str) -> list[Path]:
        """Files of the run."""
        return sorted(self.out.glob(pattern))

    def contents(self) -> dict[str, str]:
        """Checksum of every file that the three stages left."""
        return {
            str(path.relative_to(self.out)): sha256(path)
            for name in OUTPUTS
            for path in sorted((self.out / name).rglob("*"))
            if path.is_file()
        }


def wait(when: Callable[[], bool], alive: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not when():
        assert alive(), "the process ended before it could be stopped"
        assert time.monotonic() < end, "the process never came so far"
        time.sleep(0.001)


@pytest.fixture(scope="module")
def whole(context: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """An uninterrupted run of the first three stages."""
    runner = Runner(context, tmp_path_factory.mktemp("whole") / "run")
    for command in COMMANDS:
        runner.finish(command)
    return runner


def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(whole: Runner, tmp_path: Path) -> None:
    runner = Runner(whole.context, tmp_path / "run")
    moments = random.Random(0)
    for command, pattern, most in (
        ("teacher", "teacher/checkpoints/step-*.pt", 8),
        ("collect", "trajectories/shard-*.safetensors", 7),
        ("train", "student/checkpoints/step-*.pt", 8),
    ):
        for first in sorted(moments.sample(range(1, most), 2)):
            # A checkpoint is named after its step, a shard after its number.
            mark = pattern.replace("*", f"{5 * first:08d}" if "step" in pattern else f"{first:05d}")
            pause = moments.random() * 0.02

            def reached(mark: str = mark, pause: float = pause) -> bool:
                there = (runner.out / mark).exists()
                time.sleep(pause if there else 0)
                return there

            assert runner.stop(command, signal.SIGKILL, reached) == -signal.SIGKILL
        runner.finish(command)
    assert runner.contents() == whole.contents()
    assert runner.found("**/.*") == [runner.out / ".lock"]  # nothing half-written is left
    assert runner.log.read_text().count("Resuming from step") == 4


def test_a_killed_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    whole: Runner, tmp_path: Path
) -> None:
    runner = Runner(whole.context, tmp_path / "run")
    for name in ("teacher", "trajectories"):
        shutil.copytree(whole.out / name, runner.out / name)
    for name in ("recipe.yaml", "stages.json"):
        shutil.copy(whole.out / name, runner.out / name)

    def third() -> bool:
        return (runner.out / "student/checkpoints/step-00000015.pt").exists()

    assert runner.stop("train", signal.SIGKILL, third) == -signal.SIGKILL
    newest = runner.found("student/checkpoints/step-*.pt")[-1]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    runner.finish("train")
    assert f"{newest} is damaged and is not used" in runner.log.read_text()
    assert f"Resuming from step {int(newest.stem[5:]) - 5} (" in runner.log.read_text()
    assert runner.contents() == whole.contents()


@pytest.mark.parametrize(
    ("command", "name", "pattern"),
    [
        ("train", "student", "student/checkpoints/.step-*.tmp"),
        ("collect", "trajectories", "trajectories/.shard-*.tmp"),
    ],
)
def test_a_run_killed_while_it_writes_ends_with_the_same_bytes(
    whole: Runner, tmp_path: Path, command: str, name: str, pattern: str
) -> None:
    runner = Runner(whole.context, tmp_path / "run")
    shutil.copytree(whole.out, runner.out)
    shutil.rmtree(runner.out / name)
    landed = 0
    for _ in range(3):
        process = runner.start(command)
        while not runner.found(pattern):  # no pause: it is there for a moment only
            assert process.is_alive()
        process.kill()
        process.join()
        landed += len(runner.found(pattern))  # unless it was renamed that very moment
    assert landed
    runner.finish(command)
    assert runner.contents() == whole.contents()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_collection_stopped_by_a_signal_goes_on(
    whole: Runner, tmp_path: Path, number: signal.Signals
) -> None:
    runner = Runner(whole.context, tmp_path / "run")
    shutil.copytree(whole.out, runner.out)
    shutil.rmtree(runner.out / "trajectories")
    code = runner.stop(
        "collect", number, lambda: len(runner.found("trajectories/shard-*.safetensors")) >= 3
    )
    assert code == 130
    assert len(runner.found("trajectories/shard-*")) < 10
    runner.finish("collect")
    assert runner.contents() == whole.contents()


def test_ctrl_c_during_training_saves_and_the_same_command_goes_on(
    whole: Runner, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.out, out)
    shutil.rmtree(out / "student")
    command = [sys.executable, "-m", "dsno.cli", "train", "digits", *RECIPE, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        first = out / "student/checkpoints/step-00000005.pt"
        wait(first.exists, lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    lines = err.splitlines()
    assert lines[-1] == "dsno: interrupted; the same command goes on from here."
    assert lines[-2].startswith("Interrupted at step ")
    assert "Traceback" not in err
    step = int(lines[-2].removeprefix("Interrupted at step ").partition(";")[0])
    assert (out / f"student/checkpoints/step-{step:08d}.pt").is_file()
    assert not (out / "student/model_index.json").exists()
    runner = Runner(whole.context, out)
    runner.finish("train")
    assert f"Resuming from step {step} (" in runner.log.read_text()
    assert runner.contents() == whole.contents()
