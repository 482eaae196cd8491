"""What is measured along trajectories."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.mixture import SHAPE, draws

from dsno.diffusion.analytic import Gaussian
from dsno.diffusion.schedules import CosineSchedule
from dsno.diffusion.solvers import solve
from dsno.diffusion.time_grids import Spacing
from dsno.evaluation.trajectories import power_spectrum


def test_the_spectrum_is_the_share_of_power_of_each_temporal_mode() -> None:
    # One Gaussian at 0 with deviation 1: every trajectory stands still, all power is in mode 0.
    still = Gaussian(torch.zeros(SHAPE), torch.ones(SHAPE), CosineSchedule())
    spectrum = power_spectrum(still, Spacing("uniform", still.schedule), draws(), points=8)
    assert spectrum["modes"] == [0, 1, 2, 3, 4]
    assert spectrum["power"] == pytest.approx([1, 0, 0, 0, 0], abs=1e-3)
    moving = Gaussian(torch.full(SHAPE, 3.0), torch.ones(SHAPE), CosineSchedule())
    spectrum = power_spectrum(moving, Spacing("uniform", moving.schedule), draws(), points=8)
    assert sum(spectrum["power"]) == pytest.approx(1)
    states = solve(
        moving,
        draws().batch(range(128))[0],
        torch.arange(7, -1, -1, dtype=torch.float64) / 8,
        steps=8,
    ).states.double()
    total = states.square().mean(1).mean()  # Parseval
    constant = states.mean(1).square().mean()
    assert spectrum["power"][0] == pytest.approx(float(constant / total), rel=1e-4)
