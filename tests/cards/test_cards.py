"""The card of a model: what it says, of which weights, and what it keeps to itself."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from tests import makers
from tests.evaluation.test_report import example, example_arrays
from tests.hub import Site

from dsno.cards.about import About
from dsno.cards.facts import Known
from dsno.cards.markdown import fenced, plain
from dsno.cards.public import shown
from dsno.cards.text import text
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.pipeline import DSNOModel, DSNOPipeline, DSNOTeacher, save_pipeline
from dsno.sampling.folder import weights_checksums
from dsno.support.errors import InputError

SHORT = "8 x 8 grey images in 3 classes"
ROW = "| **This model** | **1** | **3.90 ± 0.38** | **0.390 ± 0.038** | **0.750** | **0.625** |"
"""By hand: 1.96 x 0.195 and 1.96 x 0.0195, the standard errors of the example."""


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def pipeline(unet_teacher: Any) -> DSNOPipeline:
    labels = {"class_labels": torch.zeros(1, dtype=torch.int64)}
    teacher = unet_teacher(channels=(4,), norm_num_groups=2, middle_attention=False, num_classes=3)
    lift = LiftConfig(["mid_block.resnets.0"])
    operator = makers.shake(DSNO.from_teacher(teacher, lift, condition=labels))
    return DSNOPipeline(DSNOModel.from_operator(operator, class_frequencies=[0.2, 0.3, 0.5]))


@pytest.fixture
def run(pipeline: DSNOPipeline, tmp_path: Path) -> Path:
    """The folder of a run, evaluated; its recipe and its command name files of the machine."""
    folder = tmp_path / "secret" / "run"
    save_pipeline(pipeline.model, folder / "student")
    metrics = example()
    metrics["weights"] = {"student": weights_checksums(folder / "student")}
    metrics["sampling_cost"] = 1.25
    metrics["recipe"] = {
        "name": "digits",
        "seed": 3,
        "data": {"source": "folder", "path": f"{tmp_path}/secret/images"},
        "teacher": {"source": "owner/teacher", "log_every": 5},
        "collect": {"destination": "s3://bucket/secret", "steps": 12, "count": 64},
        "student": {"slices": 2},
        "train": {"steps": 300, "batch_size": 8, "learning_rate": 0.01, "loss": "l1"},
    }
    metrics["command"] = f"dsno run digits data.path={tmp_path}/secret/images --out {folder}"
    (folder / "report").mkdir()
    (folder / "report" / "metrics.json").write_text(json.dumps(metrics))
    save_file(example_arrays(), folder / "report" / "arrays.safetensors")
    return folder


def test_a_card_says_what_is_known_of_a_run_and_nothing_of_the_machine(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    DSNOPipeline.from_pretrained(run / "student").save_pretrained(out, license="cc-by-4.0")
    card = card_of(out)
    for said in (
        ROW,
        f"A one-step generator of {SHORT}.",
        "one evaluation of its network (1.25 of the teacher's in multiply-adds)",
        "**Teacher**: owner/teacher, 170,113 parameters",
        "**Trajectories**: 32,768 of the teacher, by DPM-Solver++(2M) with 12 steps",
        "**Student**: 300 steps, batches of 8, learning rate 0.01, l1 loss",
        "**Time to make it**: 1 h 12 min (teacher 1 min 2 s, collect 48.3 s, train 1 h 11 min)",
        "`dsno run digits data.path=images --out run`",
        "DDIM 19, DPM-Solver++(2M) <\u200916, UniPC ≥ 8.",
        "of a classifier of the data, 98.5 % right on items held out; no FID",
        "the distance is 1.60 in classifier features and 0.200 in pixel features",
        "above, the teacher solved accurately (DPM-Solver++(2M), 24 steps); below, this model",
        "cc-by-4.0. The package `dsno`, which made it, is under Apache-2.0.",
        "title     = {Fast Sampling of Diffusion Models via Operator Learning}",
        "| Teacher by DDIM, quadratic steps | 16 | 5.60 |",
    ):
        assert said in card
    assert "**Data**" not in card  # the teacher's are not known
    assert "None" not in card
    assert not re.search(r"\bnan\b", card)
    recipe = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)[0])
    assert recipe["data"]["path"] == "images"
    assert "log_every" not in recipe["teacher"]
    with Image.open(out / "samples.png") as picture:
        assert picture.size == (8 * 48 + 7 * 2, 2 * 48 + 2)  # one pair of rows of all eight
    for file in out.rglob("*"):
        if file.suffix in (".json", ".md"):
            assert "secret" not in file.read_text(encoding="utf-8"), file

    data = ModelCard(card).data  # as the Hub reads it
    assert (data.library_name, data.license, data.base_model) == (
        "dsno",
        "cc-by-4.0",
        "owner/teacher",
    )
    assert {"diffusers", "one-step-generation", "arxiv:2211.13449"} <= set(data.tags)
    found = {(r.metric_type, r.metric_name): r.metric_value for r in data.eval_results}
    assert found == {
        ("frechet-distance", "Frechet distance (classifier features, 5,000 samples)"): 3.9,
        ("frechet-distance", "Frechet distance (pixel features, 5,000 samples)"): 0.39,
    }


def test_the_code_of_a_card_runs(
    pipeline: DSNOPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.save_pretrained(tmp_path / "path" / "to" / "mine")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card_of(tmp_path / "path/to/mine"), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert [image.size for image in scope["samples"]] == [(8, 8)] * 16


def test_a_card_goes_to_the_hub_and_comes_back(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, noise = Site(tmp_path / "hub", monkeypatch), torch.randn(2, 1, 8, 8)
    first = DSNOPipeline.from_pretrained(run / "student")
    assert first.push_to_hub("mine", private=True, license="mit") == "commit 2"
    assert site.commits[0] == {"private": True}
    assert site.commits[1] == {
        "token": None,
        "commit_message": "Upload DSNOPipeline",
        "create_pr": False,
    }
    page = card_of(tmp_path / "hub" / "user" / "mine")
    assert 'DSNOPipeline.from_pretrained("user/mine")' in page
    again = DSNOPipeline.from_pretrained("user/mine")
    call = {"noise": noise, "class_labels": 1, "output_type": "raw"}
    assert torch.equal(again(**call).images, first(**call).images)

    again.save_pretrained(tmp_path / "local", push_to_hub=True, repo_id="other/name", token="t")
    there = tmp_path / "hub" / "other" / "name"
    assert card_of(there) == card_of(tmp_path / "local")
    assert ROW in card_of(there)
    assert card_of(there) == page.replace("user/mine", "other/name").replace(
        "- name: mine", "- name: name"
    )
    assert (there / "samples.png").read_bytes() == (
        tmp_path / "hub" / "user" / "mine" / "samples.png"
    ).read_bytes()


def test_what_its_owner_wrote_stays(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Site(tmp_path / "hub", monkeypatch)
    loaded = DSNOPipeline.from_pretrained(run / "student")
    (there := tmp_path / "hub" / "a" / "b").mkdir(parents=True)
    for folder in (there, tmp_path / "out"):
        folder.mkdir(exist_ok=True)
        (folder / "README.md").write_text("My own words.")
    loaded.push_to_hub("a/b")
    loaded.save_pretrained(tmp_path / "out")
    DSNOPipeline.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "next")
    for folder in (there, tmp_path / "out", tmp_path / "next"):
        assert card_of(folder) == "My own words."
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "samples.png").write_bytes(b"mine")
    made_here = DSNOPipeline(DSNOModel.from_operator(loaded.model.operator))
    made_here.save_pretrained(tmp_path / "grid")
    assert (tmp_path / "grid" / "samples.png").read_bytes() == b"mine"


def test_what_was_measured_of_other_weights_is_not_said(run: Path, tmp_path: Path) -> None:
    model = DSNOModel.from_pretrained(run / "student", subfolder="model")
    whole = DSNOPipeline(model)
    whole.model = torch.compile(model, backend="eager")
    whole.save_pretrained(tmp_path / "same")
    assert ROW in card_of(tmp_path / "same")
    half = DSNOPipeline.from_pretrained(run / "student", dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    DSNOPipeline.from_pretrained(tmp_path / "half").save_pretrained(tmp_path / "half again")
    assert ROW in card_of(tmp_path / "half again")
    assert "before they were rounded to float16" in card_of(tmp_path / "half again")
    assert "rounded" not in card_of(tmp_path / "same")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    DSNOPipeline(model).save_pretrained(tmp_path / "in memory")
    assert "No measurement of these weights is known." in card_of(tmp_path / "in memory")
    for folder in (run / "student", tmp_path / "same"):
        model.save_pretrained(folder / "model")
        DSNOPipeline.from_pretrained(folder).save_pretrained(tmp_path / "other")
        assert "No measurement of these weights is known." in card_of(tmp_path / "other")
        assert not (tmp_path / "other" / "samples.png").exists()
        assert not (tmp_path / "other" / "card.json").exists()


def test_a_student_before_its_finish_is_not_given_the_numbers_after_it(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "student", run / "finished")
    file = run / "report" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["weights"]["finished"] = {"other.safetensors": "0"}
    before = {**metrics["samplers"][-1], "name": "dsno-unfinished"}
    before["frechet_distance"] = {"pixels": 0.5, "classifier": 5.0}
    metrics["samplers"].append(before)
    metrics["recipe"]["finish"] = {"steps": 20}
    file.write_text(json.dumps(metrics))
    DSNOPipeline.from_pretrained(run / "student").save_pretrained(tmp_path / "out")
    card = card_of(tmp_path / "out")
    assert "| **This model** | **1** | **5.00 ± 0.38** |" in card
    assert "| This model after its finish | 1 | 3.90 ± 0.38 |" in card
    assert "distribution matching" not in card.lower()
    assert not (tmp_path / "out" / "samples.png").exists()


def test_a_card_of_somebody_elses_words_is_text(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    DSNOPipeline.from_pretrained(run / "student").save_pretrained(out)
    facts = json.loads((out / "card.json").read_text())
    facts["metrics"]["title"] = "</details><script>alert(1)</script> | [x](javascript:y)\n# Big"
    facts["metrics"]["recipe"]["train"]["loss"] = "```\n<img src=x>"
    (out / "card.json").write_text(json.dumps(facts))
    DSNOPipeline.from_pretrained(out).save_pretrained(tmp_path / "next")
    card = card_of(tmp_path / "next")
    assert not re.search(r"(?<!\\)<(script|img|/script)", card.replace(*_fences(card)))
    assert "\n# Big" not in card
    assert card.count("```") == 6  # code, recipe and citation


def test_a_damaged_card_is_refused_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    DSNOPipeline.from_pretrained(run / "student").save_pretrained(out)
    loaded = DSNOPipeline.from_pretrained(out)
    facts = (out / "card.json").read_text()
    for name, damaged, says in (
        ("samples.png", "no picture", r"samples\.png is damaged"),
        ("card.json", '{"metrics": {"name": 3}}', r"card\.json is damaged at 'metrics\.name'"),
        (
            "card.json",
            facts.replace('"row": "dsno"', '"row": "ddim"'),
            r"card\.json is damaged at 'row'",
        ),
    ):
        (out / name).write_text(damaged)
        with pytest.raises(InputError, match=says):
            loaded.save_pretrained(tmp_path / "next")
        assert not (tmp_path / "next").exists()


def _fences(card: str) -> tuple[str, str]:
    """The recipe, whose text is shown as it is."""
    return re.findall(r"```yaml.*?```", card, re.DOTALL)[0], ""


def test_an_upload_that_cannot_be_is_refused(
    pipeline: DSNOPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path / "hub", monkeypatch)
    site.is_logged_in = False
    refused: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
        (pipeline.push_to_hub, {"repo_id": "a/b"}, r"uploaded to a/b .*`hf auth login`"),
        (pipeline.push_to_hub, {"repo_id": "a/b", "subfolder": "x"}, "leave out subfolder"),
        (pipeline.push_to_hub, {"repo_id": "a/b", "safe_serialization": False}, "safetensors only"),
        (
            pipeline.save_pretrained,
            {"save_directory": tmp_path / "x", "repo_id": "a/b"},
            "repo_id is of an upload: give push_to_hub=True",
        ),
        (pipeline.save_pretrained, {"save_directory": tmp_path / "x", "color": 1}, "'color'"),
    ]
    for call, given, says in refused:
        with pytest.raises(InputError, match=says):
            call(**given)
    assert not site.root.exists()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_pipeline_made_here_has_a_card_too(
    dtype: torch.dtype, pipeline: DSNOPipeline, unet_teacher: Any, tmp_path: Path
) -> None:
    teacher = unet_teacher(channels=(4,), norm_num_groups=2, middle_attention=False, num_classes=3)
    whole = DSNOPipeline(pipeline.model, teacher=DSNOTeacher.from_denoiser(teacher)).to(dtype)
    whole.save_pretrained(tmp_path / "mine")
    card = card_of(tmp_path / "mine")
    assert "# mine: a one-step generator" in card
    assert f"saved as {str(dtype)[6:]}" in card
    assert "yes (`num_inference_steps`): one evaluation of the teacher" in card
    whole.save_pretrained(tmp_path / "bare", card=False)
    assert not (tmp_path / "bare" / "README.md").exists()


def test_a_card_asks_for_what_its_model_takes() -> None:
    about = About(
        sample_shape=[4, 64, 64],
        classes=None,
        guidance=[1.0, 8.0],
        is_textual=True,
        is_latent=True,
        times=[0.25, 0.0],
        network="UNet2DConditionModel",
        meaning={"schedule": {"name": "betas"}, "prediction_type": "epsilon"},
        parameters=10,
        dtype="float16",
        step_cost=2,
        components={"vae": "Autoencoder", "teacher": "Teacher"},
    )
    card = text(about, Known(), "owner/name")
    assert ModelCard(card).data.pipeline_tag == "text-to-image"
    assert 'pipeline(prompt="...", num_images_per_prompt=4' in card
    assert "`guidance_scale` from 1 to 8, 4.5 if left out" in card
    assert "2 evaluations of the teacher" in card
    assert "- **Autoencoder**: in `vae/`" in card


def test_paths_are_shortened_and_names_are_not() -> None:
    for word, expected in (
        ("/home/me/images", "images"),
        ("data.path=/home/me/images", "data.path=images"),
        ("~/x.npz", "x.npz"),
        ("owner/name", "owner/name"),
        ("a/b/c.npz", "c.npz"),
        ("s3://key:secret@bucket/x?token=1", "s3://bucket/x"),
        ("file:///home/me/images", "images"),
        (f"prompt={'a' * 300}/b", f"prompt={'a' * 300}/b"),
        ("train.steps=5", "train.steps=5"),
    ):
        assert shown(word) == expected


def test_text_means_itself() -> None:
    assert plain("a|b\n*c* <d>") == r"a\|b \*c\* \<d\>"
    assert fenced("x\n```\ny\n", "yaml") == "```yaml\nx\n'''\ny\n```"
