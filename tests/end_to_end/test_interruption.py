"""Stopped at any instant, the same command goes on and ends with the same bytes."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.launched.processes import Child, command, wait

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
    "finish=null",
    "train.batch_size=8",
    "train.checkpoint_every=5",
]
OUTPUTS = ("teacher", "trajectories", "student")
STAGES = ("teacher", "collect", "train")


class Runner:
    """Runs commands on one folder, whole or until something is on disk."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def start(self, stage: str) -> Child:
        return command([stage, "digits", *RECIPE, "--out", str(self.out)], self.log)

    def finish(self, stage: str) -> None:
        assert self.start(stage).end() == 0

    def stop(self, stage: str, number: signal.Signals, when: Callable[[], bool]) -> int:
        """Send a signal as soon as `when`, return the exit code."""
        process = self.start(stage)
        wait(when, process)
        process.send_signal(number)
        return process.end()

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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """An uninterrupted run of the first three stages."""
    runner = Runner(tmp_path_factory.mktemp("whole") / "run")
    for stage in STAGES:
        runner.finish(stage)
    return runner


def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(whole: Runner, tmp_path: Path) -> None:
    runner = Runner(tmp_path / "run")
    moments = random.Random(0)
    for stage, pattern, most in (
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

            assert runner.stop(stage, signal.SIGKILL, reached) == -signal.SIGKILL
        runner.finish(stage)
    assert runner.contents() == whole.contents()
    assert runner.found("**/.*") == [runner.out / ".lock"]  # nothing half-written is left
    assert runner.log.read_text().count("Resuming from step") == 4


def test_a_killed_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    whole: Runner, tmp_path: Path
) -> None:
    runner = Runner(tmp_path / "run")
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
    ("stage", "name", "pattern"),
    [
        ("train", "student", "student/checkpoints/.step-*.tmp"),
        ("collect", "trajectories", "trajectories/.shard-*.tmp"),
    ],
)
def test_a_run_killed_while_it_writes_ends_with_the_same_bytes(
    whole: Runner, tmp_path: Path, stage: str, name: str, pattern: str
) -> None:
    runner = Runner(tmp_path / "run")
    shutil.copytree(whole.out, runner.out)
    shutil.rmtree(runner.out / name)
    shutil.rmtree(runner.out / "checkpoints")  # else the student is written again from its last
    landed = 0
    for _ in range(3):
        process = runner.start(stage)
        while not runner.found(pattern):  # no pause: it is there for a moment only
            assert process.is_alive()
        process.send_signal(signal.SIGKILL)
        process.end()
        landed += len(runner.found(pattern))  # unless it was renamed that very moment
    assert landed
    runner.finish(stage)
    assert runner.contents() == whole.contents()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_collection_stopped_by_a_signal_goes_on(
    whole: Runner, tmp_path: Path, number: signal.Signals
) -> None:
    runner = Runner(tmp_path / "run")
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
    runner = Runner(tmp_path / "run")
    out = runner.out
    shutil.copytree(whole.out, out)
    shutil.rmtree(out / "student")
    shutil.rmtree(out / "checkpoints")  # else the student is written again from its last
    first = out / "student/checkpoints/step-00000005.pt"
    assert runner.stop("train", signal.SIGINT, first.exists) == 130
    err = runner.log.read_text()
    lines = err.splitlines()
    assert lines[-1] == "dsno: interrupted; the same command goes on from here."
    assert lines[-2].startswith("Interrupted at step ")
    assert "Traceback" not in err
    step = int(lines[-2].removeprefix("Interrupted at step ").partition(";")[0])
    assert (out / f"student/checkpoints/step-{step:08d}.pt").is_file()
    assert not (out / "student/model_index.json").exists()
    runner.finish("train")
    assert f"Resuming from step {step} (" in runner.log.read_text()
    assert runner.contents() == whole.contents()
