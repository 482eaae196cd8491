"""Every row of the table of sources in docs/teachers.md: import, collect, train, sample once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests import makers
from tests.checksums import contents
from tests.foreign import edm_export, lmdb_folder, progressive_checkpoint

from dsno.backbones.registry import BACKBONES
from dsno.cli import main
from dsno.diffusion.schedules import BetaSchedule
from dsno.runs.run import Run
from dsno.teachers.store import load_teacher

DOCS = Path(__file__).parents[2] / "docs" / "teachers.md"
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_teacher.py"
TINY = [
    *("collect.count=12", "collect.steps=5", "collect.shard_size=8", "collect.batch_size=4"),
    *("train.steps=3", "train.batch_size=4"),
]
FINISH = (
    "finish={steps: 2, batch_size: 4, learning_rate: 1e-3, fake_first: 0, watch_samples: 12, "
    "checkpoint_every: 2, recall_drop: 1}",
    *("evaluate.batch_size=12", "evaluate.reference_steps=2"),
)


@dataclass(frozen=True)
class Source:
    """How a row is tried.

    Attributes:
        make: writes the source's files below a folder; returns what stands for it.
        word: what of the documented command that replaces.
        recipe: more overrides.
        sample: more options of `dsno sample`.
        shape: of one sample.
        is_finished: whether distribution matching is tried too.
    """

    make: Callable[[Path], Path | str]
    word: str
    recipe: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()
    shape: tuple[int, ...] = (3, 8, 8)
    is_finished: bool = False


def hub(folder: Path) -> str:
    makers.ddpm_folder(folder)
    return "google/ddpm-cifar10-32"  # the test answers for the Hub


def network_alone(folder: Path) -> Path:
    makers.unet2d().save_pretrained(folder)
    return folder


PROMPTS = "collect.prompts=[a cat, a dog]"
SOURCES = {
    "diffusers pipeline, in a folder": Source(makers.ddpm_folder, "PIPELINE"),
    "diffusers pipeline, on the Hub": Source(hub, "google/ddpm-cifar10-32"),
    "diffusers network alone": Source(network_alone, "UNET"),
    "class-conditional U-Net with a null class": Source(
        lambda folder: makers.ddpm_folder(folder, num_class_embeds=6),
        "PIPELINE",
        ("collect.guidance_scale=[1.0, 5.0]",),
        ("--label", "4", "--guidance-scale", "2"),
        is_finished=True,
    ),
    "latent pipeline": Source(makers.ldm_folder, "PIPELINE", shape=(3, 16, 16), is_finished=True),
    "text-conditional latent pipeline (Stable Diffusion)": Source(
        makers.stable_diffusion_folder,
        "PIPELINE",
        (PROMPTS, "collect.guidance_scale=4.5"),
        ("--prompt", "a bird"),
        (3, 16, 16),
        is_finished=True,
    ),
    "diffusion transformer (DiT)": Source(
        makers.dit_folder,
        "PIPELINE",
        ("collect.guidance_scale=3",),
        ("--label", "2"),
        (3, 16, 16),
        is_finished=True,
    ),
    "EDM network (DDPM++, NCSN++, ADM)": Source(edm_export, "EXPORT", shape=(3, 16, 16)),
    "progressive-distillation checkpoint": Source(
        progressive_checkpoint, "CHECKPOINT", shape=(3, 32, 32)
    ),
    "your own `nn.Module`": Source(
        lambda folder: EXAMPLE, "examples/own_teacher.py", shape=(1, 8, 8)
    ),
    "the authors' trajectories (LMDB)": Source(lmdb_folder, "LMDB", shape=(3, 32, 32)),
}


def documented() -> dict[str, str]:
    """The rows of the first table: source and command."""
    table = DOCS.read_text(encoding="utf-8").partition("| source | command |")[2]
    rows = re.findall(r"^\| (.+?) \| `(dsno import .+?)` \|$", table.partition("\n\n")[0], re.M)
    return dict(rows)


def test_every_documented_source_is_tried_here() -> None:
    assert set(documented()) == set(SOURCES)


@pytest.mark.parametrize("row", SOURCES)
def test_a_source_is_imported_collected_trained_and_sampled(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path / "source")
    )
    source = SOURCES[row]
    made = str(source.make(tmp_path / "source"))
    assert source.word in documented()[row]
    command = shlex.split(documented()[row].replace(source.word, shlex.quote(made)))
    brought = tmp_path / "brought"
    assert main([*command[1:-1], str(brought)]) == 0

    if (brought / "manifest.json").exists():  # trajectories: they need the authors' teacher
        teacher = progressive_checkpoint(tmp_path / "teacher")
        overrides = [f"teacher.source={teacher}", f"collect.source={made}"]
    else:
        overrides = [f"teacher.source={brought}"]
        assert load_teacher(brought).origin
    adapter = ["--adapter", str(EXAMPLE)] if made.endswith(".py") else []
    run, out = str(tmp_path / "run"), str(tmp_path / "samples.npz")
    recipe = ["distill", *overrides, *TINY, *source.recipe, "--out", run]
    for stage in ("teacher", "collect", "train"):
        assert main([*adapter, stage, *recipe]) == 0
    assert main([*adapter, "sample", run, "--num", "2", "--out", out, *source.sample]) == 0
    samples, (channels, height, width) = np.load(out)["arr_0"], source.shape
    assert (samples.dtype, samples.shape) == (np.uint8, (2, height, width, channels))

    manifest = json.loads((tmp_path / "run" / "trajectories" / "manifest.json").read_text())
    config = json.loads((tmp_path / "run" / "student" / "model" / "config.json").read_text())
    guidance = [o.partition("=")[2] for o in source.recipe if "guidance" in o]
    recorded = json.loads(guidance[0]) if guidance else None
    assert manifest["guidance_scale"] == recorded
    assert config["guidance_scale"] == recorded
    assert config["backbone"] in BACKBONES
    if source.is_finished:
        assert main(["finish", *recipe, *FINISH]) == 0
        weights = "model/diffusion_pytorch_model.safetensors"
        before, after = (load_file(tmp_path / "run" / n / weights) for n in ("student", "finished"))
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[name], after[name]) for name in before)
        assert main(["sample", run, "--num", "2", "--out", out, *source.sample]) == 0


@pytest.mark.parametrize(
    ("shape", "labels", "says"),
    [
        (8, None, "are of shape 3x32x32 with no classes, but the teacher makes 3x8x8 with no"),
        (32, [0, 3], "are of shape 3x32x32 with 4 classes, but the teacher makes 3x32x32 with no"),
    ],
)
def test_trajectories_that_the_teacher_did_not_make_are_refused_before_any_is_read(
    shape: int,
    labels: list[int] | None,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs = lmdb_folder(tmp_path / "theirs", count=2)
    if labels is not None:
        np.save(theirs / "labels.npy", np.array(labels))
    source = makers.ddpm_folder(tmp_path / "source", sample_size=shape)
    run = tmp_path / "run"
    recipe = ["distill", f"teacher.source={source}", *TINY, f"collect.source={theirs}"]
    assert main(["teacher", *recipe, "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["collect", *recipe, "--out", str(run)]) == 2
    assert says in capsys.readouterr().err
    assert not (run / "trajectories").exists()


def test_a_run_of_an_imported_teacher_ends_in_a_report(tmp_path: Path) -> None:
    """Without data the student is compared with the teacher's own samples, and says so.

    Its training was extended, which the report says too.
    """
    source = makers.ddpm_folder(tmp_path / "source")
    measure = [
        *("evaluate.samples=20", "evaluate.batch_size=10", "evaluate.curves=[]"),
        *("evaluate.baseline_steps=2", "evaluate.reference_steps=4", "evaluate.timing_rounds=1"),
    ]
    run = tmp_path / "run"
    recipe = ["distill", f"teacher.source={source}", *TINY, *measure, "--out", str(run)]
    recipe += ["train.warmup_steps=0"]
    for stage in ("teacher", "collect", "train"):
        assert main([stage, *recipe, "train.steps=2"]) == 0
    assert main(["run", *recipe, "--extend"]) == 0
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    assert metrics["reference"]["name"] == "samples of the teacher"
    assert list(metrics["features"]) == ["pixels"]
    page = (run / "report" / "report.html").read_text()
    assert "20 samples of the teacher, made from other noises" in page
    assert "real items" not in page
    assert metrics["extended"] == {"student": [{"steps": 2, "at": 2}]}
    assert "Training of the student extended" in page
    assert "after 2 steps of a training of 2" in page


def test_a_teacher_replaced_under_the_same_name_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    recipe = ["teacher", "distill", f"teacher.source={source}", *TINY, "--out", str(run)]
    weights = "unet/diffusion_pytorch_model.safetensors"
    saved = run / "teacher" / "diffusion_pytorch_model.safetensors"
    makers.ddpm_folder(source)
    assert main(recipe) == 0
    os.utime(source / weights, (1, 1))
    (source / "README.md").write_text("what it is")
    assert main(recipe) == 0
    assert "finished already" in capsys.readouterr().err
    stages = json.loads((run / "stages.json").read_text())
    assert stages["teacher"]["read"][str(source / weights)]["changed"] == 10**9

    before = contents(run)
    (source / weights).write_bytes(b"half copied")
    assert main([*recipe, "--yes"]) == 2
    assert contents(run) == before
    torch.manual_seed(1)
    makers.ddpm_folder(source)
    capsys.readouterr()
    assert main(recipe) == 2
    said = re.escape(str(source)) + r" \([0-9a-f]{16}\)"
    assert re.search(rf"teacher: teacher\.source {said} -> {said}\); give", capsys.readouterr().err)
    assert main([*recipe, "--yes"]) == 0
    expected, found = load_file(source / weights), load_file(saved)
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    # An earlier version recorded the name alone: nothing is known to have changed.
    record = json.loads((run / "stages.json").read_text())["teacher"]
    inputs = {**record["inputs"], "teacher": {**record["inputs"]["teacher"], "source": str(source)}}
    text = json.dumps(["3", inputs], sort_keys=True, separators=(",", ":"))
    tag = hashlib.sha256(text.encode()).hexdigest()[:16]
    earlier = {**record, "inputs": inputs, "fingerprint": tag}
    del earlier["read"]
    (run / "stages.json").write_text(json.dumps({"teacher": earlier}))
    capsys.readouterr()
    assert main(recipe) == 0
    assert "finished already" in capsys.readouterr().err
    assert main([*recipe, "seed=1"]) == 2  # and only what has changed is named
    assert "(teacher: seed 0 -> 1)" in capsys.readouterr().err


@pytest.mark.parametrize("clips", [True, False])
def test_a_guided_run_of_an_earlier_version_is_made_again_if_its_teacher_clips(
    clips: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Earlier versions clipped before guidance and did not record the order."""
    source = makers.ddpm_folder(tmp_path / "source", num_class_embeds=6)
    folder = tmp_path / "run"
    recipe = ["distill", f"teacher.source={source}", "teacher.null_class=5", *TINY]
    recipe += ["collect.guidance_scale=3", f"teacher.clip_sample={str(clips).lower()}"]
    with monkeypatch.context() as earlier:
        forms = Run._forms
        earlier.setattr("dsno.runs.run.saved_clips", lambda folder: False)
        earlier.setattr(Run, "_forms", lambda run, stage: forms(run, stage)[-1:])
        for stage in ("teacher", "collect", "train"):
            assert main([stage, *recipe, "--out", str(folder)]) == 0
    capsys.readouterr()
    for stage in ("collect", "train"):
        assert main([stage, *recipe, "--yes", "--out", str(folder)]) == 0
    text = capsys.readouterr().err
    assert ("order of guidance and clipping None -> guidance first" in text) == clips
    assert ("train: an earlier stage" in text or "train: the recipe changed" in text) == clips
    assert text.count("finished already") == (0 if clips else 2)


def test_data_given_later_touch_only_the_evaluation(tmp_path: Path) -> None:
    source = makers.ddpm_folder(tmp_path / "source")
    images = (makers.seeded((30, 8, 8, 3)).clamp(-2, 2) * 60 + 128).to(torch.uint8)
    np.savez(tmp_path / "real.npz", images=images.numpy())
    run = tmp_path / "run"
    measure = ["evaluate.samples=10", "evaluate.curves=[]", "evaluate.timing_rounds=1"]
    measure += ["evaluate.baseline_steps=2", "evaluate.reference_steps=4"]
    recipe = ["distill", f"teacher.source={source}", *TINY, *measure]
    for stage in ("teacher", "collect", "train"):
        assert main([stage, *recipe, "--out", str(run)]) == 0
    weights = run / "student" / "model" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    data = ["data.source=npz", f"data.path={tmp_path / 'real.npz'}"]
    assert main(["run", *recipe, *data, "--out", str(run)]) == 0
    assert weights.stat().st_mtime_ns == before
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    assert metrics["reference"]["count"] == 30


BAD: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "pickle": (lambda p: p.with_suffix(".pkl").write_bytes(b"x"), [], "is a pickle, which can run"),
    "nothing": (lambda p: None, [], "does not exist"),
    "empty folder": (lambda p: p.mkdir(), [], "Found no teacher in"),
    "half a meaning": (network_alone, ["prediction_type=epsilon"], "schedule.name=..."),
    "odd size": (makers.ddpm_folder, ["image_size=[8,9]"], "fails on a sample of 3x8x9"),
    "odd channels": (
        lambda p: makers.ddpm_folder(p, in_channels=1),
        [],
        "takes 1 channels and gives 3",
    ),
    "damaged field": (makers.ddpm_folder, ["scheduler.beta_end=x"], "scheduler.KEY=VALUE"),
    "no meaning": (network_alone, [], "no scheduler_config.json"),
    "unknown key": (makers.ddpm_folder, ["null_clas=3"], "'teacher.null_clas': did you mean"),
    "wrong value": (makers.ddpm_folder, ["null_class=-3"], "'teacher.null_class' should be"),
    "null class": (makers.ddpm_folder, ["null_class=3"], "takes no class labels"),
    "not a key": (makers.ddpm_folder, ["null_class"], "key=value"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_source_is_refused_in_one_sentence_and_nothing_is_written(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, options, says = BAD[case]
    place = tmp_path / "source"
    make(place)
    if place.with_suffix(".pkl").exists():
        place = place.with_suffix(".pkl")
    out = tmp_path / "out"
    assert main(["import", str(place), *options, "--out", str(out)]) == 2
    text = capsys.readouterr().err.strip()
    assert says in text
    assert text.startswith("dsno: ")
    assert "\n" not in text
    assert not out.exists()


def test_an_import_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = makers.ddpm_folder(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert main(["import", str(source), "--out", str(out)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


def test_what_a_source_says_is_overridden_on_the_command_line(tmp_path: Path) -> None:
    """An early pipeline: fields that are null, one that is not known, and no sample_size."""
    source, out = makers.ddpm_folder(tmp_path / "source"), tmp_path / "out"
    for name, changes in (
        ("scheduler/scheduler_config.json", {"timestep_values": None, "warp": 3}),
        ("unet/config.json", {"sample_size": None}),
    ):
        path = source / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    options = ["scheduler.warp=null", "scheduler.beta_end=0.03", "image_size=[8,16]"]
    assert main(["import", str(source), *options, "--out", str(out)]) == 0
    found = load_teacher(out).denoiser
    assert found.sample_shape == (3, 8, 16)
    assert found.schedule == BetaSchedule(beta_end=0.03, timesteps=100)


def test_a_recipe_cannot_run_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = tmp_path / "adapter.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    run = ["run", "distill", f"teacher.source={code}", "--out", str(tmp_path / "run")]
    assert main(run) == 2
    assert "only when you name it on the command line" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], "give `collect.prompts`"),
        (["collect.prompts=none.txt"], "none.txt cannot be read"),
        ([PROMPTS, "collect.guidance_scale=[5.0, 1.0]"], "smaller end first"),
        ([PROMPTS, "collect.guidance_scale=high"], "'collect.guidance_scale'"),
        ([PROMPTS, "train.loss=lpips_vgg"], "needs `train.vgg16`"),
        ([PROMPTS, "train.loss=lpips_vgg", "train.vgg16=none.safetensors"], "no file none"),
        ([PROMPTS, "student.sites=[]", "collect.guidance_scale=[1.0, 5.0]"], "at least one site"),
    ],
)
def test_a_text_teacher_that_is_not_asked_right_is_refused_before_any_work(
    overrides: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = makers.stable_diffusion_folder(tmp_path / "source")
    run = ["run", "distill", f"teacher.source={source}", *overrides, "--out", str(tmp_path / "r")]
    assert main(run) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_conditions_a_teacher_does_not_have_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = makers.ddpm_folder(tmp_path / "source")
    run = ["run", "distill", f"teacher.source={source}", "--out", str(tmp_path / "run")]
    assert main([*run, PROMPTS]) == 2
    assert "not conditioned on text" in capsys.readouterr().err
    assert main([*run, "collect.guidance_scale=3"]) == 2
    assert "'no condition'" in capsys.readouterr().err
    for stage in ("teacher", "collect", "train"):
        assert main([stage, *run[1:], *TINY]) == 0
    model = str(tmp_path / "run" / "student")
    for option, says in (
        (["--label", "1"], "takes no class labels"),
        (["--prompt", "a cat"], "takes no prompt"),
        (["--guidance-scale", "2"], "takes no guidance_scale"),
    ):
        capsys.readouterr()
        assert main(["sample", model, "--num", "1", *option]) == 2
        assert says in capsys.readouterr().err


def test_other_prompts_in_the_same_file_are_collected_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, prompts = makers.stable_diffusion_folder(tmp_path / "source"), tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\na dog\n")
    run = [f"teacher.source={source}", f"collect.prompts={prompts}", *TINY]
    out = ["--out", str(tmp_path / "run")]
    for stage in ("teacher", "collect"):
        assert main([stage, "distill", *run, *out]) == 0
    folder = tmp_path / "run" / "trajectories"
    assert json.loads((folder / "prompts.json").read_text())["prompts"] == ["a cat", "a dog"]
    capsys.readouterr()
    assert main(["collect", "distill", *run, *out]) == 0
    assert "finished already" in capsys.readouterr().err
    prompts.write_text("a bird\n")
    assert main(["collect", "distill", *run, "--yes", *out]) == 0
    assert "recipe changed (collect.prompts" in capsys.readouterr().err
    assert json.loads((folder / "prompts.json").read_text())["prompts"] == ["a bird"]
    (folder / "prompts.safetensors").write_bytes(b"x")
    assert main(["train", "distill", *run, *out]) == 2
    assert "prompts.safetensors is missing or does not match" in capsys.readouterr().err
    assert main(["collect", "distill", *run, *out]) == 0
    assert "missing or damaged; making it again" in capsys.readouterr().err
    assert main(["train", "distill", *run, *out]) == 0
