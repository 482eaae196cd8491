"""The saved model and the pipeline that samples it in one call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.pipeline import DSNOModel, DSNOPipeline, save_pipeline
from dsno.support.errors import InputError

LIFT = LiftConfig(["down_blocks.*.resnets.*", "mid_block.attentions.0", "up_blocks.*.resnets.*"])
FREQUENCIES = [0.0, 0.25, 0.75]


@pytest.fixture
def make(unet_teacher: Any) -> Any:
    """Make a pipeline of a tiny random operator whose temporal layers matter."""

    def pipeline(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 0) -> DSNOPipeline:
        labels = {"class_labels": torch.zeros(1, dtype=torch.int64)} if classes else None
        teacher = unet_teacher(shape, num_classes=classes or None)
        operator = DSNO.from_teacher(teacher, LIFT, condition=labels, output="state").eval()
        for part in operator.lifted.temporal.parameters():
            torch.nn.init.normal_(part, std=0.05)
        frequencies = FREQUENCIES if classes else None
        return DSNOPipeline(DSNOModel.from_operator(operator, class_frequencies=frequencies))

    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("classes", [0, 3])
def test_a_saved_pipeline_comes_back_to_the_last_bit(
    classes: int, make: Any, tmp_path: Path
) -> None:
    pipeline, noise = make(classes=classes), torch.randn(3, 1, 8, 8)
    save_pipeline(pipeline.model, tmp_path)
    again = DSNOPipeline.from_pretrained(tmp_path)
    call = {"noise": noise, "output_type": "pt", "return_trajectory": True}
    if classes:
        call["class_labels"] = [0, 2, 1]
    first, second = pipeline(**call), again(**call)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.trajectory, second.trajectory)
    assert again.model.config.class_frequencies == (FREQUENCIES if classes else None)
    assert not again.model.training
    for (name, one), (_, other) in zip(
        pipeline.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name


def test_the_folder_names_the_modules_it_needs_and_holds_no_pickle(
    make: Any, tmp_path: Path
) -> None:
    """The module paths are API: moving a class breaks every folder saved before."""
    save_pipeline(make().model, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] in ("DSNOPipeline", ["dsno.pipeline", "DSNOPipeline"])
    assert index["model"] == ["dsno.pipeline", "DSNOModel"]
    files = sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file())
    assert files == [
        "model/config.json",
        "model/diffusion_pytorch_model.safetensors",
        "model_index.json",
    ]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["preconditioning"]["schedule"]["name"] == "cosine"
    assert config["slices"] == 4


def test_the_pipeline_samples_the_operator_it_was_made_of(unet_teacher: Any) -> None:
    operator, noise = DSNO.from_teacher(unet_teacher(), LIFT), torch.randn(2, 1, 8, 8)
    images = DSNOPipeline(DSNOModel.from_operator(operator))(noise=noise, output_type="pt").images
    with torch.no_grad():
        assert torch.equal(images, operator.sample(noise))


def test_a_model_can_be_saved_and_loaded_on_its_own(make: Any, tmp_path: Path) -> None:
    model, noise = make().model, torch.randn(2, 1, 8, 8)
    model.save_pretrained(tmp_path)
    again = DSNOModel.from_pretrained(tmp_path)
    assert torch.equal(again(noise), model(noise))
    times = torch.tensor([0.8, 0.3])
    assert torch.equal(again(noise, times=times), model(noise, times=times))


def test_the_batch_is_as_large_as_asked_or_given(make: Any) -> None:
    pipeline = make(classes=3)
    assert len(pipeline().images) == 1
    assert len(pipeline(batch_size=3).images) == 3
    assert len(pipeline(class_labels=[2, 1]).images) == 2
    assert len(pipeline(noise=torch.randn(4, 1, 8, 8)).images) == 4


def test_a_generator_decides_noise_and_labels(make: Any) -> None:
    pipeline = make(classes=3)
    one, same, other = (
        pipeline(batch_size=8, generator=seeded(s), output_type="pt") for s in (1, 1, 2)
    )
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.class_labels, same.class_labels)
    assert not torch.equal(one.images, other.images)


def test_labels_not_asked_for_are_drawn_with_the_datas_frequencies(make: Any) -> None:
    drawn = make(classes=3)(batch_size=400, generator=seeded(), output_type="pt").class_labels
    counts = torch.bincount(drawn, minlength=3)
    assert counts[0] == 0
    assert abs(int(counts[2]) - 300) < 4 * (400 * 0.25 * 0.75) ** 0.5


def test_labels_may_be_a_number_a_list_or_a_tensor(make: Any) -> None:
    pipeline, noise = make(classes=3), torch.randn(2, 1, 8, 8)
    results = [
        pipeline(noise=noise, class_labels=labels, output_type="pt")
        for labels in (
            2,
            [2, 2],
            np.array([2, 2]),
            torch.tensor([2, 2]),
            torch.tensor(2),
        )
    ]
    for result in results:
        assert torch.equal(result.images, results[0].images)
        assert result.class_labels.tolist() == [2, 2]
    other = pipeline(noise=noise, class_labels=[2, 1], output_type="pt").images
    torch.testing.assert_close(other[0], results[0].images[0])
    assert not torch.allclose(other[1], results[0].images[1], atol=1e-4)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_output_types(channels: int, mode: str, make: Any) -> None:
    pipeline, noise = make((channels, 8, 8)), torch.randn(2, channels, 8, 8)
    tensor, array, pictures = (
        pipeline(noise=noise, output_type=kind).images for kind in ("pt", "np", "pil")
    )
    assert tensor.shape == (2, channels, 8, 8)
    expected = ((tensor.permute(0, 2, 3, 1) + 1) / 2).clamp(0, 1).numpy()
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, expected, atol=0.5 / 255 + 1e-6)
    assert all(isinstance(p, Image.Image) and p.mode == mode for p in pictures)
    pixels = np.asarray(pictures[1]).reshape(8, 8, channels)
    np.testing.assert_array_equal(pixels, (array[1] * 255).round().astype(np.uint8))


def test_the_trajectory_ends_in_the_sample(make: Any) -> None:
    result = make()(batch_size=2, output_type="pt", return_trajectory=True)
    assert result.trajectory.shape == (2, 4, 1, 8, 8)
    assert result.times.tolist() == [0.5625, 0.25, 0.0625, 0]
    assert torch.equal(result.trajectory[:, -1], result.images)


def test_the_trajectory_may_be_asked_at_any_times(make: Any) -> None:
    pipeline, noise = make(), torch.randn(2, 1, 8, 8)
    call = {"noise": noise, "output_type": "pt", "return_trajectory": True}
    trained, asked = pipeline(**call), pipeline(**call, times=[1.0, 0.25, 0.1, 0.05, 0.0])
    assert asked.trajectory.shape == (2, 5, 1, 8, 8)
    assert asked.times.tolist() == [1.0, 0.25, 0.1, 0.05, 0.0]
    torch.testing.assert_close(asked.images, trained.images, rtol=0, atol=1e-5)
    for here, there in ((1, 1), (4, 3)):
        torch.testing.assert_close(
            asked.trajectory[:, here], trained.trajectory[:, there], atol=1e-5, rtol=1e-4
        )


def test_a_pipeline_runs_in_half_precision(make: Any) -> None:
    pipeline, noise = make(), torch.randn(2, 1, 8, 8)
    exact = pipeline(noise=noise, output_type="pt").images
    rough = pipeline.to(torch.bfloat16)(noise=noise, output_type="pt").images
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize(
    ("classes", "call", "message"),
    [
        (0, {"batch_size": 0}, "at least 1, not 0"),
        (0, {"class_labels": 1}, "unconditional"),
        (0, {"output_type": "pli"}, "'pil'"),
        (0, {"noise": torch.zeros(2, 1, 8, 8), "batch_size": 3}, "batch_size 3, noise 2"),
        (0, {"noise": torch.zeros(2, 3, 8, 8)}, r"\(1, 8, 8\), but the noise has \(3, 8, 8\)"),
        (0, {"return_trajectory": True, "times": [2.0]}, r"in \[0, 1\]"),
        (3, {"class_labels": [0, 3]}, "Class 3 is out of range.*0 to 2"),
        (3, {"class_labels": -1}, "Class -1 is out of range"),
        (3, {"class_labels": torch.tensor([1.7])}, "whole numbers"),
        (3, {"class_labels": [0, 1], "batch_size": 3}, "class_labels 2"),
    ],
)
def test_an_impossible_request_is_refused(
    classes: int, call: dict[str, Any], message: str, make: Any
) -> None:
    with pytest.raises(InputError, match=message):
        make(classes=classes)(**call)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model_index\.json.*dsno train"):
        DSNOPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name", ["model_index.json", "model/config.json", "model/diffusion_pytorch_model.safetensors"]
)
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_model_is_refused_in_one_sentence(
    name: str, damage: str, make: Any, tmp_path: Path
) -> None:
    save_pipeline(make().model, tmp_path)
    file = tmp_path / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else file.stat().st_size // 2])
    with pytest.raises(InputError) as caught:
        DSNOPipeline.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_backbone_the_package_cannot_build_is_refused(make: Any) -> None:
    config = {k: v for k, v in dict(make().model.config).items() if not k.startswith("_")}
    with pytest.raises(InputError, match="class .UNet3DModel. is not known"):
        DSNOModel(**{**config, "backbone": "UNet3DModel"})
