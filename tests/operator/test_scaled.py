"""A denoiser with the guidance scale among its inputs."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.launched import training as work
from torch import Tensor, nn

from dsno.diffusion.conditions import CLASS_LABELS, GUIDANCE_SCALE
from dsno.operator.scaled import ScaledDenoiser
from dsno.support.errors import InputError

LABELS = {CLASS_LABELS: torch.tensor([0, 1])}
X = torch.randn(2, *work.SHAPE, generator=torch.Generator().manual_seed(3))
T = torch.tensor([0.3, 0.8])


@pytest.fixture(scope="module")
def scaled() -> ScaledDenoiser:
    fake = work.matching().model.fake
    assert isinstance(fake, ScaledDenoiser)
    return fake


def at(denoiser: nn.Module, *scales: float) -> Tensor:
    found: Tensor = denoiser(X, T, {**LABELS, GUIDANCE_SCALE: torch.tensor(scales)})
    return found


def test_until_it_is_trained_every_scale_gives_what_the_original_gives(
    scaled: ScaledDenoiser,
) -> None:
    expected = work.labelled_teacher()(X, T, LABELS)
    # kernels may be others for what was added to, if only zeros
    torch.testing.assert_close(at(scaled, 1.0, 4.0), expected, atol=1e-6, rtol=0)


def test_each_row_is_shifted_by_its_own_scale(scaled: ScaledDenoiser) -> None:
    changed = copy.deepcopy(scaled)
    with torch.no_grad():
        for layer in changed.shifts.shifts:
            layer.weight.fill_(0.1)
    low, high = at(changed, 1.0, 1.0), at(changed, 4.0, 4.0)
    torch.testing.assert_close(at(changed, 1.0, 4.0), torch.stack([low[0], high[1]]))
    assert not torch.allclose(low, high)
    assert torch.equal(at(scaled, 1.0, 1.0), at(scaled, 4.0, 4.0))  # the copy has its own


def test_a_missing_scale_is_named(scaled: ScaledDenoiser) -> None:
    with pytest.raises(InputError, match="needs guidance_scale, one number per sample"):
        scaled(X, T, LABELS)
