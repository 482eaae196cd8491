"""The main job end to end, on a recipe small enough for a test."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tests.checksums import contents

from dsno.cli import main
from dsno.evaluation.features.classifier_cache import classifier_of
from dsno.pipeline import DSNOPipeline
from dsno.recipes import load_recipe
from dsno.runs.stages import WORK, Task
from dsno.trajectories.manifest import load_manifest

# Whatever the shipped recipe says of them, the tests below rely on these.
FIXED = [
    "teacher.conditional=false",
    "teacher.network.time_scale_shift=true",
    "collect.slices=4",
    "collect.solver=dpm++2m",
    "student.slices=4",
    "student.modes=2",
]
DIGITS = [
    *FIXED,
    "teacher.network.channels=[8]",
    "teacher.steps=30",
    "teacher.batch_size=16",
    "collect.count=64",
    "collect.shard_size=16",
    "train.steps=30",
    "finish=null",
    "train.batch_size=8",
    "evaluate.samples=100",
    "evaluate.pictures=16",
    "evaluate.curves=[{solver: ddim, steps: [1, 2]}]",
    "evaluate.baseline_steps=4",
    "evaluate.reference_steps=8",
    "evaluate.timing_rounds=1",
]
TINY = [
    *FIXED,
    "teacher.network.channels=[8]",
    "teacher.steps=2",
    "teacher.batch_size=8",
    "collect.count=24",
    "collect.shard_size=16",
    "collect.steps=4",
    "train.steps=2",
    "finish=null",
    "train.batch_size=8",
    "evaluate.samples=16",
    "evaluate.features=[pixels]",
    "evaluate.pictures=4",
    "evaluate.curves=[]",
    "evaluate.dial=null",
    "evaluate.baseline_steps=2",
    "evaluate.reference_steps=2",
    "evaluate.timing_rounds=1",
]
STAGES = ("teacher", "collect", "train", "evaluate", "report")


def run(command: str, out: Path, *overrides: str) -> int:
    return main([command, "digits", *TINY, *overrides, "--out", str(out)])


def hasten_the_classifier(patch: pytest.MonkeyPatch, epochs: int) -> None:
    """Train the classifier of the features for a few epochs only."""
    hasty = functools.partial(classifier_of, epochs=epochs)
    patch.setattr("dsno.evaluation.features.table.classifier_of", hasty)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every kind of distance."""
    out = tmp_path_factory.mktemp("digits") / "run"
    with pytest.MonkeyPatch.context() as patch:
        hasten_the_classifier(patch, epochs=8)
        assert main(["run", "digits", *DIGITS, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run as small as can be."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    assert run("run", out) == 0
    return out


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A run of one's own."""
    return Path(shutil.copytree(tiny, tmp_path / "run"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report is an empty page: drawing takes the longest in a tiny run."""

    def write_report(folder: Path, **_: str) -> Path:
        (folder / "report.html").write_text("<html>")
        return folder / "report.html"

    monkeypatch.setattr("dsno.evaluation.report.write_report", write_report)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("is_early", [True, False], ids=["as it begins", "as it ends"])
def test_a_folder_that_is_deleted_while_a_stage_is_at_work_is_said(
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    is_early: bool,
) -> None:
    records = json.loads((copy / "stages.json").read_text())
    records[name]["finished"] = False
    (copy / "stages.json").write_text(json.dumps(records))
    work = WORK[name]

    def deleting(task: Task) -> str:
        outcome = "" if is_early else work(task)
        shutil.rmtree(copy)
        return outcome or work(task)

    monkeypatch.setitem(WORK, name, deleting)
    assert run("run", copy) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"dsno: What {copy} recorded of `{name}` is gone; was the folder")


# ----------------------------------------------------------------------------- the outputs


def test_a_finished_run_is_printed_as_json(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = json.loads((tiny / "report" / "metrics.json").read_text())
    where = ["digits", *TINY, "--out", str(tiny)]
    capsys.readouterr()
    assert main(["evaluate", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == metrics
    assert main(["run", *where, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == metrics
    assert found["folder"] == str(tiny)
    assert [stage["stage"] for stage in found["stages"]] == list(STAGES)
    assert all(stage["finished"] and Path(stage["result"]).exists() for stage in found["stages"])
    assert main(["report", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found["stages"][-1]


def test_a_run_leaves_the_documented_layout(digits: Path) -> None:
    assert sorted(path.name for path in digits.iterdir()) == [
        ".lock",
        "checkpoints",
        "evaluation",
        "logs",
        "recipe.yaml",
        "report",
        "stages.json",
        "student",
        "teacher",
        "trajectories",
    ]
    assert {p.name for p in (digits / "teacher").iterdir()} == {
        "config.json",
        "denoiser.json",
        "diffusion_pytorch_model.safetensors",
        "history.json",
    }
    shards = [f"shard-{i:05d}.safetensors" for i in range(4)]
    assert {p.name for p in (digits / "trajectories").iterdir()} == {"manifest.json", *shards}
    assert set(contents(digits / "student")) == {
        "history.json",
        "model/config.json",
        "model/diffusion_pytorch_model.safetensors",
        "model_index.json",
    }
    report = {"report.html", "metrics.json", "arrays.safetensors", "figures"}
    assert {p.name for p in (digits / "report").iterdir()} == report
    assert load_recipe(str(digits / "recipe.yaml")) == load_recipe("digits", DIGITS)


def test_the_metrics_have_the_documented_keys(digits: Path) -> None:
    metrics = json.loads((digits / "report" / "metrics.json").read_text())
    assert metrics["samples"] == 100
    rows = metrics["samplers"]
    assert [(row["name"], row["nfe"]) for row in rows] == [
        ("dsno", 1),
        ("dsno", 2),
        ("dsno", 3),
        ("ddim", 1),
        ("ddim", 2),
        ("ddim", 4),
    ]
    for row in rows:
        assert set(row["frechet_distance"]) == {"pixels", "classifier"}
        assert min(row["frechet_distance"].values()) > 0
        assert row["seconds_per_sample"] > 0
        assert row["paired_l1"] > 0
    assert metrics["features"]["classifier"]["held_out_accuracy"] >= 0.85
    assert metrics["reference"]["count"] == 1797
    assert metrics["verdict"]["ddim_nfe"] == 4
    assert metrics["trajectories"]["count"] == 64
    assert set(metrics["durations"]) == {"teacher", "collect", "train"}
    assert metrics["recipe"] == load_recipe("digits", DIGITS).model_dump(mode="json")
    assert metrics["student_history"][-1]["step"] == 30


def test_the_report_shows_them(digits: Path) -> None:
    page = (digits / "report" / "report.html").read_text()
    assert "<html" in page
    assert "The one-step student" in page


def test_the_student_starts_at_the_teacher_and_learns(digits: Path) -> None:
    history = json.loads((digits / "student" / "history.json").read_text())["history"]
    assert len(history[-1]["per_time"]) == 4
    teacher = load_file(digits / "teacher" / "diffusion_pytorch_model.safetensors")
    student = load_file(digits / "student" / "model" / "diffusion_pytorch_model.safetensors")
    prefix = "operator.lifted.network."
    assert {prefix + name for name in teacher} <= student.keys()
    assert any(not teacher[name].equal(student[prefix + name]) for name in teacher)


# ------------------------------------------------------------------------------- skipping


def test_a_finished_run_is_skipped_and_says_so(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(digits)
    assert main(["run", "digits", *DIGITS, "--out", str(digits)]) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 5
    for stage, line in zip(STAGES, lines, strict=True):
        assert line.startswith(f"{stage}: finished already in {digits}")
    assert out.startswith("sampler")
    assert out.rstrip().endswith(f"Report: {digits / 'report' / 'report.html'}")
    assert contents(digits) == before


@pytest.mark.parametrize(
    ("override", "redone", "says"),
    [
        ("seed=1", STAGES, "seed 0 -> 1"),
        ("teacher.steps=3", STAGES, "teacher.steps 2 -> 3"),
        ("teacher.network.channels=[16]", STAGES, "teacher.network.channels [8] -> [16]"),
        ("collect.solver=ddim", STAGES[1:], "collect.solver dpm++2m -> ddim"),
        ("train.steps=3", STAGES[2:], "train.steps 2 -> 3"),
        ("student.modes=1", STAGES[2:], "student.modes 2 -> 1"),
        ("evaluate.samples=17", STAGES[3:], "evaluate.samples 16 -> 17"),
        ("title=Other", STAGES[4:], "title Handwritten digits, 8x8 -> Other"),
        ("teacher.checkpoint_every=7", (), ""),
    ],
)
def test_a_changed_key_redoes_exactly_what_depends_on_it(
    copy: Path,
    undrawn: None,
    capsys: pytest.CaptureFixture[str],
    override: str,
    redone: tuple[str, ...],
    says: str,
) -> None:
    assert run("run", copy, override, "--yes") == 0
    lines = capsys.readouterr().err.splitlines()
    skipped = {line.partition(":")[0] for line in lines if "finished already" in line}
    changed = {line.partition(":")[0]: line for line in lines if "the recipe changed" in line}
    assert skipped == set(STAGES) - set(redone)
    assert set(changed) == set(redone)
    if redone:
        assert f"({says})" in changed[redone[0]]
    assert yaml.safe_load((copy / "recipe.yaml").read_text()) == load_recipe(
        "digits", [*TINY, override]
    ).model_dump(mode="json")
    assert run("run", copy, override) == 0
    assert capsys.readouterr().err.count("finished already") == 5


def test_the_same_recipe_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    for stage in ("teacher", "collect", "train"):
        assert run(stage, tmp_path / "run") == 0
    for name in ("teacher", "trajectories", "student"):
        assert contents(tmp_path / "run" / name) == contents(tiny / name)


@pytest.mark.parametrize(
    ("stage", "damaged"),
    [
        ("teacher", "teacher/diffusion_pytorch_model.safetensors"),
        ("teacher", "teacher/config.json"),
        ("collect", "trajectories/shard-00001.safetensors"),
        ("collect", "trajectories/manifest.json"),
        ("train", "student/model/diffusion_pytorch_model.safetensors"),
        ("train", "student/model_index.json"),
    ],
)
@pytest.mark.parametrize("how", ["edited", "deleted"])
def test_a_finished_stage_whose_files_were_touched_is_made_again(
    copy: Path, tiny: Path, capsys: pytest.CaptureFixture[str], stage: str, damaged: str, how: str
) -> None:
    path = copy / damaged
    content = path.read_bytes()
    path.unlink()
    if how == "edited" and path.name != "manifest.json":
        path.write_bytes(content[:-3] + b"xyz")
    assert run(stage, copy) == 0
    assert f"{stage}: something in {copy}" in capsys.readouterr().err
    assert path.read_bytes() == content
    assert run(stage, copy) == 0
    assert "finished already" in capsys.readouterr().err


def test_deleting_the_record_of_stages_starts_again(copy: Path, tiny: Path) -> None:
    (copy / "stages.json").unlink()
    assert run("teacher", copy) == 0
    assert contents(copy / "teacher") == contents(tiny / "teacher")


def test_a_report_is_made_again_when_its_metrics_are(
    copy: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "report" / "metrics.json").write_text("{}")
    assert run("report", copy) == 0
    err = capsys.readouterr().err
    assert "evaluate: something in" in err
    assert "report: something in" in err
    assert json.loads((copy / "report" / "metrics.json").read_text())["samples"] == 16


# ----------------------------------------------------------------------------- the stages


def test_stages_alone_make_a_run_in_order_and_refuse_another(
    tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    needs = {"collect": "teacher", "train": "teacher", "report": "teacher", "evaluate": "teacher"}
    for command, missing in needs.items():
        assert run(command, out) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"dsno: The {missing} stage is not finished in {out}" in err
        assert f"run `dsno {missing}` or `dsno run` first." in err
    assert not out.exists()
    assert run("teacher", out) == 0
    assert run("train", out) == 2
    assert "The collect stage is not finished" in capsys.readouterr().err
    assert run("collect", out) == 0
    assert main(["sample", "digits", *TINY, "--out", str(out)]) == 2
    assert "run `dsno train`" in capsys.readouterr().err
    assert run("train", out) == 0
    assert run("evaluate", out) == 0
    assert capsys.readouterr().out.startswith("sampler")
    assert not (out / "report" / "report.html").exists()
    assert run("report", out) == 0
    assert (out / "report" / "report.html").is_file()


def test_a_stage_of_another_recipe_is_refused_and_nothing_is_changed(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copy)
    assert run("train", copy, "teacher.steps=3", "collect.count=25") == 2
    err = capsys.readouterr().err
    assert "dsno: The teacher stage" in err
    assert "(teacher.steps 2 -> 3)" in err
    assert "run `dsno teacher` or `dsno run` first." in err
    assert contents(copy) == before


@pytest.mark.parametrize(
    "override",
    [
        "teacher.network.channels=[10]",
        "teacher.network.channels=[8, 8, 8, 8, 8]",
        "teacher.network.attention=[true, true]",
        "teacher.schedule={name: edm}",
        "teacher.schedule={name: cosin}",
        "teacher.schedule.log_snr_mix=3",
        "teacher.prediction_type=flow",
        "student={sites: [nowhere]}",
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_anything_is_changed(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    before = contents(copy)
    assert run("run", copy, override) == 2
    assert contents(copy) == before
    assert run("run", tmp_path / "new", override) == 2
    assert not (tmp_path / "new").exists()
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if "finished already" not in line and not line.startswith("data: ")
    ]
    assert len(lines) == 2
    assert all(line.startswith("dsno: ") for line in lines)


# -------------------------------------------------------------------- samples, evaluation


def test_a_recipe_is_sampled_into_its_run(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "digits", *TINY, "--out", str(copy), "--num", "5"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"Wrote 5 samples to {copy / 'samples' / name}" for name in ("samples.png", "samples.npz")
    ]
    with np.load(copy / "samples" / "samples.npz") as arrays:
        assert list(arrays) == ["arr_0"]
        assert (arrays["arr_0"].dtype, arrays["arr_0"].shape) == (np.uint8, (5, 8, 8, 1))
    with Image.open(copy / "samples" / "samples.png") as image:
        assert image.size == (3 * 48 + 2 * 2, 2 * 48 + 2)
    assert run("run", copy) == 0
    assert capsys.readouterr().err.count("finished already") == 5


def samples(target: Path, out: Path, *options: str) -> dict[str, np.ndarray]:
    assert main(["sample", str(target), "--out", str(out), *options]) == 0
    with np.load(out) as arrays:
        return dict(arrays)


def test_a_sample_depends_on_the_seed_and_its_number_alone(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "a.npz"
    whole = samples(tiny / "student", out, "--num", "20", "--raw")["states"]
    part = samples(tiny, out, "--num", "7", "--batch-size", "3", "--raw")["states"]  # the run's
    assert np.allclose(part, whole[:7], atol=1e-5)
    other = samples(tiny, out, "--num", "7", "--seed", "1", "--raw")["states"]
    assert not np.allclose(other, whole[:7], atol=0.1)
    pipeline = DSNOPipeline.from_pretrained(tiny / "student")
    assert pipeline(batch_size=2, output_type="np").images.shape == (2, 8, 8, 1)


def test_a_run_and_what_it_exports_sample_in_more_steps(
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = ("--num", "3", "--raw", "--steps", "3")
    of_run = samples(copy, tmp_path / "a.npz", *few)["states"]
    assert "each sample took 3 network evaluations" in capsys.readouterr().err
    one = samples(copy, tmp_path / "a.npz", *few[:3])["states"]
    assert not np.allclose(of_run, one, atol=1e-3)
    assert main(["export", str(copy), "--out", str(tmp_path / "both")]) == 0
    assert np.array_equal(samples(tmp_path / "both", tmp_path / "b.npz", *few)["states"], of_run)
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiled.append(call) or call)
    fast = samples(copy, tmp_path / "a.npz", *few, "--precision", "bf16", "--compile")["states"]
    assert len(compiled) == 2  # both networks
    assert 0 < np.abs(fast - of_run).max() < 0.1
    weights = list((tmp_path / "both").rglob("*.safetensors"))
    assert sorted(path.parent.name for path in weights) == ["model", "teacher"]
    shutil.rmtree(copy / "teacher")
    capsys.readouterr()
    assert main(["sample", str(copy), "--steps", "2", "--out", str(tmp_path / "c.npz")]) == 2
    assert "was saved without its teacher" in capsys.readouterr().err
    assert not (tmp_path / "c.npz").exists()


def test_a_model_folder_is_evaluated(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten_the_classifier(monkeypatch, epochs=2)
    assert main(["evaluate", str(tiny / "student"), "--samples", "30"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["frechet_distance"]) == {"pixels", "classifier"}
    assert min(result["frechet_distance"].values()) > 0
    assert result["samples"] == 30
    assert result["nfe"] == 1
    assert result["reference"]["count"] == 1797


def test_a_conditional_run_samples_the_classes_asked_for(
    tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder, out = tmp_path / "run", tmp_path / "a.npz"
    assert run("run", run_folder, "teacher.conditional=true") == 0
    assert load_manifest(run_folder / "trajectories").num_classes == 10
    drawn = samples(run_folder, out, "--num", "30", "--raw")
    assert len(set(drawn["class_labels"].tolist())) > 3
    seven = samples(run_folder, out, "--num", "5", "--label", "7", "--raw")
    assert seven["class_labels"].tolist() == [7] * 5
    turns = samples(run_folder, out, "--num", "5", "--label", "7", "--label", "2", "--raw")
    assert turns["class_labels"].tolist() == [7, 2, 7, 2, 7]
    assert np.allclose(turns["states"][::2], seven["states"][::2], atol=1e-5)
    assert not np.allclose(turns["states"][1], seven["states"][1], atol=1e-4)
    before = contents(tmp_path)
    capsys.readouterr()
    for label in ("10", "-1"):
        assert main(["sample", str(run_folder), "--label", label, "--out", str(out)]) == 2
        err = capsys.readouterr().err
        assert err == f"dsno: Class {label} is out of range: the model knows classes 0 to 9.\n"
    assert contents(tmp_path) == before


# -------------------------------------------------------------------------- as a process


def test_the_command_as_a_process(tiny: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    command = [Path(sys.executable).with_name("dsno"), "run", "digits", *TINY]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "digits"  # the default place
    assert (out / "report" / "report.html").is_file()
    assert done.stdout.startswith("sampler")
    lines = done.stderr.splitlines()
    said = [line.partition(":")[0] for line in lines]
    trained = [stage for stage in ("teacher", "collect", "train") for _ in range(2)]
    # Before and after; 16 samples in 64 dimensions are too few.
    assert said == ["data", *trained, "evaluate", "Warning", "evaluate", "report"]
    assert lines[1] == "teacher: 2 steps of 8 images."
    assert lines[0].startswith(
        "data: digits: 1,797 images of 8x8 pixels, grey; 10 classes: 0 (178)"
    )
    assert "\x1b" not in done.stderr + done.stdout
    metrics = json.loads((out / "report" / "metrics.json").read_text())
    assert metrics["command"].startswith("dsno run digits ")
    assert "'teacher.network.channels=[8]'" in metrics["command"]
    for name in ("teacher", "trajectories", "student"):
        assert contents(out / name) == contents(tiny / name)
