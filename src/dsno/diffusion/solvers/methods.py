"""The table of methods: what each does in a step, its order and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from dsno.diffusion.solvers.multistep import dpm_solver_2m, unipc
from dsno.diffusion.solvers.onestep import ddim, heun
from dsno.diffusion.solvers.steps import StepFunction
from dsno.recipes.choices import Solver
from dsno.support.errors import one_of


@dataclass(frozen=True)
class Method:
    """A step function, its order of convergence and its evaluations per step."""

    step: StepFunction
    order: int
    evaluations: int = 1


METHODS: dict[Solver, Method] = {
    "ddim": Method(ddim, order=1),
    "heun": Method(heun, order=2, evaluations=2),
    "dpm++2m": Method(dpm_solver_2m, order=2),
    "unipc": Method(unipc, order=3),
}


def evaluations(method: str, steps: int) -> int:
    """Network evaluations of a solution to t = 0; every method's last step costs one."""
    return 1 + (steps - 1) * METHODS[one_of(method, METHODS, "solver")].evaluations
