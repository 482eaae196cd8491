"""Teachers trained here on the user's data, with what issue after issue asks of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.makers import seeded

from dsno.cli import main
from dsno.support import seeds
from dsno.teachers.store import load_teacher
from dsno.training.lpips import VGG16Distance

RECIPE: dict[str, Any] = {
    "name": "mine",
    "data": {"source": "digits"},
    "teacher": {
        "network": {"channels": [8], "norm_num_groups": 4, "middle_attention": False},
        "steps": 3,
        "batch_size": 8,
        "learning_rate": 1e-3,
    },
    "collect": {"count": 12, "steps": 5, "shard_size": 8, "batch_size": 4, "slices": 4},
    "student": {"slices": 4},
    "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
    "evaluate": {
        "samples": 16,
        "curves": [],
        "baseline_steps": 2,
        "reference_steps": 4,
        "timing_rounds": 1,
        "pictures": 4,
    },
}


def run(tmp_path: Path, *overrides: str, command: str = "run") -> int:
    import yaml

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return main([command, str(path), *overrides, "--out", str(tmp_path / "run")])


def stages(tmp_path: Path, *overrides: str) -> Path:
    for command in ("teacher", "collect", "train"):
        assert run(tmp_path, *overrides, command=command) == 0
    return tmp_path / "run"


def test_guidance_is_distilled_from_a_teacher_trained_with_label_dropout(tmp_path: Path) -> None:
    guided = ["teacher.conditional=true", "teacher.label_dropout=0.3", "collect.guidance_scale=2.5"]
    folder = stages(
        tmp_path, *guided, "collect.solver=ddim", "collect.steps=4", "collect.grid=uniform"
    )
    teacher = load_teacher(folder / "teacher")
    assert (teacher.num_classes, teacher.null_class) == (10, 10)
    manifest = json.loads((folder / "trajectories" / "manifest.json").read_text())
    assert manifest["solver"]["nfe"] == 8
    shard = load_file(folder / "trajectories" / "shard-00000.safetensors")
    x = shard["noise"].double()
    labels, null = shard["class_labels"], torch.full((8,), 10)
    schedule = teacher.denoiser.schedule
    x = x * schedule.sigma(torch.ones(1, dtype=torch.float64))
    for step, (t, s) in enumerate([(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]):
        start, end = torch.tensor(t).double(), torch.tensor(s).double()
        with torch.no_grad():
            d = [
                teacher.denoiser(x.float(), start, {"class_labels": c}).double()
                for c in (labels, null)
            ]
        clean = d[1] + 2.5 * (d[0] - d[1])
        noise = (x - schedule.alpha(start) * clean) / schedule.sigma(start)
        x = schedule.alpha(end) * clean + schedule.sigma(end) * noise if s else clean
        torch.testing.assert_close(shard["states"][:, step].double(), x, rtol=2e-3, atol=2e-3)


def test_labels_are_withheld_as_often_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsno.training import losses as module

    seen: list[torch.Tensor] = []
    real = module.denoising_loss

    def spy(model: Any, clean: Any, noise: Any, t: Any, condition: Any) -> Any:
        seen.append(condition["class_labels"])
        return real(model, clean, noise, t, condition)

    monkeypatch.setattr(module, "denoising_loss", spy)
    options = ["teacher.conditional=true", "teacher.label_dropout=0.25"]
    assert (
        run(tmp_path, *options, "teacher.steps=10", "teacher.batch_size=200", command="teacher")
        == 0
    )
    labels = torch.cat(seen)
    assert abs((labels == 10).float().mean() - 0.25) < 0.03  # three standard deviations
    assert set(labels.tolist()) == set(range(11))


def test_images_are_mirrored_by_half_and_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsno.training import losses as module

    images = np.zeros((1, 8, 8, 1), np.uint8)
    images[..., :4, :] = 255
    np.savez(tmp_path / "half.npz", images=images)
    seen: list[torch.Tensor] = []
    real = module.denoising_loss

    def spy(model: Any, clean: Any, *rest: Any) -> Any:
        seen.append(clean)
        return real(model, clean, *rest)

    monkeypatch.setattr(module, "denoising_loss", spy)
    data = ["data.source=npz", f"data.path={tmp_path / 'half.npz'}", "teacher.steps=20"]
    assert run(tmp_path, *data, "data.random_flip=true", command="teacher") == 0
    left = torch.cat(seen)[:, 0, 0, 0] > 0
    assert 0.35 < left.float().mean() < 0.65
    seen.clear()
    assert run(tmp_path, *data, "--yes", command="teacher") == 0
    assert bool((torch.cat(seen)[:, 0, 0, 0] > 0).all())


def test_a_folder_of_colour_images_becomes_a_one_step_generator(tmp_path: Path) -> None:
    """With transparency, two predictions, and the report against the real images."""
    for name in ("cats", "dogs"):
        for i in range(12):
            pixels = (seeded((16, 16, 4), i) * 60 + 128).clamp(0, 255).to(torch.uint8).numpy()
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    data = ["data.source=folder", f"data.path={tmp_path / 'images'}", "data.size=8"]
    options = ["teacher.prediction_type=sample_and_epsilon", "teacher.conditional=true"]
    assert run(tmp_path, *data, *options, "evaluate.features=[pixels]") == 0
    folder = tmp_path / "run"
    network = load_teacher(folder / "teacher").denoiser.network
    assert (network.config["in_channels"], network.config["out_channels"]) == (4, 8)
    student = json.loads((folder / "student" / "model" / "config.json").read_text())
    assert student["backbone_config"]["out_channels"] == 4
    assert student["preconditioning"]["prediction_type"] == "sample"
    metrics = json.loads((folder / "report" / "metrics.json").read_text())
    assert metrics["reference"]["count"] == 24
    out = tmp_path / "x.npz"
    assert main(["sample", str(folder), "--num", "3", "--label", "1", "--out", str(out)]) == 0
    assert np.load(out)["arr_0"].shape == (3, 8, 8, 4)
    assert np.load(out)["arr_1"].tolist() == [1, 1, 1]


def test_a_student_learns_by_the_perceptual_distance(tmp_path: Path) -> None:
    """Its first loss is VGG16's distance between the untrained student and the trajectories."""
    torch.manual_seed(0)
    vgg = VGG16Distance()
    weights = {k: v.contiguous() for k, v in vgg.state_dict().items() if k.startswith("features.")}
    save_file(weights, tmp_path / "vgg16.safetensors")
    images = (seeded((20, 16, 16, 3)) * 60 + 128).clamp(0, 255).to(torch.uint8).numpy()
    np.savez(tmp_path / "images.npz", images=images)
    options = [
        *("data.source=npz", f"data.path={tmp_path / 'images.npz'}"),
        *("train.loss=lpips_vgg", f"train.vgg16={tmp_path / 'vgg16.safetensors'}"),
        *("train.weight=flat", "train.steps=1", "train.log_every=1", "train.batch_size=2"),
    ]
    folder = stages(tmp_path, *options)
    record = json.loads((folder / "student" / "history.json").read_text())["history"][0]

    from dsno.runs.build import new_operator
    from dsno.runs.locate import saved_recipe

    recipe = saved_recipe(folder)
    operator = new_operator(recipe, load_teacher(folder / "teacher"))
    rows = seeds.batch_items(recipe.seed, 0, 2, 12).tolist()
    shards = [load_file(p) for p in sorted((folder / "trajectories").glob("shard-*"))]
    noise = torch.stack([shards[i // 8]["noise"][i % 8] for i in rows]).float()
    states = torch.stack([shards[i // 8]["states"][i % 8] for i in rows]).float()
    with torch.no_grad():
        predicted = operator(noise)
        expected = [float(vgg(predicted[:, m], states[:, m]).mean()) for m in range(4)]
    assert record["per_time"] == pytest.approx(expected, rel=1e-4)
    assert record["loss"] == pytest.approx(sum(expected) / 4, rel=1e-4)


def test_trajectories_are_compared_every_so_many_steps(tmp_path: Path) -> None:
    options = ("train.steps=4", "train.log_every=1", "train.trajectory_every=3")
    options += ("evaluate.features=[pixels]",)
    assert run(tmp_path, *options) == 0
    folder = tmp_path / "run"
    history = json.loads((folder / "student" / "history.json").read_text())["history"]
    assert ["per_time" in row for row in history] == [True, False, False, True]
    assert (folder / "report" / "figures" / "losses.png").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data=null"], "needs `data`"),
        (["teacher.network=null"], "lacks 'teacher.network'"),
        (["teacher.label_dropout=0.1"], "needs `teacher.conditional`"),
        (["data.source=folder", "data.path=none"], "none"),
        (["data.source=npz"], "path"),
        (["collect.count=null"], "lacks 'collect.count'"),
        (["train.loss=lpips_vgg"], "train.vgg16"),
        (["collect.guidance_scale=3"], "'no condition'"),
        (["collect.guidance_scale=[3.0]"], "'collect.guidance_scale'"),
        (["collect.prompts=[a]"], "not conditioned on text"),
        (["data.size=4"], "'data.size' should be"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_any_work(
    overrides: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *overrides) == 2
    text = capsys.readouterr().err.strip()
    assert says in text
    assert "\n" not in text
    assert not (tmp_path / "run").exists()
