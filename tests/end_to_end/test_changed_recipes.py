"""A changed recipe: what is made again, what is kept, and what is asked."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.checksums import contents

from dsno.cli import main
from dsno.recipes import load_recipe
from dsno.runs.build import load_start, new_operator
from dsno.runs.run import Run
from dsno.support.errors import InputError
from dsno.support.files import sha256
from dsno.teachers.store import load_teacher
from dsno.trajectories.manifest import load_manifest

RECIPE = [
    "teacher.network.channels=[8]",
    "teacher.steps=2",
    "teacher.batch_size=8",
    "collect.count=48",
    "collect.shard_size=16",
    "collect.batch_size=16",
    "collect.steps=4",
    "collect.slices=4",
    "student.slices=4",
    "student.modes=2",
    "train.steps=4",
    "finish=null",
    "train.batch_size=8",
    "train.decay=constant",
    "train.learning_rate=0.002",
    "train.log_every=2",
    "train.log_with=[]",
]
WEIGHTS = "model/diffusion_pytorch_model.safetensors"


def run(command: str, out: Path, *more: str) -> int:
    return main([command, "digits", *RECIPE, *more, "--out", str(out)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a trained student."""
    out = tmp_path_factory.mktemp("made") / "run"
    for command in ("teacher", "collect", "train"):
        assert run(command, out) == 0
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A run of one's own."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Sit at a terminal and give an answer to every question; the questions are listed."""

    def at_terminal(given: str) -> list[str]:
        asked: list[str] = []

        def reply(prompt: str = "") -> str:
            asked.append(prompt)
            if not given:
                raise EOFError
            return given

        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", reply)
        return asked

    return at_terminal


# ------------------------------------------------------------------------------ the question


@pytest.mark.parametrize(
    ("command", "override", "says"),
    [
        ("teacher", "teacher.steps=3", "teacher: teacher.steps 2 -> 3"),
        ("collect", "collect.solver=ddim", "collect: collect.solver dpm++2m -> ddim"),
        ("collect", "collect.precision=bf16", "collect: collect.precision exact -> bf16"),
        ("train", "train.learning_rate=0.5", "train: train.learning_rate 0.002 -> 0.5"),
        ("run", "student.modes=1", "train: student.modes 2 -> 1"),
    ],
)
def test_off_a_terminal_a_finished_stage_is_kept_without_yes(
    copy: Path, capsys: pytest.CaptureFixture[str], command: str, override: str, says: str
) -> None:
    before = contents(copy)
    assert run(command, copy, override) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"({says})" in err
    assert "give --yes to set the results of" in err
    assert contents(copy) == before


@pytest.mark.parametrize("given", ["n", "", "perhaps"])
def test_the_question_answered_no_leaves_everything_as_it_was(
    copy: Path,
    capsys: pytest.CaptureFixture[str],
    answer: Callable[[str], list[str]],
    given: str,
) -> None:
    before = contents(copy)
    asked = answer(given)
    assert run("train", copy, "train.steps=5") == 1
    assert len(asked) <= 1
    err = capsys.readouterr().err
    assert "Set the results of train aside and make them again? [y/N]" in err + "".join(asked)
    assert "(train: train.steps 4 -> 5)" in err
    assert err.endswith("dsno: Nothing was changed.\n")
    assert contents(copy) == before


def test_everything_is_asked_once_before_the_first_stage(
    copy: Path, answer: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer("y")
    ran = []
    for stage in ("teacher", "collect", "train", "evaluate", "report"):
        monkeypatch.setitem(
            sys.modules["dsno.runs.run"].WORK, stage, lambda _, s=stage: ran.append((s, len(asked)))
        )
    monkeypatch.setattr(Run, "_close", lambda *_, **__: None)
    monkeypatch.setattr(Run, "require", lambda *_: None)
    monkeypatch.setattr(Run, "metrics", lambda _: {})
    monkeypatch.setattr("dsno.evaluation.table.table", lambda _: "")
    assert run("run", copy, "seed=1", "train.steps=5") == 0
    stages = ("teacher", "collect", "train", "evaluate", "report")
    assert ran == [(stage, 1) for stage in stages]


# ------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ("command", "override"),
    [
        ("train", "train.log_every=1"),
        ("train", "train.accumulation=2"),
        ("train", "collect.batch_size=8"),
        ("collect", "collect.batch_size=3"),
        ("collect", "teacher.keep=5"),
    ],
)
def test_a_key_that_changes_no_result_redoes_nothing(
    copy: Path, capsys: pytest.CaptureFixture[str], command: str, override: str
) -> None:
    before = contents(copy)
    assert run(command, copy, override) == 0
    assert f"{command}: finished already in" in capsys.readouterr().err
    after = contents(copy)
    assert {k for k in before | after if before.get(k) != after.get(k)} == {"recipe.yaml"}


def test_a_half_made_collection_goes_on_with_smaller_batches(
    copy: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "trajectories")
    stages = json.loads((copy / "stages.json").read_text())
    (copy / "stages.json").write_text(json.dumps({"teacher": stages["teacher"]}))
    assert run("collect", copy, "--shard-range", "0:2") == 0
    first = copy / "trajectories" / "shard-00000.safetensors"
    stamp = first.stat().st_mtime_ns
    assert run("collect", copy, "collect.batch_size=8") == 0
    assert "the recipe changed" not in capsys.readouterr().err
    assert first.stat().st_mtime_ns == stamp
    for name in ("shard-00000.safetensors", "shard-00001.safetensors"):
        assert sha256(copy / "trajectories" / name) == sha256(made / "trajectories" / name)
    name = "shard-00002.safetensors"
    found, expected = (load_file(run / "trajectories" / name) for run in (copy, made))
    assert torch.equal(found["noise"], expected["noise"])
    assert torch.allclose(found["states"].float(), expected["states"].float(), atol=2e-3)


def test_a_half_made_collection_begins_anew_in_another_precision(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "trajectories")
    stages = json.loads((copy / "stages.json").read_text())
    assert "precision" not in stages["collect"]["inputs"]["collect"]  # as of older versions
    (copy / "stages.json").write_text(json.dumps({"teacher": stages["teacher"]}))
    assert run("collect", copy, "--shard-range", "0:2") == 0
    assert run("collect", copy, "collect.precision=bf16") == 0
    err = capsys.readouterr().err
    assert "collect: the recipe changed (collect.precision exact -> bf16); starting it again" in err
    precisions = [
        load_manifest(copy / name).precision for name in ("trajectories.1", "trajectories")
    ]
    assert precisions == ["exact", "bf16"]


def test_half_made_training_goes_on_when_a_key_of_rounding_changes(
    copy: Path, made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copy / "student")
    shutil.rmtree(copy / "checkpoints" / "student")
    stages = json.loads((copy / "stages.json").read_text())
    stages.pop("train")
    (copy / "stages.json").write_text(json.dumps(stages))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dsno.training.trainer._Training._close_window", stop)
        patch.setattr("dsno.training.checkpoints.Checkpoints.move_newest", stop)
        assert run("train", copy, "train.checkpoint_every=1") == 130
    assert (copy / "student" / "checkpoints" / "step-00000001.pt").is_file()
    assert run("train", copy, "train.accumulation=2") == 0
    err = capsys.readouterr().err
    assert "Resuming from step 1 (" in err
    assert "the recipe changed" not in err
    found, expected = (load_file(r / "student" / WEIGHTS) for r in (copy, made))
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-4)


def test_what_another_recipe_made_is_set_aside_each_time(
    copy: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", copy, "train.learning_rate=0.5", "--yes") == 0
    err = capsys.readouterr().err
    assert f"What was made before is now in {copy / 'student.1'}." in err
    assert f"train: what was made before is kept in {copy / 'student.1'}; delete it once" in err
    second = contents(copy / "student")
    assert run("train", copy, "train.learning_rate=0.25", "-y") == 0
    assert f"{copy / 'student.2'}, {copy / 'student.1'}; delete it once" in capsys.readouterr().err
    aside = contents(copy / "student.1")
    assert {k: v for k, v in aside.items() if "checkpoints" not in k} == contents(made / "student")
    assert {Path(k).suffix for k in aside if "checkpoints" in k} == {".pt", ".sha256"}
    assert second.items() <= contents(copy / "student.2").items()
    assert run("train", copy, "train.learning_rate=0.25") == 0
    assert "finished already" in capsys.readouterr().err


def test_a_set_aside_that_was_killed_loses_nothing(
    copy: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dsno.runs.run.write_stage", killed)  # after the move, before the record
        assert run("train", copy, "train.learning_rate=0.5", "--yes") == 130
    assert not (copy / "student").exists()
    assert run("train", copy, "train.learning_rate=0.5") == 0  # nothing is left to ask about
    assert contents(made / "student").items() <= contents(copy / "student.1").items()
    assert not (copy / "student.2").exists()


def test_a_damaged_student_is_written_again_from_its_last_checkpoint(
    copy: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "student" / WEIGHTS).write_bytes(b"damaged")
    assert run("train", copy) == 0
    err = capsys.readouterr().err
    assert "is missing or damaged; making it again. What is left of it is now in" in err
    assert "Resuming from step 4 (" in err
    assert contents(copy / "student") == contents(made / "student")
    assert (copy / "student.1" / "history.json").is_file()


def test_trajectories_whose_manifest_is_lost_are_set_aside(copy: Path, made: Path) -> None:
    (copy / "trajectories" / "manifest.json").unlink()
    assert run("collect", copy) == 0
    assert contents(copy / "trajectories") == contents(made / "trajectories")
    shards = {k for k in contents(made / "trajectories") if k.startswith("shard")}
    assert set(contents(copy / "trajectories.1")) == shards


def test_a_run_without_its_record_sets_aside_what_it_finds(
    copy: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "stages.json").unlink()
    assert run("teacher", copy) == 0
    assert f"What was made before is now in {copy / 'teacher.1'}" in capsys.readouterr().err
    assert contents(made / "teacher").items() <= contents(copy / "teacher.1").items()


def test_trajectories_elsewhere_of_another_recipe_are_refused_before_anything_changes(
    copy: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "trajectories", tmp_path / "elsewhere")
    before = contents(copy), contents(tmp_path / "elsewhere")
    where = f"collect.destination={tmp_path / 'elsewhere'}"
    assert run("collect", copy, where, "collect.steps=5", "--yes") == 2
    says = "holds trajectories of another recipe (collect.steps 4 -> 5); give another folder"
    assert says in capsys.readouterr().err
    stages = json.loads((copy / "stages.json").read_text())
    manifest = tmp_path / "elsewhere" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(stages["collect"]["fingerprint"], "a" * 16))
    before = contents(copy), contents(tmp_path / "elsewhere")
    assert run("collect", copy, where, "collect.count=40", "collect.dtype=float32", "--yes") == 2
    says = "another recipe (collect.count 48 -> 40; collect.dtype float16 -> float32); give"
    assert says in capsys.readouterr().err  # of which nothing but the manifest is known
    assert (contents(copy), contents(tmp_path / "elsewhere")) == before


def test_a_destination_without_the_trajectories_is_refused_until_they_are_there(
    copy: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copy)
    where = f"collect.destination={tmp_path / 'elsewhere'}"
    assert run("collect", copy, where, "--yes") == 2
    assert "copy them there, or set collect.destination back" in capsys.readouterr().err
    assert contents(copy) == before
    shutil.copytree(made / "trajectories", tmp_path / "elsewhere")
    assert run("collect", copy, where) == 0
    assert "finished already" in capsys.readouterr().err


# -------------------------------------------------------------------------------- --extend


def test_an_extended_training_is_the_longer_one(
    copy: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a constant rate a step does not depend on how many follow."""
    assert run("train", copy, "train.steps=7", "--extend") == 0
    err = capsys.readouterr().err
    assert "train: the recipe changed (train.steps 4 -> 7); going on from its last step." in err
    assert "Resuming from step 4 (" in err
    longer = Path(shutil.copytree(made, tmp_path / "longer"))
    shutil.rmtree(longer / "student")
    shutil.rmtree(longer / "checkpoints")
    assert run("train", longer, "train.steps=7") == 0
    assert contents(copy / "student") == contents(longer / "student")
    assert "extended" not in json.loads((copy / "stages.json").read_text())["train"]
    assert contents(made / "student").items() <= contents(copy / "student.1").items()
    assert run("train", copy, "train.steps=7", "--extend") == 0
    assert "finished already" in capsys.readouterr().err
    (last,) = (copy / "checkpoints" / "student").glob("*.pt")
    assert last.name == "step-00000007.pt"


def teacher_of(out: Path, steps: int, *more: str) -> int:
    """Train a teacher whose learning rates depend on how many steps there are."""
    decay = ("teacher.decay=cosine", "teacher.warmup_steps=0")
    return run("teacher", out, f"teacher.steps={steps}", *decay, *more)


def test_an_extended_decay_is_another_training_and_what_came_of_the_others_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extended, whole, elsewhere = tmp_path / "extended", tmp_path / "whole", tmp_path / "elsewhere"
    four = ("teacher.steps=4", "teacher.decay=cosine", "teacher.warmup_steps=0")
    collected = (*four, f"collect.destination={elsewhere}")
    assert teacher_of(whole, 4) == run("collect", whole, *collected) == 0
    assert teacher_of(extended, 2) == 0
    capsys.readouterr()
    assert teacher_of(extended, 3, "--extend") == teacher_of(extended, 4, "--extend") == 0
    err = capsys.readouterr().err
    assert "its learning rates till now were those of 2 steps" in err
    assert "its learning rates till now were those of 3 steps" in err

    expected = [{"steps": 2, "at": 2}, {"steps": 3, "at": 3}]
    assert json.loads((extended / "stages.json").read_text())["teacher"]["extended"] == expected
    assert json.loads((extended / "teacher" / "history.json").read_text())["extended"] == expected
    assert "extended" not in json.loads((whole / "teacher" / "history.json").read_text())
    weights = "teacher/diffusion_pytorch_model.safetensors"
    assert sha256(extended / weights) != sha256(whole / weights)

    assert teacher_of(extended, 4) == 0
    assert "finished already" in capsys.readouterr().err
    assert run("collect", extended, *collected) == 2
    assert "holds trajectories of another recipe" in capsys.readouterr().err

    # Damaged, it is written again from its last checkpoint; without any it is another training.
    before = contents(extended / "teacher")
    (extended / weights).unlink()
    assert teacher_of(extended, 4) == 0
    assert contents(extended / "teacher") == before
    (extended / weights).unlink()
    for folder in (extended / "checkpoints", *extended.glob("teacher.*")):
        shutil.rmtree(folder)
    capsys.readouterr()
    assert teacher_of(extended, 4) == 0
    assert "the checkpoints that it was extended from are gone; starting it again." in (
        capsys.readouterr().err
    )
    assert contents(extended / "teacher") == contents(whole / "teacher")
    assert run("collect", extended, *collected) == 0


def test_an_extension_goes_on_from_the_newest_checkpoint_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extended from 2 to 6 steps, stopped at 4, then extended to 8."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    assert teacher_of(tmp_path / "run", 2) == 0
    for at in (3, 4):
        with monkeypatch.context() as patch:
            patch.setattr("dsno.training.trainer._Training._save", saving_until(at, stop))
            more = ("--extend", "teacher.checkpoint_every=1")
            assert teacher_of(tmp_path / "run", 6, *more) == 130
    capsys.readouterr()
    assert teacher_of(tmp_path / "run", 8, "--extend") == 0
    assert "Resuming from step 4 (" in capsys.readouterr().err
    record = json.loads((tmp_path / "run" / "stages.json").read_text())["teacher"]
    assert record["extended"] == [{"steps": 2, "at": 2}, {"steps": 6, "at": 4}]


def saving_until(step: int, stop: Callable[[], None]) -> Callable[[Any], None]:
    """`_Training._save` that stops the training once a step's checkpoint is written."""
    save = sys.modules["dsno.training.trainer"]._Training._save

    def saving(training: Any) -> None:
        save(training)
        if training.state.step == step:
            stop()

    return saving


def test_an_extension_that_was_killed_goes_on(
    copy: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    more = ("train.steps=5", "--extend")
    for where in ("dsno.runs.run.write_stage", "dsno.training.trainer._Training._step"):
        with monkeypatch.context() as patch:
            patch.setattr(where, killed)
            assert run("train", copy, *more) == 130
    assert run("train", copy, "train.steps=5") == 0  # begun, so it needs no flag any more
    assert "Resuming from step 4 (" in capsys.readouterr().err
    assert contents(made / "student").items() <= contents(copy / "student.1").items()
    assert not (copy / "student.2").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.learning_rate=0.5", "train.learning_rate 0.002 -> 0.5"),
        ("train.steps=3", "train.steps 4 -> 3"),
        ("student.modes=1", "student.modes 2 -> 1"),
    ],
)
def test_an_extension_is_of_steps_alone(
    copy: Path, capsys: pytest.CaptureFixture[str], override: str, says: str
) -> None:
    before = contents(copy)
    assert run("train", copy, override, "--extend", "--yes") == 2
    err = capsys.readouterr().err
    assert "--extend goes on with more `train.steps` and nothing else changed" in err
    assert says in err
    assert contents(copy) == before


def test_an_extension_without_a_checkpoint_or_a_training_is_refused(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "checkpoints")
    before = contents(copy)
    assert run("train", copy, "train.steps=5", "--extend") == 2
    assert "There is no checkpoint of the train stage" in capsys.readouterr().err
    assert contents(copy) == before
    assert run("teacher", tmp_path / "new", "--extend") == 2
    assert "There is no teacher stage in" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_whole_run_extends_what_there_is(
    copy: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the teacher is trained yet; nothing stops the later stages from being begun."""
    records = json.loads((copy / "stages.json").read_text())
    (copy / "stages.json").write_text(json.dumps({"teacher": records["teacher"]}))
    for name in ("trajectories", "student"):
        shutil.rmtree(copy / name)
    ran: list[str] = []
    for stage in ("evaluate", "report"):
        monkeypatch.setitem(
            sys.modules["dsno.runs.run"].WORK, stage, lambda _, s=stage: ran.append(s)
        )
    monkeypatch.setattr(Run, "_checksums", lambda *_: {})
    monkeypatch.setattr(Run, "metrics", lambda _: {})
    monkeypatch.setattr("dsno.evaluation.table.table", lambda _: "")
    assert run("run", copy, "teacher.steps=3", "--extend") == 0
    assert "teacher: the recipe changed (teacher.steps 2 -> 3); going on from its last step" in (
        capsys.readouterr().err
    )
    assert ran == ["evaluate", "report"]
    assert (copy / "student" / WEIGHTS).is_file()


def test_trajectories_are_not_given_up_for_an_extended_teacher_without_asking(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copy)
    assert run("teacher", copy, "teacher.steps=3", "--extend") == 2
    assert "collect: the teacher is extended" in capsys.readouterr().err
    assert contents(copy) == before


# ------------------------------------------------------------------------- train.start_from


def test_training_starts_from_exactly_the_weights_of_a_student(copy: Path, made: Path) -> None:
    recipe = load_recipe("digits", RECIPE)
    operator = new_operator(recipe, load_teacher(made / "teacher"))
    load_start(operator, str(made / "student"))
    expected = load_file(made / "student" / WEIGHTS)
    found = {f"operator.{name}": weight for name, weight in operator.state_dict().items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # With a rate of nearly nothing the student stays the one it started from.
    start = f"train.start_from={made / 'student'}"
    assert run("train", copy, start, "train.learning_rate=1e-30", "--yes") == 0
    kept = load_file(copy / "student" / WEIGHTS)
    assert all(torch.allclose(kept[name], expected[name], atol=1e-6) for name in expected)


def test_a_student_stays_finished_when_the_one_it_started_from_is_deleted(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "student").rename(tmp_path / "first")
    start = f"train.start_from={tmp_path / 'first'}"
    assert run("train", copy, start) == 0
    shutil.rmtree(tmp_path / "first")
    for more in ([], ["train.log_every=1"], ["evaluate.samples=17"]):
        assert run("train", copy, start, *more) == 0
        assert "finished already" in capsys.readouterr().err


def test_a_start_that_cannot_be_is_refused_before_anything_changes(
    copy: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copy)
    cases = [
        (f"train.start_from={copy / 'student'}", "is this run's own student"),
        (f"train.start_from={tmp_path / 'none'}", "There is no trained student in"),
    ]
    for override, says in cases:
        assert run("train", copy, override, "--yes") == 2
        assert says in capsys.readouterr().err
    start = f"train.start_from={made / 'student'}"
    assert run("train", copy, start, "student.lift=all", "--yes") == 2
    assert "does not fit: expected" in capsys.readouterr().err
    assert contents(copy) == before
    other = load_recipe("digits", [*RECIPE, "teacher.schedule.log_snr_max=15"])
    operator = new_operator(other, load_teacher(made / "teacher"))
    operator.preconditioning = operator.preconditioning.__class__(
        operator.preconditioning.schedule, "sample"
    )
    with pytest.raises(InputError, match="another schedule or prediction type"):
        load_start(operator, str(made / "student"))
