"""What every test shares: one thread, a fixed seed, and tiny networks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import typer.main
from torch import Tensor, nn

from dsno.diffusion.denoisers import Denoiser, Preconditioning
from dsno.diffusion.schedules import CosineSchedule, NoiseSchedule
from dsno.teachers.store import denoiser_of
from dsno.teachers.unet import build_unet

torch.set_num_threads(1)

LONGEST = ("benchmarks", "end_to_end", "training", "operator", "evaluation", "test_pipeline.py")
LONGEST += ("docs", "backbones", "diffusion", "teachers", "cli")
"""Folders and files of the tests that take the longest, which workers begin with."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give workers whole files, as many share what is costly to make."""
    from xdist.scheduler import LoadFileScheduling

    if config.getvalue("dist") != "load":  # the default of -n
        return None
    config.option.loadscopereorder = False  # by number of tests, which says little of time
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave short files for the end, or one worker would be at work alone there."""
    if hasattr(config, "workerinput"):
        rank = {name: i for i, name in enumerate(LONGEST)}

        def order(item: pytest.Item) -> int:
            path = item.path
            return min(rank.get(name, len(rank)) for name in (path.name, path.parent.name))

        items.sort(key=order)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep away from the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSNO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _commands() -> Iterator[None]:
    """Make the tree of commands once, not whenever a command is called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class PointNet(nn.Module):
    """F(x, c_noise[, class_labels]) on points (batch, 2): two hidden layers."""

    def __init__(self, width: int = 32, classes: int = 0) -> None:
        super().__init__()
        self.time = nn.Linear(2, width)
        self.first = nn.Linear(2, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, 2)
        self.labels = nn.Embedding(classes, width) if classes else None

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        told = c_noise[:, None] / 1000
        hidden = self.first(x) + self.time(torch.cat([told, told.square()], 1))
        if self.labels is not None:
            hidden = hidden + self.labels(class_labels)
        hidden = self.second(torch.nn.functional.silu(hidden))
        return self.last(torch.nn.functional.silu(hidden))


@pytest.fixture
def point_net() -> Callable[..., PointNet]:
    """Make an MLP backbone for 2-D points."""
    return PointNet


@pytest.fixture
def unet_teacher() -> Callable[..., Denoiser]:
    """Make a tiny random U-Net teacher; options are `build_unet`'s."""

    def make(
        shape: tuple[int, int, int] = (1, 8, 8),
        prediction_type: str = "v_prediction",
        schedule: NoiseSchedule | None = None,
        **options: Any,
    ) -> Denoiser:
        options = {"channels": (8, 16), "norm_num_groups": 4, **options}
        network = build_unet(shape, **options).eval()
        preconditioning = Preconditioning(schedule or CosineSchedule(), prediction_type)
        return denoiser_of(network, preconditioning, shape)

    return make
