"""A visit to a GPU: its clock, its files, what it does with failures, and all of it in small."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tests.light_reports import make_light
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from gpu import images, results, training, trajectories, visit, weights
from gpu.work import TOY, Work

from dsno.cli import main
from dsno.recipes import load_recipe
from dsno.support.errors import InputError
from dsno.teachers.unet import build_unet

VISIT = Path(visit.__file__)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    folders = {"out": tmp_path / "out", "scratch": tmp_path / "scratch", "weights": ()}
    return Work("speed", **folders, data="", until=0.0, toy=True, commit="abc", command="visit")


# ---- the whole -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_rehearsal_does_every_part_and_brings_back_its_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(VISIT), "--rehearse", "--out", str(out)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    log = (out / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + log
    records = results.read(out)
    assert {r["part"]: r["status"] for r in records if "status" in r} == dict.fromkeys(
        visit.PARTS, "done"
    )
    assert all(math.isfinite(r["value"]) for r in records if r.get("value") is not None)
    assert all(r["device"] and r["commit"] and r["date"] for r in records)
    returned = {p.name: p.stat().st_size for p in out.iterdir()}
    assert set(returned) == {
        "results.jsonl",
        "log.txt",
        "classifier-1-of-1.safetensors",
        "teacher-1-of-1.safetensors",
        "student-operator-1-of-1.safetensors",
        "student-knowledge-distillation-1-of-1.safetensors",
        "student-operator-finished-1-of-1.safetensors",
        "student-knowledge-distillation-finished-1-of-1.safetensors",
        "real-images.npz",
        "teacher.png",
        "student.png",
    }
    assert max(returned.values()) < 16_000_000
    # a table of everything is the last that is printed
    for record in records:
        assert record["part"] in done.stdout.split("| part |")[1]


def test_the_recipe_runs_at_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_light(monkeypatch)
    data = images.as_npz(images.made_up(tmp_path / "shards", 40), tmp_path / "images.npz")
    steps = ("teacher.steps=2", "train.steps=2")
    steps += ("teacher.compile=false", "collect.compile=false", "train.compile=false")
    small = ("evaluate.features=[thumbnail]", "evaluate.pictures=4", "evaluate.reference_steps=4")
    small += ("evaluate.timing_rounds=1", "finish.steps=2", "finish.fake_first=0")
    small += ("finish.watch_samples=16", "finish.checkpoint_every=2")
    small += ("finish.watch_features=thumbnail",)
    source = ("data.source=npz", f"data.path={data}")
    run = tmp_path / "run"
    assert main(["run", "cifar10-small", *source, *TOY, *steps, *small, "--out", str(run)]) == 0
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    assert metrics["parameters"]["student"] > metrics["parameters"]["teacher"]


def test_the_recipe_fits_a_visit() -> None:
    recipe = load_recipe("cifar10-small")
    assert recipe.teacher.network is not None
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        network = build_unet((3, 32, 32), num_classes=10, **recipe.teacher.network.model_dump())
        labels = torch.zeros(1, dtype=torch.int64)
        network(torch.zeros(1, 3, 32, 32), torch.zeros(1), class_labels=labels)
    parameters = sum(p.numel() for p in network.parameters())
    assert 5e6 <= parameters <= 15e6
    assert 2 * parameters < weights.LIMIT  # in half precision, one file
    # what the recipe says of itself
    assert round(parameters / 1e6, 1) == 7.0
    assert round(counted.get_total_flops() / 1e9, 1) == 3.2


# ---- time ----------------------------------------------------------------------------------------


def test_what_a_part_leaves_of_its_time_goes_to_those_after_it() -> None:
    shares = {name: visit.share(name) for name in ("ceilings", "speed", "teacher")}
    every = sum(shares.values())
    parts = list(shares)
    assert visit.box("teacher", ["teacher", "speed", "ceilings"], 540) == pytest.approx(
        540 * shares["teacher"] / every
    )
    assert visit.box("ceilings", parts, 540) == visit.LEAST
    # the first took nothing: the others have all of it
    rest = shares["speed"] + shares["teacher"]
    assert visit.box("speed", parts[1:], 540) == pytest.approx(540 * shares["speed"] / rest)
    assert visit.box("teacher", parts[2:], 100) == 100
    assert visit.box("teacher", parts[2:], 10) == 10


def test_the_clock_starts_after_the_steps_that_compile() -> None:
    now = 0.0
    clock = training.Clock(10.0, 2, now=lambda: now)
    assert clock.at(0) == 0
    now = 60.0  # compiling
    assert clock.at(1) == 0
    now = 100.0
    assert clock.at(2) == 0
    now = 105.0
    assert clock.at(52) == pytest.approx(0.5)
    assert clock.rate == pytest.approx(10)  # 50 steps in 5 seconds
    now = 110.0
    assert clock.at(102) == 1


def test_the_clock_ends_in_any_case() -> None:
    now = 0.0
    clock = training.Clock(1000.0, 1, latest=50.0, now=lambda: now)
    assert clock.at(0) == 0
    now = 51.0
    assert clock.at(0) == 1  # still compiling


def test_the_rate_falls_with_the_time_and_one_stop_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", asked.append)
    now = 0.0
    clock = training.Clock(8.0, 0, now=lambda: now)
    rate = training.TimedRate(clock, 0.2, warmup_steps=2)
    assert rate(0) == pytest.approx(0.1)  # half of the warm-up
    now = 2.0
    assert rate(5) == pytest.approx(0.2 * (1 + math.sqrt(0.5)) / 2)
    now = 4.0
    assert rate(9) == pytest.approx(0.1)
    now = 8.5
    assert rate(20) == pytest.approx(0, abs=1e-12)
    assert rate(21) == pytest.approx(0, abs=1e-12)
    assert asked == [signal.SIGTERM]


def test_a_part_and_what_it_started_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "GRACE", 0.3)
    stubborn = (
        "import os, signal, subprocess, sys, time;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    visit._end(process)
    assert process.poll() == -signal.SIGKILL
    process.stdout.close()
    deadline = time.monotonic() + 10
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(child)


def _is_running(process: int) -> bool:
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return text.rsplit(")", 1)[1].split()[0] != "Z"  # a zombie waits for its parent only


# ---- results -------------------------------------------------------------------------------------


def test_a_failed_piece_is_recorded_and_the_next_one_follows(work: Work) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory\nand more")

    work.section("first", fail)
    work.section("second", lambda: work.record("time", "batch 1", 2.5, "ms"))
    first, second = results.read(work.out)
    assert (first["why"], first["reason"]) == ("failed", "RuntimeError: out of memory")
    assert (second["value"], second["commit"], second["part"]) == (2.5, "abc", "speed")
    table = results.table([first, second])
    assert "failed: RuntimeError: out of memory" in table
    assert "| speed | time | batch 1 | 2.5 ms |" in table


def test_a_piece_for_which_there_is_no_time_is_not_begun(work: Work) -> None:
    late = Work.from_json(json.dumps({**json.loads(work.to_json()), "toy": False}))
    assert late == Work(**{**vars(work), "toy": False})
    late.section("long", lambda: pytest.fail("begun"), seconds=1.0)
    (record,) = results.read(work.out)
    assert (record["figure"], record["value"], record["why"]) == ("long", None, "not run")


def test_only_the_pieces_that_are_named_are_done(work: Work) -> None:
    some = dataclasses.replace(work, only=("compiled", "authors"))
    assert Work.from_json(some.to_json()) == some
    some.section("lift", lambda: pytest.fail("begun"))
    some.section("forward, compiled, batch 1", lambda: some.record("time", "batch 1", 2.5, "ms"))
    assert [r["setting"] for r in results.read(some.out)] == ["batch 1"]


def test_half_a_line_of_a_killed_process_is_passed_over(tmp_path: Path) -> None:
    results.append(tmp_path, {"figure": "a"})
    with (tmp_path / results.FILE).open("a") as file:
        file.write('{"figure": "b", "val')
    assert results.read(tmp_path) == [{"figure": "a"}]


# ---- weights -------------------------------------------------------------------------------------


def test_weights_come_back_from_small_files_in_half_precision(tmp_path: Path) -> None:
    state = {
        "a": torch.randn(30, 20),
        "b": torch.randn(40, 20).to(memory_format=torch.contiguous_format),
        "steps": torch.tensor(7),
    }
    paths = weights.save(state, tmp_path, "teacher", {"images": 5}, limit=2000)
    assert [p.name for p in paths] == [f"teacher-{i}-of-2.safetensors" for i in (1, 2)]
    with safe_open(paths[0], "pt") as file:
        assert file.get_tensor("a").dtype == torch.float16
    found = weights.load([tmp_path / "nothing", tmp_path], "teacher")
    assert found is not None
    loaded, about = found
    assert about == {"images": 5}
    assert torch.equal(loaded["a"], state["a"].half().float())
    assert torch.equal(loaded["b"], state["b"].half().float())
    assert loaded["steps"] == 7
    # written again in one file: those of before are gone
    weights.save(state, tmp_path, "teacher", {})
    assert [p.name for p in tmp_path.iterdir()] == ["teacher-1-of-1.safetensors"]
    assert weights.load([tmp_path], "student") is None


def test_weights_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    state = {"a": torch.randn(30, 20), "b": torch.randn(40, 20)}
    first, second = weights.save(state, tmp_path, "teacher", {}, limit=2000)
    kept = second.read_bytes()
    second.write_bytes(kept[:-10])
    with pytest.raises(InputError, match="cannot be read"):
        weights.load([tmp_path], "teacher")
    second.unlink()
    with pytest.raises(InputError, match="1 of the 2 files"):
        weights.load([tmp_path], "teacher")


def test_numbers_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="half precision cannot hold"):
        weights.save({"a": torch.tensor([7e4])}, tmp_path, "teacher", {})
    assert not list(tmp_path.iterdir())


# ---- data ----------------------------------------------------------------------------------------


def _shard(path: Path, pixels: np.ndarray, labels: list[int], image: str, label: str) -> None:
    cells = []
    for row in pixels:
        file = io.BytesIO()
        Image.fromarray(row).save(file, "png")
        cells.append({"bytes": file.getvalue(), "path": None})
    parquet.write_table(pa.table({image: cells, label: labels}), path)


def test_parquet_shards_become_the_arrays_they_hold(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    (tmp_path / "in").mkdir()
    _shard(tmp_path / "in" / "train-1.parquet", pixels[4:], [3, 9], "img", "label")
    _shard(tmp_path / "in" / "train-0.parquet", pixels[:4], [5, 6, 7, 8], "img", "label")
    path = images.as_npz(tmp_path / "in", tmp_path / "all.npz")
    with np.load(path) as found:
        assert np.array_equal(found["images"], pixels)
        assert found["labels"].tolist() == [5, 6, 7, 8, 3, 9]
    assert images.as_npz(path, tmp_path / "other.npz") == path


def test_data_that_are_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no parquet files"):
        images.as_npz(tmp_path, tmp_path / "all.npz")
    parquet.write_table(pa.table({"words": ["a"]}), tmp_path / "words.parquet")
    with pytest.raises(InputError, match="has the columns words"):
        images.as_npz(tmp_path, tmp_path / "all.npz")
    (tmp_path / "words.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cannot be read"):
        images.as_npz(tmp_path, tmp_path / "all.npz")
    assert not (tmp_path / "all.npz").exists()


def test_a_view_of_trajectories_has_the_states_of_its_times() -> None:
    class Manifest:
        times = (0.5625, 0.25, 0.0625, 0.0)

    class Store:
        manifest, slots = Manifest(), [0, 1, 2, 3]

    store: Any = Store()
    assert trajectories.at_times(store, [0.25 + 1e-9, 0.0]).slots == [1, 3]
    assert store.slots == [0, 1, 2, 3]


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--parts", "speed,lift"], "no part 'lift'; known are ceilings, speed"),
        (["--parts", "teacher,speed"], "the parts teacher need images: give --data"),
        (["--minutes", "0", "--rehearse"], "expected minutes above 0"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        visit.main(arguments)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_parts_are_done_in_their_order_whatever_was_typed() -> None:
    assert visit.parser().parse_args(["--parts", "student,teacher"]).parts == ["teacher", "student"]
