"""Methods that need nothing of earlier steps: DDIM and Heun."""

from __future__ import annotations

import math

from torch import Tensor

from dsno.diffusion.solvers.steps import Step, jump


def ddim(x: Tensor, step: Step) -> Tensor:
    """D frozen at the step's start (arXiv 2010.02502, eq. 12 with eta = 0)."""
    return jump(x, step.denoise(x, step.start), step.start, step.end)


def heun(x: Tensor, step: Step) -> Tensor:
    """Heun's rule in the angle atan2(sigma, alpha); the step into t = 0 is DDIM's."""
    start, end = step.start, step.end
    denoised = step.denoise(x, start)
    if step.is_last:
        return jump(x, denoised, start, end)
    scale, end_scale = math.hypot(start.alpha, start.sigma), math.hypot(end.alpha, end.sigma)
    h = end.angle - start.angle

    def slope(y: Tensor, d: Tensor, angle: float) -> Tensor:
        return (math.cos(angle) * y - d) / math.sin(angle)

    y = x / scale
    first = slope(y, denoised, start.angle)
    guess = y + h * first
    second = slope(guess, step.denoise(guess * end_scale, end), end.angle)
    return (y + h / 2 * (first + second)) * end_scale
