"""The paper's two networks, as its recipes build them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.foreign import CIFAR, IMAGENET, checkpoint, reference, write
from tests.makers import seeded
from torch import Tensor, nn

from dsno.backbones.registry import backbone_of
from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.schedules import CosineSchedule
from dsno.operator.dsno import DSNO
from dsno.recipes import load_recipe
from dsno.runs.build import lift_config
from dsno.teachers.progressive import load_progressive
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
            lift_config(recipe, network),
            spacing=recipe.collect.grid,
            output=recipe.student.output,
            condition=labels,
        )


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_the_cifar10_student_has_the_papers_size() -> None:
    operator = student("cifar10", "meta")
    assert operator(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, 4, 3, 32, 32)
    assert len(operator.lifted.temporal) == 22
    assert millions(operator.lifted.network) == pytest.approx(60.0, abs=0.05)
    assert millions(operator.lifted.temporal) == pytest.approx(5.77, abs=0.005)
    assert millions(operator) == pytest.approx(65.8, abs=0.05)
    assert operator.times.tolist() == [0.5625, 0.25, 0.0625, 0]


def test_the_imagenet_student_has_the_papers_size() -> None:
    operator = student("imagenet64", "meta")
    states = operator(
        torch.zeros(1, 3, 64, 64, device="meta"),
        {"class_labels": torch.zeros(1, dtype=torch.long, device="meta")},
    )
    assert states.shape == (1, 4, 3, 64, 64)
    assert millions(operator) == pytest.approx(329.2, abs=0.05)
    assert operator.times.tolist() == [0.75, 0.5, 0.25, 0]


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


# ---- the whole lifted network, written out ------------------------------------------------


def mixing_by_fft(operator: DSNO, batch: int) -> Callable[[Tensor], Tensor]:
    """u + LeakyReLU(F^-1 (R . F u)) with complex numbers and FFTs, channels last, site by site."""
    names = backbone_of(operator.lifted.network).sites(operator.lifted.network)
    index = {name: i for i, name in enumerate(operator.lifted.config.sites)}
    layers = iter([operator.lifted.temporal[index[name]] for name in names])

    def mix(h: Tensor) -> Tensor:
        layer: Any = next(layers)
        kernels = torch.complex(layer.conv.real.double(), layer.conv.imag.double())
        u = h.reshape(batch, -1, *h.shape[1:])
        spectrum = torch.fft.rfft(u, dim=1)
        kept = [spectrum[:, k] @ kernel for k, kernel in enumerate(kernels)]
        rest = [torch.zeros_like(kept[0])] * (spectrum.shape[1] - len(kept))
        back = torch.fft.irfft(torch.stack([*kept, *rest], 1), n=u.shape[1], dim=1)
        return (u + nn.functional.leaky_relu(back, 0.01)).reshape(h.shape)

    return mix


# What the authors' public code gives on these weights, to the digits shown.
KNOWN = {
    "cifar10": [0.6173, 0.5677, 1.0818, 0.2530],
    "imagenet64": [-0.6592, -0.2455, -0.2327, -0.4398],
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cifar10", {**CIFAR, "channels": (128,) * 3}),
        ("imagenet64", {**IMAGENET, "channels": (128, 128, 256, 384), "head_dim": 64}),
    ],
    ids=["cifar", "imagenet"],
)
def test_the_lifted_network_is_the_papers_written_out(
    name: str, kind: dict[str, Any], tmp_path: Path
) -> None:
    """The whole student of the authors' teachers, with fewer channels and blocks."""
    recipe = load_recipe(name)
    path = write(tmp_path / "checkpoint", checkpoint(**kind))
    teacher = load_progressive(path, sample_size=16)
    labels = torch.tensor([3, 1]) if "classes" in kind else None
    operator = DSNO.from_teacher(
        teacher,
        lift_config(recipe, teacher.network),
        spacing=recipe.collect.grid,
        output=recipe.student.output,
        condition=None if labels is None else {"class_labels": labels[:1]},
    ).eval()
    for i, part in enumerate(operator.lifted.temporal.parameters()):
        part.data = seeded(tuple(part.shape), i) * 0.5 / part.shape[-1] ** 0.5
    noise = seeded((2, 3, 16, 16)).double()
    operator.double()
    with torch.no_grad():
        states = operator(noise, None if labels is None else {"class_labels": labels})
    sigma = math.sin(math.pi / 2 - math.atan(math.exp(-10)))  # of the cosine schedule at t = 1
    angle = math.pi / 2 - 2 * math.atan(math.exp(-10))
    t = operator.times * angle + math.atan(math.exp(-10))
    network = reference(
        checkpoint(**kind),
        kind["attention"],
        (noise * sigma).repeat_interleave(4, 0),
        (t * 2000 / math.pi).float().repeat(2),
        None if labels is None else labels.repeat_interleave(4),
        mixing_by_fft(operator, 2),
    )
    expected = network[:, :3].reshape(2, 4, 3, 16, 16)
    assert expected.std() > 0.3
    torch.testing.assert_close(states, expected, atol=2e-6, rtol=0)
    known = torch.tensor(KNOWN[name]).double()
    torch.testing.assert_close(states[1, :, 2, 5, 7], known, atol=1e-4, rtol=0)
