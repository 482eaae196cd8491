"""Solvers of the probability-flow ODE, with output at chosen times.

With D the denoiser and the state written as x = alpha x_0 + sigma eps, the ODE keeps x_0 and eps
"frozen" over a step. `ddim` and `dpm++2m` step

    x_t = (sigma_t / sigma_s) x_s + (alpha_t - alpha_s sigma_t / sigma_s) D

with D = D(x_s, s) for `ddim` (Song et al., arXiv 2010.02502, eq. 12 with eta = 0) and D
extrapolated from two steps in log-SNR for `dpm++2m` (Lu et al., arXiv 2211.01095, algorithm 2).
This form is finite at alpha = 0 and at sigma = 0. `heun` integrates y = x / sqrt(alpha^2 + sigma^2)
in the angle atan2(sigma, alpha), where

    dy / d angle = (cos(angle) y - D) / sin(angle),

which has no singularity at pure noise, unlike sigma/alpha. The step into t = 0 is first order for
every method: there D = x_0 and the derivative is 0/0.

Where to step and where to save are separate: steps are allotted to the segments between the asked
times, evenly in the spacing's variable, so every output is the end of a step and carries no
interpolation error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import CountingDenoiser, DenoiserProtocol
from dsno.diffusion.schedules import NoiseSchedule, signal_and_noise
from dsno.diffusion.time_grids import Spacing
from dsno.recipes.choices import Solver
from dsno.support.errors import InputError, one_of
from dsno.support.scalars import whole

MERGE = 1e-6
"""Asked times closer than this share one state: multistep ratios explode over tiny steps."""


@dataclass(frozen=True)
class Solution:
    """States of the ODE at the asked times.

    Attributes:
        times: (M,), float64, as asked.
        states: (batch, M, *shape).
        nfe: network evaluations spent per sample.
    """

    times: Tensor
    states: Tensor
    nfe: int


@dataclass(frozen=True)
class Node:
    """One time of the step grid with its coefficients, in double precision."""

    t: Tensor
    alpha: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        """log(alpha / sigma); infinite at the ends of some schedules."""
        if self.alpha == 0:
            return -math.inf
        return math.inf if self.sigma == 0 else math.log(self.alpha / self.sigma)

    @property
    def angle(self) -> float:
        """atan2(sigma, alpha)."""
        return math.atan2(self.sigma, self.alpha)


@dataclass
class Step:
    """What a step function may use: the denoiser, both ends and the last denoised estimate."""

    denoise: Callable[[Tensor, Node], Tensor]
    start: Node
    end: Node
    previous: tuple[Node, Tensor] | None = None

    @property
    def is_last(self) -> bool:
        """Whether the step ends at the clean sample."""
        return self.end.sigma == 0


def jump(x: Tensor, denoised: Tensor, start: Node, end: Node) -> Tensor:
    """The exact solution over a step if D were constant."""
    ratio = end.sigma / start.sigma
    return ratio * x + (end.alpha - start.alpha * ratio) * denoised


def _ddim(x: Tensor, step: Step) -> Tensor:
    return jump(x, step.denoise(x, step.start), step.start, step.end)


def _dpm_solver_2m(x: Tensor, step: Step) -> Tensor:
    denoised = step.denoise(x, step.start)
    estimate = denoised
    if step.previous is not None and not step.is_last:
        before, last = step.previous
        h = step.end.half_log_snr - step.start.half_log_snr
        h_last = step.start.half_log_snr - before.half_log_snr  # infinite from pure noise: weight 0
        weight = h / (2 * h_last)
        estimate = (1 + weight) * denoised - weight * last
    step.previous = (step.start, denoised)
    return jump(x, estimate, step.start, step.end)


def _heun(x: Tensor, step: Step) -> Tensor:
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


@dataclass(frozen=True)
class Method:
    """A step function, its order of convergence and its evaluations per step."""

    step: Callable[[Tensor, Step], Tensor]
    order: int
    evaluations: int = 1


METHODS: dict[Solver, Method] = {
    "ddim": Method(_ddim, order=1),
    "heun": Method(_heun, order=2, evaluations=2),
    "dpm++2m": Method(_dpm_solver_2m, order=2),
}


def evaluations(method: str, steps: int) -> int:
    """Network evaluations of a solution to t = 0; every method's last step costs one."""
    return 1 + (steps - 1) * METHODS[one_of(method, METHODS, "solver")].evaluations


def step_times(times: Tensor, steps: int, spacing: Spacing) -> Tensor:
    """The step grid from 1 down to the last of `times`, which are all on it.

    `steps` are shared among the segments between the asked times in proportion to their length in
    the spacing variable (largest remainder, at least one each). `times`: strictly falling, float64.

    Raises:
        InputError: if there are fewer steps than segments.
    """
    ends = torch.cat([times.new_ones(1), times[times < 1]])
    segments = len(ends) - 1
    if steps < segments:
        raise InputError(
            f"{steps} solver steps cannot reach {segments} separate times; "
            f"ask for at least {segments}."
        )
    positions = spacing.position(ends)
    if positions[0] == positions[-1]:  # all beyond karras' largest sigma: step evenly in time
        spacing, positions = Spacing("uniform", spacing.schedule), ends
    lengths = positions[:-1] - positions[1:]
    share = lengths / lengths.sum() * steps
    counts = share.floor().long().clamp(min=1)
    while int(counts.sum()) != steps:
        gap = share - counts
        if int(counts.sum()) < steps:
            counts[gap.argmax()] += 1
        else:
            counts[torch.where(counts > 1, gap, math.inf).argmin()] -= 1
    grid = [ends[:1]]
    for i, count in enumerate(counts.tolist()):
        u = torch.lerp(positions[i], positions[i + 1], torch.arange(1, count + 1).double() / count)
        piece = spacing.time(u)
        piece[-1] = ends[i + 1]
        grid.append(piece)
    return torch.cat(grid)


def nodes(schedule: NoiseSchedule, times: Tensor) -> list[Node]:
    """The coefficients at every time; t = 0 is the clean end, alpha = 1 and sigma = 0."""
    alphas, sigmas = signal_and_noise(schedule, times)
    return [
        Node(t, a, s)
        for t, a, s in zip(times.double(), alphas.tolist(), sigmas.tolist(), strict=True)
    ]


@torch.no_grad()
def solve(
    denoiser: DenoiserProtocol,
    noise: Float[Tensor, "batch *shape"],
    times: Float[Tensor, " M"] | None = None,
    *,
    method: str = "dpm++2m",
    steps: int = 16,
    spacing: str = "uniform",
    condition: Condition | None = None,
) -> Solution:
    """Solve the probability-flow ODE from x_1 = sigma(1) noise and return it at `times`.

    Args:
        denoiser: the teacher.
        noise: unit normal, (batch, *shape). The state is kept in float64 if the noise is, and in
            float32 otherwise, whatever precision the network runs in.
        times: (M,) in [0, 1], in any order; the sample alone (t = 0) if None.
        method: one of `METHODS`.
        steps: number of steps from t = 1 to the smallest asked time.
        spacing: how the steps are spread, see `Spacing`.
        condition: passed to the denoiser.

    Raises:
        InputError: for an unknown method or spacing, times outside [0, 1], or a number of steps
            that is too small or no whole number.
    """
    rule = METHODS[one_of(method, METHODS, "solver")]
    steps = whole(steps, "number of solver steps")
    schedule = denoiser.schedule
    asked = torch.zeros(1, dtype=torch.float64) if times is None else times.double().cpu()
    if asked.ndim != 1 or len(asked) == 0 or not bool(((asked >= 0) & (asked <= 1)).all()):
        raise InputError("The times to solve for must be a non-empty list of numbers in [0, 1].")

    distinct: list[float] = []
    merged = {}
    for t in sorted(asked.tolist(), reverse=True):  # equal or nearly equal times share one state
        near = [d for d in (1.0, *distinct[-1:]) if d - t < MERGE]
        merged[t] = near[-1] if near else t
        if not near:
            distinct.append(t)
    if distinct and 0 < distinct[-1] < MERGE:
        merged = {t: 0.0 if s == distinct[-1] else s for t, s in merged.items()}
        distinct[-1] = 0.0

    dtype = torch.float64 if noise.dtype == torch.float64 else torch.float32
    start = nodes(schedule, torch.ones(1))[0]
    x = noise.to(dtype) * start.sigma
    saved = {1.0: x}
    counting = CountingDenoiser(denoiser)
    if distinct:
        grid = step_times(
            torch.tensor(distinct, dtype=torch.float64), steps, Spacing(spacing, schedule)
        )
        step = Step(lambda y, node: counting(y, node.t, condition).to(dtype), start, start)
        ends = set(distinct)
        for node in nodes(schedule, grid)[1:]:
            step.start, step.end = step.end, node
            x = rule.step(x, step)
            if float(node.t) in ends:
                saved[float(node.t)] = x
    states = torch.stack([saved[merged[t]] for t in asked.tolist()], dim=1)
    return Solution(asked, states, counting.nfe)
