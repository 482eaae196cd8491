"""What only a forward pass shows is noticed when a teacher is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import makers
from torch import Tensor, nn

from dsno.backbones.autoencoder import Latents
from dsno.diffusion.conditions import CLASS_LABELS, EMBEDDINGS
from dsno.diffusion.denoisers import Denoiser
from dsno.diffusion.schedules import CosineSchedule
from dsno.support.errors import InputError
from dsno.teachers.load import read_teacher
from dsno.teachers.options import TeacherOptions
from dsno.teachers.own import own_teacher
from dsno.teachers.pipelines import diffusers_teacher
from dsno.teachers.store import Teacher, save_teacher
from dsno.teachers.trial import try_out


def four_levels(folder: Path, **options: Any) -> Path:
    """A U-Net that halves its input three times."""
    return makers.ddpm_folder(
        folder,
        block_out_channels=(8,) * 4,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        **options,
    )


def test_a_size_that_the_levels_do_not_divide_is_refused_and_another_can_be_given(
    tmp_path: Path,
) -> None:
    """28 is halved to 14, 7 and 4, and 4 doubled is not 7."""
    folder = four_levels(tmp_path / "saved", sample_size=28, in_channels=1, out_channels=1)
    with pytest.raises(InputError, match=r"sample of 1x28x28 \(RuntimeError: .*image_size=N") as no:
        read_teacher(str(folder), TeacherOptions())
    assert "\n" not in str(no.value)
    read = read_teacher(str(folder), TeacherOptions(image_size=32))
    assert read.denoiser.sample_shape == (1, 32, 32)


def saved_here(folder: Path) -> Path:
    teacher = diffusers_teacher(four_levels(folder / "pipeline"))
    broken = dataclasses.replace(teacher)
    broken.denoiser.sample_shape = (3, 28, 28)
    save_teacher(broken, folder / "teacher")
    return folder / "teacher"


def own(folder: Path) -> Path:
    """The network gives one channel for three."""
    path = folder / "adapter.py"
    path.write_text(
        """
import torch
from dsno import Denoiser
from dsno.diffusion import RectifiedFlowSchedule

class Narrow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 1, 1)

    def forward(self, x, t):
        return self.layer(x)

def teacher():
    schedule = RectifiedFlowSchedule()
    return Denoiser(Narrow(), schedule, prediction_type="flow", sample_shape=(3, 8, 8))
"""
    )
    return path


@pytest.mark.parametrize(
    ("make", "read", "says"),
    [
        (saved_here, read_teacher, r"sample of 3x28x28 \(RuntimeError"),
        (own, lambda path, _: own_teacher(Path(path)), r"sample's shape \(3, 8, 8\).*sample_shape"),
    ],
)
def test_every_source_is_tried(
    make: Callable[[Path], Path], read: Any, says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        read(str(make(tmp_path)), TeacherOptions())


class Recording(nn.Module):
    """Remembers the conditions it is called with."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value, self.seen = value, {}

    def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        self.seen = condition
        return torch.full_like(x, self.value)


def teacher_of(network: nn.Module, **options: Any) -> Teacher:
    made = Denoiser(network, CosineSchedule(), prediction_type="sample", sample_shape=(2, 4, 4))
    return Teacher(made, **options)


def test_the_last_class_and_the_null_class_are_tried() -> None:
    network = Recording()
    teacher = teacher_of(network, num_classes=7, null_class=9)
    assert try_out(teacher, "here") is teacher
    assert network.seen[CLASS_LABELS].tolist() == [6, 9]
    embedding = nn.Embedding(8, 4)

    class Small(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor) -> Tensor:
            return x + embedding(class_labels).sum()

    with pytest.raises(InputError, match="IndexError"):
        try_out(teacher_of(Small(), num_classes=7, null_class=9), "here")


def test_a_prompt_is_tried(tmp_path: Path) -> None:
    """A text encoder of another width than the network's cross-attention."""
    folder = makers.stable_diffusion_folder(tmp_path / "saved")
    teacher = diffusers_teacher(folder)
    network = Recording()
    try_out(dataclasses.replace(teacher_of(network), text=teacher.text), "here")
    assert network.seen[EMBEDDINGS].shape == (1, 6, 8)
    other = dataclasses.replace(diffusers_teacher(folder), text=teacher.text)
    other.denoiser.network = makers.text_unet(width=16)
    with pytest.raises(InputError, match="sample of 4x8x8"):
        try_out(other, "here")


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        try_out(teacher_of(Recording(torch.nan)), "here")


def test_an_autoencoder_of_other_latents_is_refused() -> None:
    with pytest.raises(InputError, match="autoencoder of here cannot decode"):
        try_out(teacher_of(Recording(), latents=Latents(makers.autoencoder(channels=4))), "here")


def test_a_trial_leaves_the_random_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    try_out(teacher_of(Recording()), "here")
    assert torch.equal(torch.random.get_rng_state(), before)
