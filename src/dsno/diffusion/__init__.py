"""The mathematics of diffusion: schedules, time grids, denoisers, solvers, exact teachers.

Plain functions of tensors, each tested against a closed form. Nothing here knows of files, recipes
or training.
"""

from dsno.diffusion.analytic import Gaussian, GaussianMixture
from dsno.diffusion.denoisers import Denoiser
from dsno.diffusion.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
)
from dsno.diffusion.solvers import Solution, solve

__all__ = [
    "BetaSchedule",
    "CosineSchedule",
    "Denoiser",
    "EDMSchedule",
    "Gaussian",
    "GaussianMixture",
    "NoiseSchedule",
    "RectifiedFlowSchedule",
    "Solution",
    "solve",
]
