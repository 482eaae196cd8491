"""The command line: its surface, and one sentence and an exit code for whatever is wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import SafetensorError

import dsno
from dsno.cli import main
from dsno.data.load import load_data
from dsno.pipeline import DSNOPipeline
from dsno.recipes import load_recipe, shipped_recipes
from dsno.support.errors import WorkError
from dsno.support.files import sha256
from dsno.support.storage import StorageDir
from dsno.trajectories.exchange.about import read_index

TINY = [
    "teacher.conditional=false",
    "collect.slices=4",
    "student.slices=4",
    "teacher.network.channels=[8]",
    "teacher.steps=2",
    "teacher.batch_size=8",
    "collect.count=16",
    "collect.shard_size=8",
    "collect.steps=4",
    "train.steps=2",
    "finish=null",
    "train.batch_size=8",
]
COMMANDS = (
    "run",
    "teacher",
    "collect",
    "train",
    "finish",
    "report",
    "evaluate",
    "sample",
    "serve",
    "export",
    "import",
    "recipes",
    "info",
    "trajectories",
)
Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a trained student."""
    out = tmp_path_factory.mktemp("finished") / "run"
    for command in ("teacher", "collect", "train"):
        assert main([command, "digits", *TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path) if path.is_file() else ""
        for path in folder.rglob("*")
    }


def refused(capsys: Capture, arguments: list[str], code: int = 2) -> str:
    """The one sentence a command ends with."""
    capsys.readouterr()
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    stage = re.compile(r"(data|teacher|collect|train|evaluate|report): ")
    lines = [line for line in err.splitlines() if not stage.match(line)]
    assert len(lines) == 1, err
    assert lines[0].startswith("dsno: ")
    assert lines[0].endswith((".", "?"))
    assert out == ""
    return lines[0].removeprefix("dsno: ")


def misused(capsys: Capture, arguments: list[str]) -> str:
    """Typer's own complaint about the use of options, as plain words."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "Usage: dsno" in err
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", err).split())


# ------------------------------------------------------------------------------ the surface


def test_help_lists_the_commands(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    listed = re.findall(r"^[│\s]*([a-z]+)\s{2,}[A-Z]", out.partition("Commands")[2], re.MULTILINE)
    assert tuple(listed) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: Capture) -> None:
    assert main([command, "-h"]) == 0
    assert f"Usage: dsno {command} [OPTIONS]" in capsys.readouterr().out


def test_no_command_prints_the_help(capsys: Capture) -> None:
    assert main([]) == 2
    assert "teacher" in "".join(capsys.readouterr())


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dsno {dsno.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", dsno.__version__)


def test_recipes_are_listed_with_their_titles(capsys: Capture) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    assert lines[0].endswith(load_recipe(lines[0].split()[0]).title)


def test_info_is_what_a_bug_report_needs(capsys: Capture) -> None:
    assert main(["info"]) == 0
    lines = [re.split("  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    found = dict(lines)
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert found["dsno"].startswith(f"{dsno.__version__} (/")
    assert found["torch"] == torch.__version__
    assert found["torch build"] == (f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU")
    assert {"python", "diffusers", "platform", "CPU cores", "GPUs", "cache"} <= set(found)


def test_info_names_the_gpus(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'One card, 80 GiB, 1.2'\necho 'Another, 40 GiB, 1.2'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["GPUs"] == "One card, 80 GiB, 1.2; Another, 40 GiB, 1.2"
    driver.write_text("#!/bin/sh\nexit 9\n")  # a driver that fails is no reason to fail
    assert main(["info", "--json"]) == 0
    assert "nvidia-smi: CalledProcessError" in json.loads(capsys.readouterr().out)["GPUs"]


LIGHT = (
    (0, "--version"),
    (0, "--help"),
    (0, "info"),
    (0, "recipes"),
    (0, "run digits --dry-run"),
    (2, "run digits teacher.stepz=3"),
    (0, "evaluate digits --dry-run --json"),
    (0, "evaluate {run} data.split=test --dry-run"),
    (2, "evaluate {run} collect.steps=3"),
    (2, "sample {run} --precision half"),
    (2, "sample {run}/nothing"),
    (2, "serve {run}/nothing"),
    (0, "trajectories info {run}"),
)
"""Commands that compute nothing, with what they return."""
HEAVY = "torch diffusers transformers accelerate matplotlib sklearn scipy huggingface_hub gradio"
HALF_HEAVY = "diffusers transformers matplotlib sklearn scipy torch._dynamo"
"""What a command does without that finds all done already."""


def test_commands_start_without_what_they_do_not_need(finished: Path) -> None:
    code = """
import json, sys
from dsno.cli import main
light, heavy, again, half_heavy = json.load(sys.stdin)
def import_none(of, words):
    assert not (found := set(of.split()) & set(sys.modules)), (found, words)
for code, words in light:
    assert main(words) == code, words
    import_none(heavy, words)
assert main(again) == 0
import_none(half_heavy, again)
"""
    light = [(code, words.format(run=finished).split()) for code, words in LIGHT]
    again = ["train", "digits", *TINY, "--out", str(finished)]
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([light, HEAVY, again, HALF_HEAVY]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------- for programs and shells


def printed(capsys: Capture, *arguments: str, code: int = 0) -> Any:
    """The JSON that a command prints."""
    capsys.readouterr()
    assert main(list(arguments)) == code
    return json.loads(capsys.readouterr().out)


def test_json_is_printed_where_a_program_may_read(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    where = ["digits", *TINY, "--out", str(run)]
    assert {"name": "digits", "title": "Handwritten digits, 8x8"} in printed(
        capsys, "recipes", "--json"
    )
    recipe = load_recipe("digits", TINY).model_dump(mode="json")
    assert printed(capsys, "run", *where, "--dry-run", "--json") == recipe
    found = printed(capsys, "collect", *where, "--dry-run", "--json")
    assert found["recipe"] == recipe
    assert found["estimate"]["evaluations"] == 64  # 16 trajectories of 4 steps of dpm++2m
    assert found["estimate"]["total_bytes"] == 16 * 5 * 64 * 2  # noise, 4 states, float16
    found = printed(capsys, "train", *where, "--json")
    assert found.pop("seconds") >= 0
    assert found == {"stage": "train", "result": str(run / "student"), "finished": True}
    image = str(tmp_path / "grid.png")
    found = printed(capsys, "sample", str(run), "--num", "3", "--out", image, "--json")
    assert found == {"files": [image], "samples": 3}


def test_json_of_trajectories(run: Path, capsys: Capture) -> None:
    found = printed(capsys, "trajectories", "info", str(run), "--json")
    assert found["folder"] == str(run / "trajectories")
    assert found["sample_shape"] == [1, 8, 8]
    assert (found["trajectories"], found["count"], found["missing"]) == (16, 16, [])
    whole = printed(capsys, "trajectories", "verify", str(run), "--json")
    assert whole == {**found, "findings": []}
    (run / "trajectories" / "notes.txt").write_text("mine")
    verify = ["trajectories", "verify", str(run), "--json"]
    (finding,) = printed(capsys, *verify, code=1)["findings"]
    assert (finding["file"], finding["shard"], finding["is_foreign"]) == ("notes.txt", None, True)
    assert printed(capsys, *verify, "--repair")["findings"] == [finding]
    assert printed(capsys, *verify)["findings"] == []


def test_trajectories_go_out_and_come_back(
    run: Path, finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    """By the commands of the docs: written for others, and read back; and taken by a recipe."""
    out, back, made = tmp_path / "out", tmp_path / "back", finished / "trajectories"
    page = (ROOT / "docs" / "sharing-trajectories.md").read_text()
    paths = {"runs/digits": str(run), "shared": str(out), "back": str(back)}
    export, bring_back = (
        [paths.get(word, word) for word in line.split()]
        for line in re.findall("^dsno (trajectories .+|import .+?)(?: +#.*)?$", page, re.MULTILINE)
    )
    assert printed(capsys, *export, "--json") == {
        "folder": str(out),
        "layout": "webdataset",
        "trajectories": 16,
        "states": 5,
        "files": 2,
        "bytes": sum(path.stat().st_size for path in out.glob("*.tar")),
        "dtype": "float16",
        "is_exact": True,
    }
    assert main(bring_back) == 0
    assert contents(back) == contents(made)

    recipe = ["digits", *TINY, f"collect.source={out}", "--out", str(run)]
    assert main(["collect", *recipe, "--yes"]) == 0
    found = contents(run / "trajectories")
    assert found.pop("manifest.json") != sha256(made / "manifest.json")  # of another recipe
    assert found == {name: h for name, h in contents(made).items() if name != "manifest.json"}
    assert main(["train", *recipe, "--yes"]) == 0
    weights = "student/model/diffusion_pytorch_model.safetensors"
    assert sha256(run / weights) == sha256(finished / weights)
    other = ["collect", *recipe, "--yes", "collect.grid=uniform", "collect.dtype=float32"]
    assert (
        "are not those of this recipe and teacher (collect.dtype float16 -> float32; "
        "times 0.5625, 0.25, 0.0625, 0 -> 0.75, 0.5, 0.25, 0); change the recipe"
    ) in refused(capsys, other)


@pytest.mark.parametrize(
    ("holds", "says"),
    [
        ({"times": (0.5, 0.0), "scales": (0.5, 1.0)}, "collect.slices 2 -> 4"),
        ({"guidance_scale": 3.0}, "collect.guidance_scale 3.0 -> None"),
        ({"guidance_scale": (1.0, 5.0)}, "collect.guidance_scale [1.0, 5.0] -> None"),
        ({"scales": (2.0, 2.0, 2.0, 2.0)}, "scales 2, 2, 2, 2 -> 1, 1, 1, 1"),
        ({"sample_shape": (3, 8, 8)}, "shape of a sample 3x8x8 -> 1x8x8"),
        ({"num_classes": 7}, "classes 7 -> "),
    ],
)
def test_an_export_of_another_teacher_or_recipe_is_refused(
    run: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    holds: dict[str, Any],
    says: str,
) -> None:
    out = str(tmp_path / "out")
    export = ["trajectories", "export", str(run), "--to", "npz", "--out", out]
    assert main([*export, "--quiet"]) == 0
    about, index = read_index(StorageDir(out))
    theirs = replace(about, manifest=replace(about.manifest, **holds))
    monkeypatch.setattr("dsno.runs.exchange.read_index", lambda source: (theirs, index))
    recipe = ["collect", "digits", *TINY, f"collect.source={out}", "--out", str(run), "--yes"]
    said = refused(capsys, recipe)
    assert f"The trajectories in {out} are not those of this recipe and teacher (" in said
    assert says in said
    assert not (run / "trajectories").exists()  # the earlier ones are set aside


def test_an_export_that_cannot_be_read_is_refused(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, copy = str(tmp_path / "out"), str(tmp_path / "copy")
    shutil.copytree(run / "trajectories", copy)
    export = ["trajectories", "export", copy, "--to", "npz", "--out", out]
    assert "so the noise schedule is unknown; give that folder, or that of the teacher" in refused(
        capsys, export
    )
    assert main([*export, "--teacher", str(run / "teacher"), "--quiet"]) == 0
    back = ["import", out, "--out", str(tmp_path / "back")]
    assert "they take no KEY=VALUE" in refused(capsys, [*back, "slices=2"])
    path = tmp_path / "out" / "00001.npz"
    path.write_bytes(path.read_bytes()[:-9])
    assert refused(capsys, back).endswith("; export it again, or fetch it again.")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "00000.tar").write_bytes(b"")
    unfinished = ["import", str(tmp_path / "unfinished"), "--out", str(tmp_path / "new")]
    assert "holds shards but no index.json, which is written last" in refused(capsys, unfinished)


def test_quiet_prints_results_alone(run: Path, capsys: Capture, tmp_path: Path) -> None:
    capsys.readouterr()
    changed = ["train", "digits", *TINY, "train.steps=3", "--out", str(run)]
    assert main([*changed, "--yes", "--quiet"]) == 0
    sample = ["sample", str(run), "--num", "2", "--out", str(tmp_path / "grid.png")]
    assert main([*sample, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(sample) == 0  # the choice is of one command
    assert capsys.readouterr().out == f"Wrote 2 samples to {tmp_path / 'grid.png'}\n"
    assert "Unknown precision" in refused(capsys, [*sample, "--precision", "half", "-q"])


def test_verbose_shows_where_an_error_was_raised(capsys: Capture, tmp_path: Path) -> None:
    command = ["run", "digits", "--out", str(tmp_path / "file")]
    (tmp_path / "file").write_text("")
    assert main([*command, "-v"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert "_check_folder" in err
    assert err.endswith(f"\ndsno: {tmp_path / 'file'} is a file; give a folder to --out.\n")
    assert refused(capsys, command) == f"{tmp_path / 'file'} is a file; give a folder to --out."
    text = refused(capsys, [*command, "-v", "-q"])
    assert text == "Give --quiet or --verbose, not both."


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dsno ex", ["export"]),
        ("dsno run dig", ["digits"]),
        ("dsno sample dis", ["distill"]),
        ("dsno train digits train.start", ["train.start_from="]),
        ("dsno train digits se", ["seed="]),
        ("dsno run digits finish.fake_st", ["finish.fake_steps="]),
        ("dsno trajectories ver", ["verify"]),
        ("dsno evaluate --save", ["--save-statistics"]),
    ],
)
def test_a_shell_completes_commands_recipes_and_keys(
    words: str, offered: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_DSNO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert main([]) == 0
    assert capsys.readouterr().out.split() == offered


TRAINING = [
    "steps",
    "batch_size",
    "learning_rate",
    "warmup_steps",
    "decay",
    "milestones",
    "gamma",
    "weight_decay",
    "betas",
    "clip_norm",
    "ema_decay",
    "accumulation",
    "cpu_replicas",
    "mixed_precision",
    "gradient_checkpointing",
    "compile",
    "channels_last",
    "shard",
    "checkpoint_every",
    "keep",
    "log_every",
    "log_images_every",
    "log_with",
]
"""Keys of all that is trained."""
DRY_RUN = {
    "name": None,
    "title": None,
    "seed": None,
    "data": [
        "source",
        "path",
        "split",
        "size",
        "channels",
        "image_column",
        "label_column",
        "labels",
        "classes",
        "range",
        "layout",
        "background",
        "frames",
        "unreadable",
        "random_flip",
    ],
    "teacher": [
        *TRAINING,
        "source",
        "network",
        "conditional",
        "label_dropout",
        "prediction_type",
        "schedule",
        "sigma_data",
        "clip_sample",
        "null_class",
        "image_size",
        "scheduler",
    ],
    "collect": [
        "source",
        "count",
        "slices",
        "grid",
        "solver",
        "steps",
        "spacing",
        "batch_size",
        "shard_size",
        "dtype",
        "precision",
        "compile",
        "guidance_scale",
        "prompts",
        "negative_prompt",
        "destination",
        "cache_gb",
    ],
    "student": [
        "slices",
        "modes",
        "output",
        "lift",
        "sites",
        "lifted_from",
        "shared_levels",
        "shared",
    ],
    "train": [
        *TRAINING,
        "start_from",
        "loss",
        "vgg16",
        "huber_delta",
        "shuffle_shards",
        "weight",
        "weight_max",
        "trajectory_every",
    ],
    "finish": [
        *TRAINING,
        "fake_learning_rate",
        "fake_steps",
        "fake_first",
        "times",
        "anchor",
        "watch_samples",
        "watch_features",
        "watch_torchscript",
        "recall_drop",
    ],
    "evaluate": [
        "samples",
        "batch_size",
        "precision",
        "compile",
        "features",
        "inception",
        "torchscript",
        "classifier_seed",
        "curves",
        "more_curves",
        "dial",
        "baseline_steps",
        "reference_steps",
        "pictures",
        "timing_rounds",
    ],
}


@pytest.mark.parametrize(
    "command", ["run", "teacher", "collect", "train", "finish", "report", "evaluate"]
)
def test_dry_run_prints_the_resolved_recipe_and_touches_nothing(
    command: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command, "digits", "teacher.learning_rate=1e-05", "--dry-run"]) == 0
    text = capsys.readouterr().out
    found = yaml.safe_load(text)
    assert {k: list(v) if isinstance(v, dict) else None for k, v in found.items()} == DRY_RUN
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "again.yaml").write_text(text)
    again = load_recipe(str(tmp_path / "again.yaml"))
    assert again == load_recipe("digits", ["teacher.learning_rate=1e-05"])


# ------------------------------------------------------------------------- bad input: usage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rnu", "digits"], "No such command 'rnu'"),
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "digits", "--outt", "x"], "No such option: --outt"),
        (["sample", "x", "--num", "many"], "Invalid value for '--num'"),
        (["sample", "x", "--label", "two"], "Invalid value for '--label'"),
    ],
)
def test_misuse_is_explained(capsys: Capture, arguments: list[str], says: str) -> None:
    assert says in misused(capsys, arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digit"], "There is no recipe 'digit': did you mean 'digits'"),
        (["no/such/recipe.yaml"], "no/such/recipe.yaml cannot be read (No such file"),
        (["digits", "teacher.stepz=3"], "There is no recipe key 'teacher.stepz'"),
        (
            ["digits", "teacher.steps=many"],
            "'teacher.steps' should be a valid integer, not \"many\"",
        ),
        (["digits", "teacher.steps"], "An override reads key.sub=value, not 'teacher.steps'"),
        (["digits", "student.slices=3"], "must divide"),
        (["digits", "data.source=cifar"], "'data.source'"),
    ],
)
@pytest.mark.parametrize("command", ["run", "train", "sample", "evaluate"])
def test_a_bad_recipe_is_refused_by_every_command(
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, [command, *arguments])
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------ bad input: folders


def test_a_folder_of_another_recipe_is_left_alone(run: Path, capsys: Capture) -> None:
    before = contents(run)
    text = refused(capsys, ["run", "digits", "name=other", "--out", str(run)])
    assert text == (
        f"{run} holds a run of the recipe 'digits', not 'other'; give another folder to --out."
    )
    assert contents(run) == before


def test_a_foreign_folder_is_left_alone(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    text = refused(capsys, ["run", "digits", "--out", str(tmp_path)])
    assert text.startswith(f"{tmp_path} is not empty and holds no run")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    assert refused(capsys, ["run", "digits", "--out", str(path)]) == (
        f"{path} is a file; give a folder to --out."
    )
    text = refused(capsys, ["teacher", "digits", *TINY, "--out", str(path / "run")], code=1)
    assert "cannot be written: Not a directory" in text
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("recipe.yaml", "garbage", "recipe.yaml is damaged"),
        ("recipe.yaml", "a: [", "recipe.yaml is damaged"),
        ("recipe.yaml", "name: digits\nextra: 1\n", "recipe.yaml is damaged"),
        ("recipe.yaml", "name: !!python/object/apply:os.system ['true']", "recipe.yaml is damaged"),
        ("stages.json", "garbage", "stages.json cannot be read"),
        ("stages.json", "[]", "stages.json is not a JSON object"),
        ("stages.json", '{"teacher": 3}', "stages.json is damaged at 'teacher'"),
        ("stages.json", '{"teacher": {}}', "stages.json is damaged at 'teacher.fingerprint'"),
        ("trajectories/manifest.json", "garbage", "manifest.json cannot be read"),
        ("trajectories/manifest.json", '{"format": 2}', "manifest.json is damaged"),
        ("teacher/config.json", "garbage", "The teacher in"),
        ("teacher/denoiser.json", "garbage", "denoiser.json cannot be read"),
        ("teacher/denoiser.json", '{"schedule": 3}', "The teacher in"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_with_a_remedy(
    run: Path, capsys: Capture, name: str, content: str, says: str
) -> None:
    (run / name).write_text(content)
    shutil.rmtree(run / "student")
    text = refused(capsys, ["train", "digits", *TINY, "--out", str(run)])
    assert says in text
    assert str(run) in text
    assert re.search(r"; (restore|delete|run) ", text)


def test_following_the_remedy_for_a_damaged_manifest_helps(
    run: Path, finished: Path, capsys: Capture
) -> None:
    path = run / "trajectories" / "manifest.json"
    path.write_text("garbage")
    collect = ["collect", "digits", *TINY, "--out", str(run)]
    assert f"{path} cannot be read" in refused(capsys, collect)
    path.unlink()
    assert main(collect) == 0
    assert path.read_bytes() == (finished / "trajectories" / "manifest.json").read_bytes()


def test_a_damaged_shard_is_named_and_made_again(run: Path, capsys: Capture) -> None:
    path = run / "trajectories" / "shard-00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    shutil.rmtree(run / "student")
    train = ["train", "digits", *TINY, "--out", str(run)]
    capsys.readouterr()
    assert main(train) == 2
    err = capsys.readouterr().err
    assert f"dsno: {path} has {len(whole) - 1} bytes, not {len(whole)}; run `dsno collect`" in err
    assert main(["collect", "digits", *TINY, "--out", str(run)]) == 0
    assert path.read_bytes() == whole
    assert main(train) == 0


# ------------------------------------------------------------------------ bad input: samples


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--num", "0"], "The number of samples must be at least 1, not 0; give --num 1 or more."),
        (["--num", "-3"], "at least 1, not -3"),
        (["--batch-size", "0"], "The batch size must be at least 1, not 0"),
        (["--label", "3"], "This model is unconditional: it takes no class labels."),
        (["--out", "grid.jpg"], "written to a .png or .npz file or a folder, not to 'grid.jpg'"),
        (["--raw", "--out", "grid.png"], "Raw states are written to an .npz file"),
        (["a.b=c"], "Sampling a trained model takes no KEY=VALUE"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    options: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, ["sample", str(finished / "student"), *options])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--port", "65536"], "A port is a number from 0 to 65535, not 65536"),
        (["--port", "0", "--host", "192.0.2.1"], "Port 0 of 192.0.2.1 cannot be opened"),
        (["--max-images", "0"], "The limit of images (--max-images) must be at least 1, not 0."),
        (["--max-steps", "0"], "The limit of steps (--max-steps) must be at least 1"),
        (["--max-queue", "-1"], "requests that may wait (--max-queue) must be at least 1"),
    ],
)
@pytest.mark.skipif(find_spec("gradio") is None, reason="needs Gradio: pip install 'dsno[app]'")
def test_what_cannot_be_served_is_refused(
    finished: Path, capsys: Capture, options: list[str], says: str
) -> None:
    assert says in refused(capsys, ["serve", str(finished), *options])


@pytest.mark.skipif(find_spec("gradio") is None, reason="needs Gradio: pip install 'dsno[app]'")
def test_a_model_is_served_at_a_port_that_is_free(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = refused(capsys, ["serve", str(finished), "--port", str(port)])
    assert text.startswith(f"Port {port} of 127.0.0.1 is in use; give another to --port")
    monkeypatch.chdir(tmp_path)
    assert "There is no trained model in runs/" in refused(capsys, ["serve"])
    assert "no trained model in runs/digits; run `dsno run digits` first" in refused(
        capsys, ["serve", "digits"]
    )


def test_serving_without_its_library_says_what_to_install(
    finished: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    text = refused(capsys, ["serve", str(finished)])
    assert text == "The web page needs Gradio: run pip install 'dsno[app]'."


def test_samples_are_written_where_asked(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(finished), "--num", "2"]) == 0
    assert capsys.readouterr().out == "Wrote 2 samples to samples.png\n"
    assert main(["sample", str(finished), "--num", "3", "--out", "new/a.npz"]) == 0
    with np.load("new/a.npz") as arrays:
        assert arrays["arr_0"].shape == (3, 8, 8, 1)
    assert main(["sample", str(finished), "--num", "3", "--out", "new/images"]) == 0
    assert load_data("npz", "new/a.npz").images.equal(load_data("folder", "new/images").images)
    (tmp_path / "folder.png").mkdir()
    out = ["--num", "1", "--out", "folder.png"]
    assert "folder.png cannot be written" in refused(capsys, ["sample", str(finished), *out], 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.png", "new", "samples.png"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--samples", "1"], "'evaluate.samples' should be greater than or equal to 2, not 1"),
        (
            ["--data", "digit"],
            "'data.source' should be 'digits', 'emoji', 'folder', 'huggingface' or 'npz'",
        ),
        (["data.pth=x"], "There is no recipe key 'data.pth': did you mean 'data.path'"),
        (["train.steps=1"], "takes data.KEY=VALUE and evaluate.KEY=VALUE, not 'train.steps=1'"),
        (["samples=5"], "takes data.KEY=VALUE and evaluate.KEY=VALUE, not 'samples=5'"),
        (["evaluate.curves=[]"], "classifier_seed, inception, torchscript can be given"),
        (["data.channels=3"], "makes samples of 1x8x8, but the data digits have 3x8x8"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    finished: Path, capsys: Capture, options: list[str], says: str
) -> None:
    assert says in refused(capsys, ["evaluate", str(finished / "student"), *options])


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_folder_without_model_is_refused(command: str, tmp_path: Path, capsys: Capture) -> None:
    assert "holds no trained model; run `dsno run`" in refused(capsys, [command, str(tmp_path)])
    missing = str(tmp_path / "none")
    assert f"There is no folder {missing}" in refused(capsys, [command, missing])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def other_slices(path: Path) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "slices": config["slices"] + 1}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model/diffusion_pytorch_model.safetensors", truncate),
        ("model/diffusion_pytorch_model.safetensors", Path.unlink),
        ("model/diffusion_pytorch_model.safetensors", lambda p: p.write_bytes(b"")),
        ("model/config.json", lambda p: p.write_text("garbage")),
        ("model/config.json", lambda p: p.write_text("{}")),
        ("model/config.json", other_slices),
        ("model/config.json", Path.unlink),
        ("model_index.json", lambda p: p.write_text("garbage")),
        ("model_index.json", lambda p: p.write_text("{}")),
        ("model_index.json", lambda p: p.write_text('{"_class_name": "os"}')),
    ],
)
def test_a_damaged_model_is_refused(
    run: Path, tmp_path: Path, capsys: Capture, name: str, damage: Callable[[Path], object]
) -> None:
    damage(run / "student" / name)
    out = tmp_path / "a.png"
    text = refused(capsys, ["sample", str(run / "student"), "--out", str(out)])
    assert str(run / "student") in text
    assert not out.exists()


def test_weights_are_never_unpickled(run: Path, tmp_path: Path, capsys: Capture) -> None:
    mark = tmp_path / "mark"

    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {mark}",)

    model = run / "student" / "model"
    (model / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"a": Attack()}, model / "diffusion_pytorch_model.bin")
    refused(capsys, ["sample", str(run / "student"), "--out", str(tmp_path / "a.png")])
    assert not mark.exists()


# ------------------------------------------------------------------------- failures at work


def test_a_full_disk_during_collection_is_said_and_the_command_goes_on_later(
    run: Path, finished: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsno.trajectories import shards as trajectories

    shutil.rmtree(run / "trajectories")
    collect = ["collect", "digits", *TINY, "--out", str(run)]
    save, calls = trajectories.save_file, 0

    def full(tensors: Any, path: Path) -> None:
        nonlocal calls
        calls += 1
        save(tensors, path)
        if calls == 2:
            raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(trajectories, "save_file", full)
        capsys.readouterr()
        assert main(collect) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == (
        f"dsno: The disk is full: {run}/trajectories/shard-00001.safetensors was not written; "
        "free some space and run again."
    )
    assert {p.name for p in (run / "trajectories").iterdir()} == {
        "manifest.json",
        "shard-00000.json",
        "shard-00000.safetensors",
    }
    assert main(collect) == 0
    assert contents(run / "trajectories") == contents(finished / "trajectories")


@pytest.mark.parametrize(("command", "folder"), [("teacher", "teacher"), ("train", "student")])
def test_a_full_disk_while_weights_are_saved_is_said(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str, folder: str
) -> None:
    from diffusers import ModelMixin

    shutil.rmtree(run / folder)

    def full(self: Any, place: Path, **options: Any) -> None:
        Path(place).mkdir(exist_ok=True)
        (Path(place) / "half.safetensors").write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(ModelMixin, "save_pretrained", full)
    capsys.readouterr()
    assert main([command, "digits", *TINY, "--out", str(run)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"dsno: The disk is full: {run / folder} was not written")
    assert contents(run / folder) == {}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_place_that_cannot_be_written_is_said(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_text", fail)
    out = tmp_path / "run"
    text = refused(capsys, ["teacher", "digits", *TINY, "--out", str(out)], code=1)
    assert str(out / "recipe.yaml") in text
    assert ("The disk is full" if code == errno.ENOSPC else "cannot be written") in text
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [".lock"]


def test_a_loss_that_explodes_is_said_with_exit_code_1(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = torch.tensor(torch.nan, requires_grad=True)
    monkeypatch.setattr("dsno.training.losses.denoising_loss", lambda *_: nan * 1)
    text = refused(capsys, ["teacher", "digits", *TINY, "--out", str(tmp_path / "run")], code=1)
    assert text.startswith("The loss became nan at step 0 (items ")
    assert "there is no checkpoint yet" in text
    assert "`clip_norm`" in text


def test_an_interruption_has_its_own_exit_code(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsno.training.losses.denoising_loss", interrupted)
    text = refused(capsys, ["teacher", "digits", *TINY, "--out", str(tmp_path / "run")], code=130)
    assert text == "interrupted; the same command goes on from here."


def test_a_command_that_cannot_go_on_does_not_say_so(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DSNOPipeline, "__call__", interrupted)
    out = str(tmp_path / "grid.png")
    assert refused(capsys, ["sample", str(run), "--out", out], code=130) == "interrupted."


@pytest.mark.parametrize("seed", ["-1", str(2**63)])
def test_a_seed_that_no_recipe_has_is_refused(
    run: Path, tmp_path: Path, capsys: Capture, seed: str
) -> None:
    capsys.readouterr()
    assert main(["sample", str(run), "--seed", seed, "--out", str(tmp_path / "a.png")]) == 2
    assert "Invalid value for '--seed'" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_a_slip_of_the_hand_in_the_number_of_steps_is_refused(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    sample = ["sample", str(run), "--steps", "1000000000000", "--out", str(tmp_path / "a.png")]
    assert "steps must be at most 1,000,000, not 1,000,000,000,000." in refused(capsys, sample)


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dsno.recipes.load_recipe", bug)
    with pytest.raises(ZeroDivisionError):
        main(["run", "digits"])
    assert WorkError.exit_code == 1
