"""What makes samples: the teacher through a solver, the student, and what all of them start from.

A sampler is any callable `(noise, condition) -> samples`; teacher and student are both one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypedDict

import torch
from torch import Tensor

from dsno.diffusion.arithmetic import arithmetic, called_in, network_in
from dsno.diffusion.conditions import Condition, Conditions
from dsno.diffusion.denoisers import DenoiserProtocol, evaluations_per_call
from dsno.diffusion.solvers import evaluations, solve
from dsno.operator.dsno import DSNO
from dsno.recipes.choices import Arithmetic
from dsno.recipes.schema import Curve, Evaluate
from dsno.sampling.dial import cost, go_on, start_of
from dsno.support import seeds
from dsno.support.threads import MOST, Workers, per_thread
from dsno.support.transfers import to_device

STUDENT, UNFINISHED = "dsno", "dsno-unfinished"
SAMPLER_NAMES = {
    STUDENT: "DSNO",
    UNFINISHED: "DSNO before its finish",
    "ddim": "DDIM",
    "dpm++2m": "DPM-Solver++(2M)",
    "unipc": "UniPC",
    "heun": "Heun",
}
"""Names of the student and the solvers in tables and figures, in their order there."""

Generate = Callable[[Tensor, Condition | None], Tensor]
"""(noise, condition) -> samples, both (batch, *shape)."""

Decode = Callable[[Tensor], Tensor]
"""From a model's states to images: the autoencoder of a latent model, or nothing to do."""


def as_is(states: Tensor) -> Tensor:
    """The `Decode` of a model whose states are images."""
    return states


@dataclass(frozen=True)
class Sampler:
    """A way to make samples.

    Attributes:
        name: `dsno` or the solver's.
        label: its name in tables and figures.
        nfe: network evaluations per sample.
        spacing: of the solver's steps; None for the student, and where the teacher goes on from its
            trajectory, from which time.
        generate: the sampler itself, for as many threads.
        precision: of the networks; what is made of their states is as exact as the surroundings.
        threads: how many may use it at a time, at most.
    """

    name: str
    label: str
    nfe: int
    spacing: str | None
    generate: Generate
    precision: Arithmetic = "exact"
    threads: int = MOST

    @property
    def key(self) -> tuple[str | int | None, ...]:
        """What distinguishes it from the others."""
        key = self.name, self.nfe, self.spacing
        return key if self.precision == "exact" else (*key, self.precision)

    @property
    def slug(self) -> str:
        """The same as the name of a file."""
        words = [str(word or "").replace(" ", "-") for word in self.key]
        words[0] = self.name.replace("+", "p")
        return "-".join(word for word in words if word)


def student_sampler(
    operator: DSNO,
    decode: Decode = as_is,
    *,
    name: str = STUDENT,
    precision: Arithmetic = "exact",
    compiled: bool = False,
) -> Sampler:
    """The operator's state at t = 0, its network in a precision and perhaps compiled."""
    own = per_thread(called_in(operator, precision, compiled=compiled))

    def generate(noise: Tensor, condition: Condition | None) -> Tensor:
        with _set_to(precision):
            states = own().sample(noise, condition)
        return decode(states)

    threads = _threads(precision, compiled)
    return Sampler(name, SAMPLER_NAMES[name], 1, None, generate, precision, threads)


def dial_sampler(
    operator: DSNO,
    denoiser: DenoiserProtocol,
    steps: int,
    decode: Decode = as_is,
    *,
    precision: Arithmetic = "exact",
    compiled: bool = False,
) -> Sampler:
    """The teacher's solver from the operator's trajectory, in `steps` steps in all, 2 or more.

    Both networks are in a precision and perhaps compiled.

    Raises:
        InputError: if the operator was trained at t = 0 alone.
    """
    own = per_thread(called_in(operator, precision, compiled=compiled))
    teacher = per_thread(network_in(denoiser, precision, compiled=compiled))
    start = start_of(operator.times, operator.preconditioning)

    def generate(noise: Tensor, condition: Condition | None) -> Tensor:
        with _set_to(precision):
            states = own()(noise, condition, start.times)
            solution = go_on(teacher(), start, states, steps - 1, condition)
        return decode(solution.states[:, -1])

    label, where = f"{SAMPLER_NAMES[STUDENT]}, then its teacher", f"from t = {start.time:.3g}"
    nfe, threads = cost(denoiser, steps), _threads(precision, compiled)
    return Sampler(STUDENT, label, nfe, where, generate, precision, threads)


def teacher_sampler(
    denoiser: DenoiserProtocol,
    method: str,
    steps: int,
    spacing: str,
    decode: Decode = as_is,
    *,
    precision: Arithmetic = "exact",
    compiled: bool = False,
) -> Sampler:
    """A teacher's solver with `steps` steps, the network in a precision and perhaps compiled."""
    own = per_thread(network_in(denoiser, precision, compiled=compiled))

    def generate(noise: Tensor, condition: Condition | None) -> Tensor:
        with _set_to(precision):
            solution = solve(
                own(), noise, method=method, steps=steps, spacing=spacing, condition=condition
            )
        return decode(solution.states[:, -1])

    nfe = evaluations(method, steps) * evaluations_per_call(denoiser)
    threads = _threads(precision, compiled)
    return Sampler(method, SAMPLER_NAMES[method], nfe, spacing, generate, precision, threads)


def _set_to(precision: Arithmetic) -> AbstractContextManager[None]:
    """The libraries' setting, which threads share: that of `exact` is set around them all."""
    return contextlib.nullcontext() if precision == "exact" else arithmetic(precision)


def _threads(precision: Arithmetic, compiled: bool) -> int:
    return 1 if compiled or precision != "exact" else MOST


def samplers_of(
    denoiser: DenoiserProtocol,
    operator: DSNO,
    spec: Evaluate,
    decode: Decode = as_is,
    *,
    unfinished: DSNO | None = None,
) -> list[Sampler]:
    """The student, in one step and in the section's, then every distinct teacher sampler of it.

    After its first comes what it was before its finish, if that is given. The baseline is among the
    last.
    """
    curves = [*spec.curves, Curve(solver="ddim", steps=(spec.baseline_steps,))]
    wanted = {(c.solver, steps, c.spacing): None for c in curves for steps in c.steps}
    further = sorted({*spec.dial} - {1}) if spec.dial and operator.slices > 1 else []
    how: _How = {"precision": spec.precision, "compiled": spec.compile}
    return [
        student_sampler(operator, decode, **how),
        *(
            [student_sampler(unfinished, decode, name=UNFINISHED, **how)]
            if unfinished is not None
            else []
        ),
        *(dial_sampler(operator, denoiser, steps, decode, **how) for steps in further),
        *(teacher_sampler(denoiser, *key, decode, **how) for key in wanted),
    ]


class _How(TypedDict):
    precision: Arithmetic
    compiled: bool


@dataclass
class Draws:
    """The noise and labels every sampler starts from: item i's depend on (seed, i) alone.

    Attributes:
        seed: of the draws.
        shape: of one sample.
        conditions: how each sample's condition is drawn.
        batch_size: samples made at a time.
        device: where they are made.
    """

    seed: int
    shape: tuple[int, ...]
    conditions: Conditions
    batch_size: int
    device: torch.device = torch.device("cpu")
    _cache: dict[range, tuple[Tensor, dict[str, Tensor]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def batch(self, items: range) -> tuple[Tensor, Condition | None]:
        """Noise and condition of some items, drawn once and kept by the host."""
        if items not in self._cache:
            noise = seeds.item_noise(self.seed, items, self.shape, stream=seeds.SAMPLE)
            self._cache[items] = noise, self.conditions.draw(self.seed, items, sampling=True)
        noise, drawn = self._cache[items]
        given = self.conditions.expand(drawn)
        return (
            to_device(noise, self.device),
            given and {k: to_device(v, self.device) for k, v in given.items()},
        )

    def batches(self, count: int) -> list[range]:
        """Items 0 .. count - 1 in batches."""
        return [range(i, min(i + self.batch_size, count)) for i in range(0, count, self.batch_size)]


def draw(sampler: Sampler, draws: Draws, count: int, advance: Callable[..., None]) -> Tensor:
    """`count` samples, (count, *shape), on the CPU."""

    @torch.no_grad()
    def batch(items: range) -> Tensor:
        samples = sampler.generate(*draws.batch(items)).cpu()
        advance(len(items) * sampler.nfe, note=f"{sampler.label} {sampler.nfe}")
        return samples

    with Workers(draws.device, sampler.threads) as workers:
        return torch.cat(workers.map(batch, draws.batches(count)))
