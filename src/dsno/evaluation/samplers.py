"""What makes samples: the teacher through a solver, the student, and what all of them start from.

A sampler is any callable `(noise, condition) -> samples`; teacher and student are both one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from dsno.diffusion.conditions import Condition, Conditions
from dsno.diffusion.denoisers import DenoiserProtocol, evaluations_per_call
from dsno.diffusion.solvers import evaluations, solve
from dsno.operator.dsno import DSNO
from dsno.recipes.schema import Curve, Evaluate
from dsno.sampling.dial import cost, go_on, start_of
from dsno.support import seeds
from dsno.support.threads import Workers, per_thread

STUDENT = "dsno"
SAMPLER_NAMES = {
    "ddim": "DDIM",
    "heun": "Heun",
    "dpm++2m": "DPM-Solver++(2M)",
    "unipc": "UniPC",
    STUDENT: "DSNO",
}
"""Names of the solvers and the student in tables and figures."""

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
        generate: the sampler itself, for any number of threads.
    """

    name: str
    label: str
    nfe: int
    spacing: str | None
    generate: Generate

    @property
    def key(self) -> tuple[str, int, str | None]:
        """What distinguishes it from the others."""
        return self.name, self.nfe, self.spacing

    @property
    def slug(self) -> str:
        """The same as the name of a file."""
        spacing = (self.spacing or "").replace(" ", "-")
        words = (self.name.replace("+", "p"), str(self.nfe), spacing)
        return "-".join(word for word in words if word)


def student_sampler(operator: DSNO, decode: Decode = as_is) -> Sampler:
    """The operator's state at t = 0."""
    own = per_thread(operator)

    def generate(noise: Tensor, condition: Condition | None) -> Tensor:
        return decode(own().sample(noise, condition))

    return Sampler(STUDENT, SAMPLER_NAMES[STUDENT], 1, None, generate)


def dial_sampler(
    operator: DSNO, denoiser: DenoiserProtocol, steps: int, decode: Decode = as_is
) -> Sampler:
    """The teacher's solver from the operator's trajectory, in `steps` steps in all, 2 or more.

    Raises:
        InputError: if the operator was trained at t = 0 alone.
    """
    own, teacher = per_thread(operator), per_thread(denoiser)
    start = start_of(operator.times, operator.preconditioning)

    def generate(noise: Tensor, condition: Condition | None) -> Tensor:
        states = own()(noise, condition, start.times)
        return decode(go_on(teacher(), start, states, steps - 1, condition).states[:, -1])

    label = f"{SAMPLER_NAMES[STUDENT]}, then its teacher"
    return Sampler(STUDENT, label, cost(denoiser, steps), f"from t = {start.time:.3g}", generate)


def teacher_sampler(
    denoiser: DenoiserProtocol, method: str, steps: int, spacing: str, decode: Decode = as_is
) -> Sampler:
    """A teacher's solver with `steps` steps."""
    own = per_thread(denoiser)

    def generate(noise: Tensor, condition: Condition | None) -> Tensor:
        solution = solve(
            own(), noise, method=method, steps=steps, spacing=spacing, condition=condition
        )
        return decode(solution.states[:, -1])

    nfe = evaluations(method, steps) * evaluations_per_call(denoiser)
    return Sampler(method, SAMPLER_NAMES[method], nfe, spacing, generate)


def samplers_of(
    denoiser: DenoiserProtocol, operator: DSNO, spec: Evaluate, decode: Decode = as_is
) -> list[Sampler]:
    """The student, in one step and in the section's, then every distinct teacher sampler of it.

    The baseline is among the last.
    """
    curves = [*spec.curves, Curve(solver="ddim", steps=(spec.baseline_steps,))]
    wanted = {(c.solver, steps, c.spacing): None for c in curves for steps in c.steps}
    further = sorted({*spec.dial} - {1}) if spec.dial and operator.slices > 1 else []
    return [
        student_sampler(operator, decode),
        *(dial_sampler(operator, denoiser, steps, decode) for steps in further),
        *(teacher_sampler(denoiser, *key, decode) for key in wanted),
    ]


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
    _cache: dict[range, tuple[Tensor, Condition | None]] = field(
        default_factory=dict, init=False, repr=False
    )

    def batch(self, items: range) -> tuple[Tensor, Condition | None]:
        """Noise and condition of some items."""
        if items not in self._cache:
            noise = seeds.item_noise(self.seed, items, self.shape, stream=seeds.SAMPLE)
            drawn = self.conditions.draw(self.seed, items, sampling=True)
            found = noise, self.conditions.expand(drawn)
            self._cache[items] = send_to_device(found, self.device)
        return self._cache[items]

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

    with Workers(draws.device) as workers:
        return torch.cat(workers.map(batch, draws.batches(count)))
