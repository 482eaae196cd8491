"""More than one evaluation: the teacher's solver goes on from a state of the operator's.

The operator's one evaluation gives a state x(t) of its trajectory. Each further step is one of the
teacher's solver from there towards t = 0; the first alone replaces the operator's sample by the
teacher's denoised estimate of x(t). The solver has only t to 0 left to go, so few steps suffice. It
remembers no step where it starts: with one or two steps all methods of one evaluation a step give
the same, and from the third on UniPC had the lowest errors, on a quadratic grid.

t is the smallest trained time above 0, or the earlier one at which the noise is a fifth of the
data: from far away a single step of the teacher costs more than it mends. benchmarks/dial.py
tabulates other times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import DenoiserProtocol, Preconditioning, evaluations_per_call
from dsno.diffusion.solvers import OnStep, Solution, evaluations, solve
from dsno.recipes.choices import Solver, SpacingName
from dsno.support.errors import InputError

SOLVER: Solver = "unipc"
SPACING: SpacingName = "quadratic"
MOST_NOISE = 0.2
"""Of a state to go on from: sigma / (alpha sigma_data)."""


NO_TEACHER = (
    "This model was saved without its teacher, which takes every step after the first: use its "
    "run's folder (`dsno sample runs/NAME --steps 2`), or write the model with its teacher by "
    "`dsno export runs/NAME --out FOLDER`."
)


@dataclass(frozen=True)
class Start:
    """Where the teacher goes on.

    Attributes:
        time: t.
        times: (1,), what to ask the operator for; None for its trained times, which t is among.
    """

    time: float
    times: Tensor | None

    def of(self, states: Tensor) -> Tensor:
        """x(t), (batch, *shape), of the operator's states (batch, times, *shape), falling to 0."""
        return states[:, -2 if self.times is None else 0]


def start_of(times: Tensor, preconditioning: Preconditioning) -> Start:
    """Where the teacher of an operator with these trained times (M,), falling to 0, goes on.

    Raises:
        InputError: if the operator was trained at t = 0 alone: it knows no other state.
    """
    if len(times) < 2:
        raise InputError(
            "This student was trained at t = 0 alone, so it has no state for its teacher to go on "
            "from: sample in one step, or train it with student.slices of 2 or more."
        )
    limit = torch.tensor(-2 * math.log(MOST_NOISE * preconditioning.sigma_data))
    trained, quiet = float(times[-2]), float(preconditioning.schedule.time_of(limit.double()))
    if trained <= quiet:
        return Start(trained, None)
    return Start(quiet, torch.tensor([quiet], dtype=torch.float64))


def go_on(
    teacher: DenoiserProtocol,
    start: Start,
    states: Tensor,
    steps: int,
    condition: Condition | None = None,
    on_step: OnStep | None = None,
) -> Solution:
    """Samples by `steps` steps of the teacher from the operator's states; their cost is counted.

    Args:
        teacher: guided as the trajectories were that the operator learnt from.
        start: where it goes on.
        states: the operator's, (batch, times, *shape), at `start.times`.
        steps: of the solver, 1 or more.
        condition: of the samples.
        on_step: see `solve`; also called before the first step, with time 1 and the operator's
            state.

    Returns:
        States (batch, 1, *shape) at t = 0, and the evaluations of the teacher's network.
    """
    state = start.of(states)
    return solve(
        teacher,
        start=start.time,
        state=state if on_step is None else on_step(1.0, state),
        method=SOLVER,
        steps=steps,
        spacing=SPACING,
        condition=condition,
        on_step=on_step,
    )


def cost(teacher: DenoiserProtocol, steps: int) -> int:
    """Evaluations of a sample in `steps` steps, the first of which is the operator's one."""
    if steps == 1:
        return 1
    return 1 + evaluations(SOLVER, steps - 1) * evaluations_per_call(teacher)


def check_teacher(
    teacher: DenoiserProtocol | None, preconditioning: Preconditioning, shape: Sequence[int]
) -> None:
    """Refuse more than one step where they cannot be taken.

    Args:
        teacher: of the operator, if there is one.
        preconditioning: the operator's.
        shape: of the operator's samples.

    Raises:
        InputError: if there is no teacher, or one of other samples or another schedule.
    """
    if teacher is None:
        raise InputError(NO_TEACHER)
    schedules = [one.schedule.to_config() for one in (teacher, preconditioning)]
    if schedules[0] != schedules[1] or tuple(teacher.sample_shape) != tuple(shape):
        raise InputError(
            "The teacher of this pipeline has samples of another shape or another schedule than "
            "the model; give the teacher that the model was distilled from."
        )
