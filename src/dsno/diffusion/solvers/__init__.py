"""Solvers of the probability-flow ODE, with output at chosen times.

With D the denoiser and the state written as x = alpha x_0 + sigma eps, the ODE keeps x_0 and eps
"frozen" over a step. All methods but `heun` step

    x_t = (sigma_t / sigma_s) x_s + (alpha_t - alpha_s sigma_t / sigma_s) D

with D = D(x_s, s) for `ddim` (Song et al., arXiv 2010.02502, eq. 12 with eta = 0), D extrapolated
from two steps in log-SNR for `dpm++2m` (Lu et al., arXiv 2211.01095, algorithm 2), and for `unipc`
the same step taken a second time with the D found at its end (Zhao et al., arXiv 2302.04867). This
form is finite at alpha = 0 and at sigma = 0. `heun` integrates y = x / sqrt(alpha^2 + sigma^2) in
the angle atan2(sigma, alpha), where

    dy / d angle = (cos(angle) y - D) / sin(angle),

which has no singularity at pure noise, unlike sigma/alpha. The step into t = 0 is first order for
every method: there D = x_0 and the derivative is 0/0.

Where to step and where to save are separate: steps are allotted to the segments between the asked
times, evenly in the spacing's variable, so every output is the end of a step and carries no
interpolation error.
"""

from dsno.diffusion.solvers.methods import METHODS, Method, evaluations
from dsno.diffusion.solvers.solution import OnStep, Solution, solve
from dsno.diffusion.solvers.step_grid import step_times
from dsno.diffusion.solvers.steps import Node, Step, jump, nodes

__all__ = [
    "METHODS",
    "Method",
    "Node",
    "OnStep",
    "Solution",
    "Step",
    "evaluations",
    "jump",
    "nodes",
    "solve",
    "step_times",
]
