"""The solution of the ODE at the asked times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import CountingDenoiser, DenoiserProtocol
from dsno.diffusion.solvers.methods import METHODS
from dsno.diffusion.solvers.step_grid import step_times
from dsno.diffusion.solvers.steps import Step, nodes
from dsno.diffusion.time_grids import MOST_STEPS, Spacing
from dsno.support.errors import InputError, one_of
from dsno.support.scalars import whole

OnStep = Callable[[float, Tensor], Tensor]
"""(time a step began at, state it ended in) -> that state, or another one to go on from."""

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


@torch.no_grad()
def solve(
    denoiser: DenoiserProtocol,
    noise: Float[Tensor, "batch *shape"] | None = None,
    times: Float[Tensor, " M"] | Sequence[float] | None = None,
    *,
    start: float = 1.0,
    state: Float[Tensor, "batch *shape"] | None = None,
    method: str = "dpm++2m",
    steps: int = 16,
    spacing: str = "uniform",
    condition: Condition | None = None,
    on_step: OnStep | None = None,
) -> Solution:
    """Solve the probability-flow ODE from x_1 = sigma(1) noise and return it at `times`.

    With `start` and `state` it goes on from a state at another time; there, as at noise, a
    multistep method remembers no step.

    Args:
        denoiser: the teacher.
        noise: unit normal, (batch, *shape). The state is kept in float64 if the noise is, and in
            float32 otherwise, whatever precision the network runs in.
        times: (M,) in [0, start], a tensor or list, in any order; the sample alone (t = 0) if None.
        start: the time of `state`, in (0, 1].
        state: x(start), (batch, *shape), instead of noise; its precision counts as the noise's.
        method: one of `METHODS`.
        steps: number of steps from `start` to the smallest asked time.
        spacing: how the steps are spread, see `Spacing`.
        condition: passed to the denoiser.
        on_step: called after each step; after another state than the one it was given, a multistep
            method remembers no step.

    Raises:
        InputError: for an unknown method or spacing, times outside [0, start], a number of steps
            that is too small, too large or no whole number, or anything but either noise or a
            state, of the shape of the denoiser's samples.
    """
    if (noise is None) == (state is None):
        raise InputError("Solve from either noise or a state (with its time, start).")
    if not 0 < start <= 1 or (state is None and start != 1):
        raise InputError(
            f"A state to start from has a time in (0, 1], and noise is at 1; found start = {start}."
        )
    rule = METHODS[one_of(method, METHODS, "solver")]
    steps = whole(steps, "number of solver steps", most=MOST_STEPS)
    schedule, given = denoiser.schedule, _given(noise, state, denoiser.sample_shape)
    asked = torch.as_tensor([0.0] if times is None else times, dtype=torch.float64).cpu()
    last = start + MERGE  # a start in float32 is a little beside itself
    if asked.ndim != 1 or len(asked) == 0 or not bool(((asked >= 0) & (asked < last)).all()):
        raise InputError(
            f"The times to solve for must be a non-empty list of numbers in [0, {start:g}]."
        )

    distinct: list[float] = []
    merged = {}
    for t in sorted(asked.tolist(), reverse=True):  # equal or nearly equal times share one state
        near = [d for d in (start, *distinct[-1:]) if d - t < MERGE]
        merged[t] = near[-1] if near else t
        if not near:
            distinct.append(t)
    if distinct and 0 < distinct[-1] < MERGE:
        merged = {t: 0.0 if s == distinct[-1] else s for t, s in merged.items()}
        distinct[-1] = 0.0

    first = nodes(schedule, torch.tensor([start], dtype=torch.float64))[0]
    x = given * first.sigma if state is None else given
    dtype, saved = x.dtype, {start: x}
    counting = CountingDenoiser(denoiser)
    if distinct:
        grid = step_times(
            torch.tensor(distinct, dtype=torch.float64), steps, Spacing(spacing, schedule), start
        )
        step = Step(lambda y, node: counting(y, node.t, condition).to(dtype), first, first)
        ends = set(distinct)
        for node in nodes(schedule, grid)[1:]:
            step.start, step.end = step.end, node
            x = rule.step(x, step)
            if on_step is not None:
                x, before = on_step(float(step.start.t), x), x
                step.visits = step.visits if x is before else []
            if float(node.t) in ends:
                saved[float(node.t)] = x
    states = torch.stack([saved[merged[t]] for t in asked.tolist()], dim=1)
    return Solution(asked, states, counting.nfe)


def _given(noise: Tensor | None, state: Tensor | None, shape: Sequence[int]) -> Tensor:
    """What is begun with, in the precision that states are kept in.

    Raises:
        InputError: if it is not a batch of samples of the shape.
    """
    given = noise if state is None else state
    assert given is not None
    if tuple(given.shape[1:]) != tuple(shape) or not given.ndim:
        what, sizes = "noise" if state is None else "state", ", ".join(map(str, shape))
        raise InputError(
            f"The denoiser's samples are of shape ({sizes}), so the {what} must be of shape "
            f"(batch, {sizes}), not {tuple(given.shape)}."
        )
    return given.to(torch.float64 if given.dtype == torch.float64 else torch.float32)
