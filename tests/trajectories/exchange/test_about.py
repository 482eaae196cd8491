"""What an export says of itself, and the types that lose nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.trajectories.exchange.stores import manifest

from dsno.diffusion.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
)
from dsno.support.errors import InputError
from dsno.trajectories.exchange.about import About, fastgen_times, narrowest
from dsno.trajectories.exchange.state_arrays import to_arrays, to_tensors


def about(stored: str, dtype: str, scale: float) -> About:
    """Pairs, whose noise is multiplied by `scale`."""
    made = manifest(
        "none", EDMSchedule(), times=(0.0,), scales=(1.0,), dtype=stored, sample_shape=(1024,)
    )
    return About("npz", made, dtype, True, scale, {}, None, None)  # type: ignore[arg-type]


def came_back(stored: str, scale: float, noise: torch.Tensor) -> torch.Tensor:
    """The noise after an export in the narrowest type and an import."""
    made = about(stored, narrowest(stored, [scale]), scale)
    rows = noise.reshape(-1, 1024)
    states = torch.zeros(len(rows), 1, 1024, dtype=noise.dtype)
    arrays = to_arrays(made, {"noise": rows, "states": states}, range(len(rows)), "here")
    return to_tensors(made, arrays)["noise"].flatten()


@pytest.mark.parametrize("scale", [80.0, math.sqrt(0.5), 0.9977, 1 - 1e-9, 1 + 1e-4])
def test_every_float16_number_comes_back(scale: float) -> None:
    """All 63,488 finite ones, subnormal ones and both zeros too."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    noise = torch.from_numpy(every[np.isfinite(every)].copy())
    assert torch.equal(
        came_back("float16", scale, noise).view(torch.int16), noise.view(torch.int16)
    )


@pytest.mark.parametrize("scale", [80.0, math.sqrt(0.5), 1 - 1e-9])
def test_float32_numbers_come_back(scale: float) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 2**16, dtype=np.uint32)
    noise = torch.from_numpy(np.nan_to_num(bits.view(np.float32), posinf=0, neginf=0))
    assert torch.equal(
        came_back("float32", scale, noise).view(torch.int32), noise.view(torch.int32)
    )


@pytest.mark.parametrize(
    ("stored", "scale", "needs"),
    [
        ("float16", 1.0, "float16"),
        ("float16", 1 + 2**-13, "float16"),
        ("float16", 1 + 2**-12, "float32"),
        ("float32", 1 - 2**-26, "float32"),
        ("float32", 1 - 2**-24, "float64"),
    ],
)
def test_a_scale_of_1_needs_no_wider_type(stored: str, scale: float, needs: str) -> None:
    assert narrowest(stored, [1.0, scale]) == needs


def test_a_state_that_is_too_large_for_the_type_is_named() -> None:
    noise, states = torch.full((2, 1024), 60000.0).half(), torch.zeros(2, 1, 1024).half()
    noise[0] = 1
    with pytest.raises(InputError, match="Trajectory 9 in there holds values that are not finite"):
        to_arrays(
            about("float16", "float16", 80.0), {"noise": noise, "states": states},
            range(8, 10), "there",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        # arXiv 2206.00364, eq. 5
        (EDMSchedule(), (80.0, ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7, 0.002)),
        (RectifiedFlowSchedule(), (0.999, 0.5, 0.0)),
        (BetaSchedule(timesteps=1000), (0.999, 0.4995, 0.0)),
        (BetaSchedule(timesteps=100), (0.99, 0.495, 0.0)),
        (CosineSchedule(), None),
    ],
)
def test_times_are_those_of_fastgens_schedules(
    schedule: NoiseSchedule, times: tuple[float, ...] | None
) -> None:
    found = fastgen_times(schedule, (1.0, 0.5, 0.0))
    assert found == (None if times is None else pytest.approx(times))
