"""The finish of a run: its stage, what is kept of it, what is sampled and reported after it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.checksums import contents

from dsno.cli import main
from dsno.recipes import load_recipe
from dsno.runs.locate import saved_recipe
from dsno.support.errors import InputError
from dsno.training.loggers import Log

RECIPE = [
    "teacher.network.channels=[8]",
    "teacher.steps=2",
    "teacher.batch_size=8",
    "collect.count=32",
    "collect.shard_size=16",
    "collect.steps=4",
    "train.steps=2",
    "train.batch_size=8",
    "finish.steps=4",
    "finish.batch_size=8",
    "finish.cpu_replicas=1",
    "finish.fake_first=1",
    "finish.anchor=0.5",
    "finish.recall_drop=1",
    "finish.checkpoint_every=2",
    "finish.log_every=1",
    "finish.watch_samples=16",
    "finish.watch_features=pixels",
    "evaluate.samples=24",
    "evaluate.features=[pixels]",
    "evaluate.curves=[]",
    "evaluate.baseline_steps=1",
    "evaluate.reference_steps=2",
    "evaluate.pictures=2",
    "evaluate.dial=[2]",
]
WEIGHTS = "model/diffusion_pytorch_model.safetensors"


def run(command: str, out: Path, *more: str) -> int:
    return main([command, "digits", *RECIPE, *more, "--out", str(out)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a finished student, evaluated."""
    out = tmp_path_factory.mktemp("finish") / "run"
    for command in ("teacher", "collect", "train", "finish", "evaluate"):
        assert run(command, out) == 0
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def test_the_student_before_stays_and_the_finished_one_differs(made: Path) -> None:
    before, after = weights(made / "student"), weights(made / "finished")
    assert before.keys() == after.keys()
    assert not (made / "finished" / "checkpoints").exists()
    history = json.loads((made / "finished" / "history.json").read_text())
    looks = history["finish"]["looks"]
    assert [look["step"] for look in looks] == [0, 2, 4]
    nearest = min(looks, key=lambda look: look["distance"])
    assert history["finish"]["kept"] == nearest["step"]
    # the student learns from the second step on: its matching and its anchor are recorded
    assert [len(row.get("per_time", [])) for row in history["history"]] == [0, 3, 3, 3]


def test_both_are_measured_and_the_finished_one_is_the_student(made: Path) -> None:
    metrics = json.loads((made / "report" / "metrics.json").read_text())
    rows = {(row["name"], row["nfe"]): row for row in metrics["samplers"]}
    assert {("dsno", 1), ("dsno-unfinished", 1), ("dsno", 2)} <= rows.keys()
    assert metrics["verdict"]["student"] == rows["dsno", 1]["frechet_distance"]["pixels"]
    assert metrics["finish"]["samples"] == 16
    assert set(metrics["durations"]) == {"teacher", "collect", "train", "finish"}


def test_a_run_is_sampled_by_its_finished_student(made: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.npz" for name in ("run", "finished", "student")]
    for target, file in zip((made, made / "finished", made / "student"), files, strict=True):
        assert main(["sample", str(target), "--num", "2", "--out", str(file), "--raw"]) == 0
    of_run, of_finished, of_student = (file.read_bytes() for file in files)
    assert of_run == of_finished
    kept = json.loads((made / "finished" / "history.json").read_text())["finish"]["kept"]
    assert (of_run == of_student) == (kept == 0)
    assert main(["sample", str(made), "--num", "2", "--steps", "2", "--out", str(files[0])]) == 0


def test_an_interrupted_finish_ends_with_the_same_bytes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "run"))
    again, pictures = "finish.learning_rate=2e-4", []

    def log_images(_: Log, images: torch.Tensor, step: int) -> None:
        pictures.append((step, tuple(images.shape)))

    monkeypatch.setattr(Log, "images", log_images)
    assert run("finish", copy, again, "finish.log_images_every=2", "--yes") == 0
    assert pictures == [(2, (16, 1, 8, 8)), (4, (16, 1, 8, 8))]
    whole = weights(copy / "finished")
    other = Path(shutil.copytree(made, tmp_path / "other"))

    from dsno.training.matching import MatchingObjective

    forward, calls = MatchingObjective.forward, []

    def failing(self: MatchingObjective, batch: dict[str, torch.Tensor]) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(MatchingObjective, "forward", failing)
    assert run("finish", other, again, "--yes") != 0
    assert run("finish", other, again, "--yes") == 0
    found = weights(other / "finished")
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


def test_a_recipe_without_a_finish_leaves_it_out(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "run"))
    without = [item for item in RECIPE if not item.startswith("finish.")]
    before = contents(copy / "student")
    assert main(["finish", "digits", *without, "finish=null", "--out", str(copy)]) == 2
    assert "The recipe has no `finish`; add it" in capsys.readouterr().err
    assert main(["evaluate", "digits", *without, "finish=null", "--out", str(copy), "--yes"]) == 0
    metrics = json.loads((copy / "report" / "metrics.json").read_text())
    assert "dsno-unfinished" not in {row["name"] for row in metrics["samplers"]}
    assert contents(copy / "student") == before
    assert saved_recipe(copy).finish is None


def test_other_measures_leave_the_finish_as_it_is(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "run"))
    changed = ("evaluate.features=[thumbnail]", "evaluate.samples=30", "evaluate.classifier_seed=3")
    assert run("finish", copy, *changed) == 0
    assert "finish: finished already" in capsys.readouterr().err
    assert run("finish", copy, "finish.watch_features=thumbnail") == 2
    assert "finish.watch_features pixels -> thumbnail" in capsys.readouterr().err


def test_the_finish_of_an_earlier_student_is_not_sampled(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "run"))
    assert run("train", copy, "train.steps=3", "--yes") == 0
    files = [tmp_path / f"{name}.npz" for name in ("run", "student")]
    for target, file in zip((copy, copy / "student"), files, strict=True):
        assert "has no finish yet" not in capsys.readouterr().err
        assert main(["sample", str(target), "--num", "2", "--out", str(file), "--raw"]) == 0
        if target == copy:
            said = " ".join(capsys.readouterr().err.split())
            assert f"The student in {copy / 'student'} has no finish yet" in said
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["finish.fake_first=4"], "are over before the student's first step"),
        (["finish.fake_steps=5"], "first step, which is step 5 with"),
        (["finish.watch_features=torchscript"], "`finish.watch_torchscript`, the file of its"),
        (["finish.times=[0.5, 0.2]"], "`finish.times` needs its smaller end first"),
        (["finish.compile=reduce-overhead"], "set it to true"),
    ],
)
def test_what_a_finish_cannot_do_is_said(overrides: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_recipe("digits", [*RECIPE, *overrides])


@pytest.mark.parametrize(("given", "expected"), [("null", 5), ("6e-4", 2)])
def test_the_second_networks_rate_is_five_times_the_students_or_as_given(
    given: str, expected: float
) -> None:
    keys = [*RECIPE, "finish.learning_rate=3e-4", f"finish.fake_learning_rate={given}"]
    finish = load_recipe("digits", keys).finish
    assert finish is not None
    assert finish.fake_rate == pytest.approx(expected)


def test_an_exported_model_has_a_card_with_what_was_measured(made: Path, tmp_path: Path) -> None:
    metrics = json.loads((made / "report" / "metrics.json").read_text())
    assert list(metrics["weights"]) == ["student", "finished"]
    assert metrics["sampling_cost"] == pytest.approx(1, abs=0.1)  # of a readout, one evaluation
    command = ["export", str(made), "--license", "mit", "--out", str(tmp_path / "model")]
    assert main(command) == 0
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    (row,) = (row for row in metrics["samplers"] if (row["name"], row["nfe"]) == ("dsno", 1))
    line = next(line for line in card.splitlines() if line.startswith("| **This model**"))
    assert float(line.split("**")[5].split()[0]) == pytest.approx(
        row["frechet_distance"]["pixels"], rel=5e-3
    )
    for said in (
        "**Data**: Optical Recognition of Handwritten Digits",
        "This model before its finish | 1 |",
        "This model, then its teacher",
        "yin2024",
    ):
        assert said in card
    assert "license: mit" in card
    assert "steps: 4" in card
    assert str(made) not in card
    with Image.open(tmp_path / "model" / "samples.png") as picture:
        assert picture.size == (2 * 48 + 2, 2 * 48 + 2)  # both pictures, below the teacher's
