"""Fresh U-Net teachers: shapes, saving, loading, damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.schedules import SCHEDULES, BetaSchedule
from dsno.support.errors import InputError
from dsno.teachers.store import DESCRIPTION, Teacher, denoiser_of, load_teacher, save_teacher
from dsno.teachers.unet import build_unet
from dsno.teachers.weights import strict_load


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 8, 4), (3, 16, 16), (4, 4, 8)])
@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 8, 16)])
def test_any_image_shape_passes_through(
    shape: tuple[int, int, int], channels: tuple[int, ...], unet_teacher: Any
) -> None:
    teacher = unet_teacher(shape, channels=channels)
    assert teacher.sample_shape == shape
    x = torch.randn(2, *shape)
    denoised = teacher(x, torch.tensor([0.2, 0.9]))
    assert denoised.shape == x.shape
    assert denoised.isfinite().all()


def test_options_reach_the_network() -> None:
    network = build_unet(
        (1, 8, 8),
        channels=(8, 16),
        layers_per_block=2,
        attention=(False, True),
        middle_attention=False,
        norm_num_groups=4,
        time_scale_shift=False,
        dropout=0.3,
        num_classes=5,
    )
    config = network.config
    assert config.down_block_types == ("DownBlock2D", "AttnDownBlock2D")
    assert config.up_block_types == ("AttnUpBlock2D", "UpBlock2D")
    assert len(network.down_blocks[0].resnets) == 2
    assert network.mid_block.attentions[0] is None
    assert config.resnet_time_scale_shift == "default"
    assert network.down_blocks[0].resnets[0].dropout.p == 0.3
    assert network.class_embedding.num_embeddings == 5


def test_the_time_embedding_is_the_official_one() -> None:
    """sin and cos of 1000 x angle times 10000^(-i / (half - 1)), sine first."""
    projection = build_unet((1, 8, 8), channels=(8,)).time_proj
    t, half = torch.tensor([0.0, 3.5, 999.0]), projection.num_channels // 2
    rates = 10_000 ** (-torch.arange(half) / (half - 1))
    expected = torch.cat([(t[:, None] * rates).sin(), (t[:, None] * rates).cos()], 1)
    torch.testing.assert_close(projection(t), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2,), {"channels": (8,)}, r"images \(C, H, W\), not samples of shape \(2,\)"),
        ((1, 8, 8), {"channels": ()}, "at least one level"),
        ((1, 8, 8), {"channels": (8, 8), "attention": (True,)}, "1 entries for 2 levels"),
        ((1, 12, 6), {"channels": (8, 8, 8)}, "12x6 cannot be halved 2 times"),
        ((1, 8, 8), {"channels": (8, 12)}, "multiple of norm_num_groups = 8"),
    ],
)
def test_an_impossible_network_is_refused(
    shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_unet(shape, **options)


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        ("epsilon", BetaSchedule(beta_schedule="scaled_linear", timesteps=200)),
        ("v_prediction", BetaSchedule(trained_betas=(0.1, 0.2, 0.3))),
        ("edm", SCHEDULES["edm"]()),
    ],
)
def test_a_saved_teacher_comes_back_to_the_last_bit(
    kind: str, schedule: Any, tmp_path: Path
) -> None:
    network = build_unet((1, 8, 8), channels=(8,), num_classes=3).eval()
    meaning = Preconditioning(schedule, kind, 0.5, "time")
    teacher = denoiser_of(
        network, meaning, (1, 8, 8), clip_sample=1.5, dynamic_threshold=(0.9, 2.0)
    )
    whole = Teacher(teacher, num_classes=2, null_class=2, origin="here")
    save_teacher(whole, tmp_path / "teacher", extra={"note": 1})
    loaded = load_teacher(tmp_path / "teacher")
    assert (loaded.num_classes, loaded.null_class, loaded.origin) == (2, 2, "here")
    again = loaded.denoiser
    assert (again.clip_sample, again.dynamic_threshold) == (1.5, (0.9, 2.0))
    assert again.preconditioning == teacher.preconditioning
    assert again.sample_shape == teacher.sample_shape
    assert not again.network.training
    assert not any(p.requires_grad for p in again.parameters())
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 1.0])
    condition = {"class_labels": torch.tensor([0, 2, 1])}
    network.requires_grad_(False)  # torch picks its convolution by it, even under no_grad
    with torch.no_grad():
        assert torch.equal(again(x, t, condition), teacher(x, t, condition))
    names = sorted(f.name for f in (tmp_path / "teacher").iterdir())
    assert names == ["config.json", DESCRIPTION, "diffusion_pytorch_model.safetensors"]


def test_a_folder_that_is_no_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dsno teacher"):
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.safetensors", "config.json", DESCRIPTION]
)
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_teacher_is_refused_in_one_sentence(
    name: str, damage: str, tmp_path: Path, unet_teacher: Any
) -> None:
    save_teacher(Teacher(unet_teacher()), tmp_path / "teacher")
    file = tmp_path / "teacher" / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else file.stat().st_size // 2])
    with pytest.raises(InputError, match="dsno teacher") as caught:
        load_teacher(tmp_path / "teacher")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"prediction_type": "epsilom"}, {"schedule": {"name": "x"}}])
def test_a_description_that_makes_no_sense_is_refused(
    change: dict[str, Any], tmp_path: Path, unet_teacher: Any
) -> None:
    teacher = unet_teacher()
    save_teacher(Teacher(teacher), tmp_path / "teacher", extra=change)
    with pytest.raises(InputError, match="Unknown"):
        load_teacher(tmp_path / "teacher")


@pytest.mark.parametrize("kind", [torch.int32, torch.complex64])
def test_weights_of_another_kind_are_refused(kind: torch.dtype) -> None:
    layer = torch.nn.Linear(2, 3)
    tensors = {"weight": torch.zeros(3, 2), "bias": torch.zeros(3, dtype=kind)}
    with pytest.raises(InputError, match=r"weight bias in here is of type (int32|complex64)"):
        strict_load(layer, tensors, "here")


def test_loaded_weights_are_float32_and_the_networks_own() -> None:
    """On `meta` too; a file's memory map is not kept."""
    with torch.device("meta"):
        layer = torch.nn.Linear(2, 3)
    given = {"weight": torch.randn(3, 2).half(), "bias": torch.randn(3)}
    strict_load(layer, given, "here")
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, given["weight"].float())
    assert layer.bias.data_ptr() != given["bias"].data_ptr()
