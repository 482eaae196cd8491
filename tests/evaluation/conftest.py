"""The teacher in closed form, its data and the reference made of them."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.mixture import mixture

from dsno.data.dataset import Dataset
from dsno.diffusion.analytic import GaussianMixture
from dsno.evaluation.reference import Reference, build_reference


@pytest.fixture(scope="module")
def teacher() -> GaussianMixture:
    """`mixture`, built once."""
    return mixture()


@pytest.fixture(scope="module")
def data(teacher: GaussianMixture) -> Dataset:
    images = teacher.sample(3000, torch.Generator().manual_seed(0)).float()
    return Dataset("mixture", images, torch.zeros(3000, dtype=torch.int64), 2)


@pytest.fixture(scope="module")
def reference(data: Dataset) -> Reference:
    return build_reference(data, ["pixels"], seed=0)
