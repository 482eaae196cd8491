"""How trajectories look: the student's beside the solver's, and their spectrum in time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsno.diffusion.denoisers import DenoiserProtocol
from dsno.diffusion.solvers import solve
from dsno.diffusion.time_grids import Spacing, grid_times
from dsno.evaluation.samplers import Decode, Draws, as_is
from dsno.operator.dsno import DSNO


@torch.no_grad()
def trajectory_arrays(
    denoiser: DenoiserProtocol,
    operator: DSNO,
    draws: Draws,
    decode: Decode = as_is,
    *,
    count: int = 8,
    points: int = 9,
    steps: int = 64,
) -> dict[str, Tensor]:
    """The same trajectories by the solver and the operator, also at times between its own."""

    def shown(states: Tensor) -> Tensor:
        images = decode(states.flatten(0, 1)).cpu()
        return images.reshape(*states.shape[:2], *images.shape[1:])

    noise, condition = draws.batch(range(count))
    times = torch.cat(
        [torch.ones(1, dtype=torch.float64), grid_times(operator.spacing, points - 1)]
    )
    solution = solve(denoiser, noise, times, steps=steps, condition=condition)
    return {
        "trajectory_times": times.float(),
        "teacher_trajectory": shown(solution.states),
        "student_trajectory": shown(operator(noise, condition, times)),
    }


def power_spectrum(
    denoiser: DenoiserProtocol,
    spacing: Spacing,
    draws: Draws,
    *,
    count: int = 128,
    points: int = 32,
) -> dict[str, Any]:
    """Mean power of trajectories in each temporal Fourier mode, over pixels and samples.

    The states at t = g(m / points) are transformed along m; power is relative to the whole.
    """
    noise, condition = draws.batch(range(count))
    solution = solve(
        denoiser, noise, grid_times(spacing, points), steps=points, condition=condition
    )
    coefficients = torch.fft.rfft(solution.states.cpu().double().flatten(2), dim=1, norm="forward")
    power = coefficients.abs().square().mean((0, 2))
    power[1 : (points + 1) // 2] *= 2  # both signs of the frequency
    return {"modes": list(range(len(power))), "power": (power / power.sum()).tolist()}
