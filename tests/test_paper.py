"""The paper's two networks, as its recipes build them."""

from __future__ import annotations

import pytest
import torch
from tests.makers import seeded
from torch import nn

from dsno.backbones.registry import backbone_of
from dsno.denoisers import Preconditioning
from dsno.operator import DSNO
from dsno.recipes import load_recipe
from dsno.schedules import CosineSchedule
from dsno.teachers.store import denoiser_of
from dsno.teachers.unet import build_unet


def student(name: str, device: str) -> DSNO:
    """The student of a shipped recipe, its teacher as the authors' (predicts x)."""
    recipe = load_recipe(name)
    assert recipe.teacher.network is not None
    shape, classes = {"cifar10": ((3, 32, 32), None), "imagenet64": ((3, 64, 64), 1000)}[name]
    with torch.device(device):
        network = build_unet(shape, num_classes=classes, **recipe.teacher.network.model_dump())
        teacher = denoiser_of(network, Preconditioning(CosineSchedule(), "sample"), shape)
        labels = None if classes is None else {"class_labels": torch.zeros(1, dtype=torch.long)}
        return DSNO.from_teacher(
            teacher,
            backbone_of(network).sites(network),
            slices=recipe.student.slices,
            modes=recipe.student.modes,
            spacing=recipe.collect.grid,
            output=recipe.student.output,
            condition=labels,
        )


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_the_cifar10_student_has_the_papers_size() -> None:
    operator = student("cifar10", "meta")
    assert len(operator.lifted.sites) == 22
    assert millions(operator.lifted.network) == pytest.approx(60.0, abs=0.05)
    assert millions(operator.lifted.temporal) == pytest.approx(5.77, abs=0.005)
    assert millions(operator) == pytest.approx(65.8, abs=0.05)
    assert operator.times.tolist() == [0.5625, 0.25, 0.0625, 0]


def test_the_imagenet_student_has_the_papers_size() -> None:
    operator = student("imagenet64", "meta")
    assert millions(operator) == pytest.approx(329.2, abs=0.05)
    assert operator.times.tolist() == [0.75, 0.5, 0.25, 0]


def test_a_full_size_cifar10_student_runs() -> None:
    operator = student("cifar10", "cpu").eval()
    with torch.no_grad():
        states = operator(seeded((1, 3, 32, 32)))
    assert states.shape == (1, 4, 3, 32, 32)
    assert states.isfinite().all()


def test_the_recipes_hold_the_papers_settings() -> None:
    cifar, imagenet = load_recipe("cifar10"), load_recipe("imagenet64")
    for recipe in (cifar, imagenet):
        assert recipe.train.weight == "sqrt_snr"
        assert recipe.train.weight_max == 1e4
        assert recipe.train.learning_rate == 2e-4
        assert recipe.train.warmup_steps == 10_000
        assert recipe.train.decay == "milestones"
        assert recipe.train.gamma == 0.5
        assert recipe.train.betas == (0.9, 0.999)
        assert recipe.train.clip_norm is None
        assert recipe.train.ema_decay == 0.9999
        assert recipe.student.modes == 2
        assert recipe.student.output == "state"
        assert recipe.collect.solver == "ddim"
        assert recipe.teacher.clip_sample
    assert (cifar.train.loss, imagenet.train.loss) == ("lpips_vgg", "l1")
    assert (cifar.train.steps, cifar.train.batch_size) == (400_000, 8 * 32)
    assert (imagenet.train.steps, imagenet.train.batch_size) == (480_000 // 4, 64 * 8 * 4)
    assert cifar.train.milestones == (100_000, 200_000, 300_000)
    assert (cifar.collect.steps, cifar.collect.grid) == (512, "quadratic")
    assert (imagenet.collect.steps, imagenet.collect.grid) == (16, "uniform")
    assert (cifar.collect.count, imagenet.collect.count) == (1_000_000, 2_300_000)
    dropouts = [r.teacher.network.dropout for r in (cifar, imagenet) if r.teacher.network]
    assert dropouts == [0.2, 0.1]
