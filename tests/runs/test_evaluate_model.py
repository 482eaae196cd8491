"""A trained model's folder against real data of any channels and size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageOps
from tests.hub import Hub
from tests.pictures import random_levels, write

from dsno.cli import main
from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.schedules import CosineSchedule
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.pipeline import DSNOModel, save_pipeline
from dsno.recipes.schema import Data
from dsno.runs.evaluate import fitting_data
from dsno.support.errors import InputError
from dsno.teachers.store import denoiser_of
from dsno.teachers.unet import build_unet

SHAPE = (3, 16, 24)


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of grey images of several sizes."""
    folder = tmp_path_factory.mktemp("grey")
    for i, size in enumerate([(16, 24), (20, 60), (40, 24), (8, 12)]):
        write(folder / f"{i}.png", random_levels(*size, 1, seed=i))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one-step model of RGB images that are not square."""
    folder = tmp_path_factory.mktemp("model")
    network = build_unet(SHAPE, channels=(8,), norm_num_groups=4)
    preconditioning = Preconditioning(CosineSchedule(), "v_prediction")
    teacher = denoiser_of(network, preconditioning, SHAPE)
    operator = DSNO.from_teacher(teacher, LiftConfig(["mid_block"]))
    save_pipeline(DSNOModel.from_operator(operator.eval()), folder)
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_model_is_measured_in_the_precision_asked_for(
    model: Path, grey: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [model, "--data", "folder", "--path", grey, "--samples", 6]
    given.append("evaluate.features=[thumbnail]")
    exact, half = (evaluated(capsys, *given, *more) for more in ([], ["--precision", "bf16"]))
    assert exact["arithmetic"] == {"precision": "exact", "compiled": False}
    assert half["arithmetic"] == {"precision": "bf16", "compiled": False}
    distances = [found["frechet_distance"]["thumbnail"] for found in (exact, half)]
    assert distances[0] == pytest.approx(distances[1], rel=0.05)
    assert distances[0] != distances[1]


def test_a_precision_where_nothing_is_sampled_is_refused(
    grey: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [grey, "--data", "folder", "--path", grey]
    for more in (["--precision", "tf32"], ["--compile"]):
        assert "of the network that makes samples, and here none" in refused(capsys, *given, *more)
    assert "go with a trained model or images" in refused(capsys, "digits", "--compile")
    said = refused(capsys, *given, "--precision", "fp8")
    assert "'evaluate.precision' should be 'exact', 'tf32' or 'bf16', not \"fp8\"" in said


def test_samples_are_made_in_the_precision_asked_for(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiled.append(call) or call)
    made = {}
    for name, more in ("exact", []), ("bf16", ["--precision", "bf16", "--compile"]):
        file = str(tmp_path / f"{name}.npz")
        assert main(["sample", str(model), "--num", "2", "--raw", "--out", file, *more]) == 0
        made[name] = np.load(file)["states"]
    assert len(compiled) == 1
    gap = np.abs(made["bf16"] - made["exact"])
    assert made["bf16"].dtype == np.float32
    assert 0 < gap.max() < 0.1
    assert main(["sample", str(model), "--precision", "half"]) == 2
    assert "Unknown precision 'half': known are 'bf16', 'exact', 'tf32'" in capsys.readouterr().err


def by_pillow(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) levels: fitted to `size` (height, width), the centre kept, and made RGB."""
    with Image.open(path) as image:
        fitted = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
        return np.asarray(fitted.convert("RGB"))


def test_grey_images_of_any_size_become_the_models(grey: Path) -> None:
    data = fitting_data(Data(source="folder", path=str(grey)), SHAPE)
    assert data.sample_shape == SHAPE
    levels = ((data.images + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    for i, path in enumerate(sorted(grey.iterdir())):
        assert np.abs(levels[i] - by_pillow(path, SHAPE[1:])).max() <= 1  # of 255


def test_colour_becomes_grey_for_a_grey_model(tmp_path: Path) -> None:
    red = np.zeros((8, 12, 3), np.uint8)
    red[..., 0] = 200
    write(tmp_path / "red.png", red)
    data = fitting_data(Data(source="folder", path=str(tmp_path)), (1, 8, 12))
    luma = 0.299 * 200  # ITU-R BT.601
    assert ((data.images + 1) * 127.5).unique().tolist() == pytest.approx([luma], abs=1)


def test_opaque_images_lose_their_alpha_channel_for_an_rgb_model(tmp_path: Path) -> None:
    opaque = random_levels(8, 12, 4)
    opaque[..., 3] = 255
    write(tmp_path / "opaque.png", opaque)
    data = fitting_data(Data(source="folder", path=str(tmp_path)), (3, 8, 12))
    levels = ((data.images + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(levels[0], opaque[..., :3])


def test_arrays_of_the_models_shape_stay_as_they_are(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 24, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=images)
    data = fitting_data(Data(source="npz", path=str(tmp_path / "a.npz")), SHAPE)
    assert torch.equal(data.images, torch.from_numpy(images).permute(0, 3, 1, 2))


def test_what_the_user_says_goes_before_the_models_shape(grey: Path) -> None:
    for options in {"size": 16}, {"size": (24, 16)}, {"channels": 1}:
        with pytest.raises(InputError, match="makes samples of 3x16x24, but the data"):
            fitting_data(Data(source="folder", path=str(grey), **options), SHAPE)


def test_digits_are_not_stretched_to_another_model() -> None:
    with pytest.raises(InputError, match=r"digits have 1x8x8; say with --data and --path"):
        fitting_data(Data(), SHAPE)
    assert fitting_data(Data(), (1, 8, 8)).sample_shape == (1, 8, 8)


def test_a_model_is_measured_against_a_folder_of_grey_images(
    model: Path, grey: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--samples", "6", "--seed", "1"]
    found = evaluated(capsys, model, "--data", "folder", "--path", grey, *few)
    assert found["samples"] == 6
    assert found["seed"] == 1
    assert found["reference"]["count"] == 4
    assert set(found["frechet_distance"]) == {"thumbnail"}  # 16 * 24 * 3 > 1024
    assert {(w["of"], w["count"], w["dimension"]) for w in found["warnings"]} == {
        ("samples", 6, 192),
        ("reference", 4, 192),
        ("half", 2, 192),
    }
    keys = ["data.source=folder", f"data.path={grey}", "evaluate.samples=6", *few[2:]]
    again = evaluated(capsys, model, *keys, "evaluate.features=[pixels, thumbnail]")
    assert set(again["frechet_distance"]) == {"pixels", "thumbnail"}
    assert again["frechet_distance"]["thumbnail"] == found["frechet_distance"]["thumbnail"]


def test_a_model_of_the_hub_is_what_its_folder_is(
    model: Path,
    grey: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub = Hub(model, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    against = ["--data", "folder", "--path", grey, "--samples", "4"]
    found = evaluated(capsys, "owner/model", *against)
    local = evaluated(capsys, model, *against)
    assert hub.asked
    assert (found.pop("model"), local.pop("model")) == ("owner/model", str(model))
    assert found == local  # the checksum too


def test_options_that_would_do_nothing_are_refused(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "go with a trained model or images" in refused(capsys, "digits", "--samples", "10")
    assert "go with a trained model or images" in refused(capsys, "digits", "--seed", "0")
    assert "--out, --yes and --full go with a recipe" in refused(capsys, model, "--out", "x")


def test_a_dry_run_of_a_model_prints_its_sections(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    keys = ["data.source=folder", "data.path=x", "data.size=[16, 24]", "--samples", "7"]
    assert main(["evaluate", str(model), *keys, "--dry-run"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["source"] == "folder"
    assert printed["data"]["size"] == [16, 24]
    assert printed["evaluate"]["samples"] == 7
    assert "curves" not in printed["evaluate"]
