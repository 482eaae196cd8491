"""The estimate of a collection: counts by hand, bytes as written, and an honest clock."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests import makers
from torch import Tensor

from dsno.cli import main
from dsno.diffusion.conditions import UNCONDITIONAL, Conditions
from dsno.diffusion.schedules import CosineSchedule
from dsno.recipes import load_recipe
from dsno.runs import estimate as module
from dsno.runs.build import new_teacher
from dsno.runs.estimate import CollectionEstimate, estimate_collection, estimate_lines, measure
from dsno.support.errors import InputError
from dsno.support.threads import Workers
from dsno.teachers.store import save_teacher

SMALL = ["collect.batch_size=4"]
TINY = ["collect.count=12", "collect.steps=5", "collect.shard_size=8", *SMALL]


class Slow:
    """A denoiser with its own clock: so many seconds a call and a row, and more for the first."""

    schedule = CosineSchedule()
    sample_shape = (1, 2, 2)
    sigma_data = 1.0

    def __init__(
        self, *, call: float = 0, row: float = 0, first: float = 0, evaluations: int = 1
    ) -> None:
        self.call, self.row, self.first, self.evaluations = call, row, first, evaluations
        self.now = 0.0
        self.batches: list[int] = []
        self.conditions: list[Any] = []

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None, /) -> Tensor:
        self.now += self.call + self.row * len(x) + (0 if self.batches else self.first)
        self.batches.append(len(x))
        self.conditions.append(condition)
        return x

    def measure(self, batch_size: int, conditions: Conditions = UNCONDITIONAL) -> tuple[int, float]:
        cpu = torch.device("cpu")
        return measure(self, conditions, batch_size, cpu, clock=lambda: self.now)


# ------------------------------------------------------------------------------------ counts


def test_the_digits_recipe_takes_what_one_computes_by_hand(tmp_path: Path) -> None:
    found = estimate_collection(load_recipe("digits", SMALL), tmp_path / "run")
    assert found.trajectories == 32_768
    assert found.evaluations_per_trajectory == 12  # dpm++2m: one a step
    assert found.evaluations == 393_216
    assert found.trajectory_bytes == 5 * 8 * 8 * 2 + 8  # noise and 4 states in half, a label
    assert found.total_bytes == 32_768 * 648
    assert found.shards == 8
    assert found.hours == pytest.approx(393_216 * found.seconds_per_evaluation / 3600)
    assert found.seconds_per_evaluation > 0


@pytest.mark.parametrize(
    ("overrides", "evaluations"),
    [
        (["collect.solver=heun"], 23),  # two a step, but for the last
        (["collect.guidance_scale=2"], 24),
        (["collect.guidance_scale=2", "collect.solver=heun"], 46),
    ],
)
def test_guidance_doubles_the_evaluations(
    tmp_path: Path, overrides: list[str], evaluations: int
) -> None:
    recipe = load_recipe("digits", [*SMALL, "teacher.label_dropout=0.1", *overrides])
    assert estimate_collection(recipe, tmp_path).evaluations_per_trajectory == evaluations


@pytest.mark.parametrize(
    ("make", "overrides", "evaluations"),
    [
        (makers.ddpm_folder, ["collect.dtype=float32", "collect.slices=5"], 5),
        (
            lambda folder: makers.ddpm_folder(folder, num_class_embeds=6),
            ["teacher.null_class=5", "collect.guidance_scale=[1.0, 5.0]"],
            10,
        ),
        (makers.dit_folder, [], 5),
        (makers.ldm_folder, [], 5),
        (
            makers.stable_diffusion_folder,
            ["collect.prompts=[a cat, a dog, a bird]", "collect.guidance_scale=4.5"],
            10,
        ),
    ],
    ids=["unconditional", "classes", "latent classes", "latent", "text"],
)
def test_what_is_written_is_what_was_estimated(
    tmp_path: Path, make: Callable[[Path], Path], overrides: list[str], evaluations: int
) -> None:
    run = tmp_path / "run"
    overrides = [f"teacher.source={make(tmp_path / 'source')}", *TINY, *overrides]
    recipe = load_recipe("distill", ["student.slices=1", *overrides])
    before = estimate_collection(recipe, run)
    for stage in ("teacher", "collect"):
        assert main([stage, "distill", "student.slices=1", *overrides, "--out", str(run)]) == 0
    after = estimate_collection(recipe, run)
    files = list((run / "trajectories").rglob("shard-*.safetensors"))
    prompts = list((run / "trajectories").glob("prompts.safetensors"))
    assert sum(map(payload, files)) == 12 * before.trajectory_bytes
    assert sum(map(payload, prompts)) == before.prompt_bytes
    assert before.total_bytes == sum(map(payload, files + prompts))
    assert before.shards == len(files) == 2
    assert before.evaluations_per_trajectory == evaluations
    same = ("trajectories", "evaluations", "total_bytes", "batch_size")
    assert [getattr(after, n) for n in same] == [getattr(before, n) for n in same]
    assert before.teacher == str(tmp_path / "source")
    assert after.teacher == f"the teacher in {run / 'teacher'}"


def payload(path: Path) -> int:
    """Bytes of a safetensors file after its header, whose length its first 8 bytes tell."""
    content = path.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def test_a_collection_smaller_than_a_batch_and_a_shard_is_measured_as_it_is(
    tmp_path: Path,
) -> None:
    found = estimate_collection(load_recipe("digits", ["collect.count=3"]), tmp_path)
    assert (found.batch_size, found.measured_batch, found.shards) == (3, 3, 1)
    assert found.shard_bytes == 2 * 3 * found.trajectory_bytes


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("digits", SMALL)
    estimate_collection(recipe, Path("run"))
    assert list(tmp_path.iterdir()) == []
    save_teacher(new_teacher(recipe), Path("run/teacher"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    estimate_collection(recipe, Path("run"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_imported_trajectories_have_nothing_to_estimate(tmp_path: Path) -> None:
    recipe = load_recipe("digits", ["collect.source=theirs", "collect.count=null"])
    with pytest.raises(InputError, match="imports its trajectories"):
        estimate_collection(recipe, tmp_path)


# -------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("row", [1e-5, 1e-3])
def test_the_time_of_an_evaluation_is_that_of_a_row(row: float) -> None:
    batch, seconds = Slow(row=row).measure(100)
    assert batch == 100
    assert seconds == pytest.approx(row)


def test_what_a_call_costs_is_shared_by_the_rows_of_the_batch() -> None:
    assert Slow(call=0.05, row=1e-3).measure(50) == (50, pytest.approx(0.1 / 50))


def test_a_guided_call_is_two_evaluations() -> None:
    assert Slow(row=1e-3, evaluations=2).measure(50) == (50, pytest.approx(5e-4))


def test_the_first_call_is_not_counted() -> None:
    assert Slow(row=1e-3, first=60).measure(50) == (50, pytest.approx(1e-3))


def test_a_slow_network_is_measured_in_a_smaller_batch_and_soon() -> None:
    slow = Slow(row=0.3)
    assert slow.measure(512) == (2, pytest.approx(0.3))  # 4 would take 1.2 s
    assert slow.now < 5
    very = Slow(row=20)
    assert very.measure(512) == (1, pytest.approx(20))
    assert len(very.batches) <= 5


def test_a_moment_of_disturbance_does_not_spoil_the_measurement() -> None:
    class Disturbed(Slow):
        def __call__(self, x: Tensor, t: Tensor, condition: Any = None, /) -> Tensor:
            self.now += 7 * (len(self.batches) == len(self.batches_before) + 1)
            return super().__call__(x, t, condition)

        batches_before = (1, 1, 2, 4, 8)  # warm-up, then doubling

    assert Disturbed(row=1e-3).measure(8) == (8, pytest.approx(1e-3))


class Together(Slow):
    """Two threads must be in its first evaluations at a time."""

    def __init__(self, meet: threading.Barrier) -> None:
        super().__init__()
        self.meet = meet

    def __deepcopy__(self, memo: dict[int, Any]) -> Together:
        return Together(self.meet)  # a lock cannot be copied

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None, /) -> Tensor:
        self.meet.wait(30)
        return super().__call__(x, t, condition)


def test_two_batches_side_by_side_take_half_the_time_each() -> None:
    ticks, before, cpu = itertools.count(), torch.get_num_threads(), torch.device("cpu")
    torch.set_num_threads(2)
    try:
        with Workers(cpu) as workers:
            both = Together(threading.Barrier(2))
            found = measure(
                both, UNCONDITIONAL, 64, cpu, workers=workers, clock=lambda: float(next(ticks))
            )
    finally:
        torch.set_num_threads(before)
    assert found == (1, 0.5)  # a second for two rows


def test_every_row_has_a_condition() -> None:
    slow = Slow(row=1e-3)
    slow.measure(6, Conditions([0.5, 0.5], (1.0, 2.0), torch.zeros(1, 3, 5)))
    shapes = {k: tuple(v.shape) for k, v in slow.conditions[-1].items()}
    assert shapes == {
        "class_labels": (6,),
        "guidance_scale": (6,),
        "encoder_hidden_states": (6, 3, 5),
    }


# ------------------------------------------------------------------------------------- lines

PAPER = CollectionEstimate(
    teacher="the teacher in runs/x/teacher",
    trajectories=1_000_000,
    evaluations_per_trajectory=512,
    seconds_per_evaluation=0.0036,
    batch_size=256,
    measured_batch=256,
    trajectory_bytes=30_720,
    prompt_bytes=0,
    shards=245,
    memory_bytes=2_500_000_000,
    shard_bytes=251_658_240,
    device="cpu",
    threads=1,
)


def test_the_lines_say_every_figure_with_its_unit() -> None:
    text = "\n".join(estimate_lines(PAPER))
    for words in (
        "runs/x/teacher",
        "512,000,000 of the network, 512 for each of 1,000,000 trajectories",
        "about 512 hours in one process on the cpu with 1 thread",
        "3.6 ms an evaluation, in batches of 256)",
        "about 30.7 GB in 245 shards: 30,720 bytes a trajectory",
        "about 2.5 GB of this process, and 252 MB",
    ):
        assert words in text


def test_the_lines_say_when_the_batch_was_shrunk() -> None:
    text = "\n".join(estimate_lines(dataclasses.replace(PAPER, measured_batch=8)))
    assert "in batches of 8; the collection's 256 were too slow to try" in text
    assert "at least 2.5 GB" in text


def test_the_lines_leave_the_yaml_they_follow_as_it_is() -> None:
    shown = yaml.safe_dump({"name": "x"}) + "\n".join(estimate_lines(PAPER))
    assert yaml.safe_load(shown) == {"name": "x"}


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (0.5 / 3600, "0.5 seconds"),
        (119 / 3600, "119 seconds"),
        (0.25, "15 minutes"),
        (2.25, "2.25 hours"),
        (12_345.6, "12,346 hours"),
    ],
)
def test_times_are_in_a_unit_people_use(hours: float, words: str) -> None:
    found = dataclasses.replace(PAPER, trajectories=1, evaluations_per_trajectory=1)
    found = dataclasses.replace(found, seconds_per_evaluation=hours * 3600)
    assert f"about {words} in" in "\n".join(estimate_lines(found))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="what Linux counts")
def test_the_peak_memory_is_measured() -> None:
    peak = module.peak_memory(torch.device("cpu"))
    # Linux's own count of the largest resident set, in kB
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    assert peak == pytest.approx(int(line.split()[1]) * 1024, rel=0.02)
