"""More than one evaluation of a finished run's student: two ways to go on, over times and steps.

    .venv/bin/python benchmarks/dial.py runs/digits --times 0.0625 0.125 0.25 --steps 2 3 4

Own state: the teacher's solver goes on from the operator's x(t), as `num_inference_steps` does.
Put back: it goes on from alpha x_0 + sigma x_1, the operator's sample with the initial noise. This
sharpens rather than corrects: the solved teacher's samples, put back alike, are shown as a control.
Solvers from noise have as many evaluations. Everything starts from the same noises; the distances
are those of the recipe, the paired error is to the solved teacher. Prints Markdown; what is
measured is kept in the folder of --out, and the same command goes on after a kill.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dsno.diffusion.arithmetic import arithmetic
from dsno.diffusion.conditions import GUIDANCE_SCALE, Condition
from dsno.diffusion.denoisers import DenoiserProtocol, evaluations_per_call, to_device
from dsno.diffusion.schedules import signal_and_noise
from dsno.diffusion.solvers import solve
from dsno.evaluation.batchwise import Desk
from dsno.evaluation.evaluate import Measurement
from dsno.evaluation.features import Wanted
from dsno.evaluation.reference import Reference, build_reference
from dsno.evaluation.samplers import (
    Decode,
    Draws,
    Sampler,
    student_sampler,
    teacher_sampler,
)
from dsno.operator.dsno import DSNO
from dsno.recipes.schema import Evaluate
from dsno.runs.build import conditions_of, decoder, guided, real_data
from dsno.runs.locate import model_of, saved_recipe, trajectories_storage
from dsno.runs.stages import load_operator
from dsno.sampling.dial import SOLVER, SPACING, cost
from dsno.support import distributed
from dsno.support.environment import environment, versions
from dsno.support.files import fingerprint, sha256
from dsno.support.threads import per_thread
from dsno.teachers.store import load_teacher
from dsno.trajectories.manifest import load_manifest
from dsno.trajectories.prompts import read_prompts

SOLVERS = ("unipc", "dpm++2m", "ddim")
State = Callable[[Tensor, Condition | None], Tensor]


class Ways:
    """The samplers that are compared.

    Args:
        operator: the student.
        denoiser: its teacher, guided as for the student.
        spec: of the recipe.
        decode: from states to images.
    """

    def __init__(
        self, operator: DSNO, denoiser: DenoiserProtocol, spec: Evaluate, decode: Decode
    ) -> None:
        self.spec, self.decode, self.denoiser = spec, decode, denoiser
        self.operator, self.own, self.teacher = operator, per_thread(operator), per_thread(denoiser)

    @property
    def truth(self) -> Sampler:
        """The solved teacher."""
        steps = self.spec.reference_steps
        return teacher_sampler(self.denoiser, "dpm++2m", steps, "uniform", self.decode)

    def every(self, times: Sequence[float], steps: Sequence[int]) -> list[Sampler]:
        """All of them."""
        found = [student_sampler(self.operator, self.decode)]
        for t in times:
            query = torch.tensor([t], dtype=torch.float64)

            def own(noise: Tensor, condition: Condition | None, query: Tensor = query) -> Tensor:
                return self.own()(noise, condition, query)[:, 0]

            sample = self._put_back(t, lambda n, c: self.own().sample(n, c))
            for k in steps:
                found += [self._on("own state", t, k, own), self._on("put back", t, k, sample)]
            solved = self._put_back(t, self._solved)
            control = self._on("solved teacher, put back", t, min(steps), solved)
            found.append(replace(control, nfe=control.nfe - 1 + self.truth.nfe))
        for solver in SOLVERS:
            found += [
                teacher_sampler(self.denoiser, solver, k, "uniform", self.decode) for k in steps
            ]
        return found

    def _solved(self, noise: Tensor, condition: Condition | None) -> Tensor:
        steps = self.spec.reference_steps
        return solve(self.teacher(), noise, steps=steps, condition=condition).states[:, -1]

    def _put_back(self, t: float, sample: State) -> State:
        alphas, sigmas = signal_and_noise(self.denoiser.schedule, torch.tensor([t]).double())
        alpha, sigma = float(alphas), float(sigmas)
        return lambda noise, condition: alpha * sample(noise, condition) + sigma * noise

    def _on(self, way: str, t: float, steps: int, state: State) -> Sampler:
        def generate(noise: Tensor, condition: Condition | None) -> Tensor:
            solution = solve(
                self.teacher(),
                start=t,
                state=state(noise, condition),
                method=SOLVER,
                steps=steps - 1,
                spacing=SPACING,
                condition=condition,
            )
            return self.decode(solution.states[:, -1])

        name = way.replace(" ", "-").replace(",", "")
        return Sampler(name, way, cost(self.denoiser, steps), f"from {t:g}", generate)

    def relative_cost(self, draws: Draws) -> dict[str, float]:
        """Multiply-adds of the operator's evaluation by way, in evaluations of the teacher."""
        noise, condition = draws.batch(range(1))
        plain = {k: v for k, v in (condition or {}).items() if k != GUIDANCE_SCALE} or None
        inner = getattr(self.denoiser, "inner", self.denoiser)
        t = torch.ones(1, dtype=torch.float64)
        one = _flops(lambda: inner(noise, t[0], plain))
        state = _flops(lambda: self.operator(noise, condition, t / 8)) / one
        sample = _flops(lambda: self.operator.sample(noise, condition)) / one
        return {"own-state": state, "put-back": sample, "dsno": sample}


def _flops(run: Callable[[], Tensor]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def table(
    samplers: Sequence[Sampler],
    rows: Sequence[Mapping[str, Any]],
    spaces: Sequence[str],
    costs: Mapping[str, float],
) -> str:
    """Markdown, a line for each sampler."""
    lines = [
        "| way | t | evaluations | multiply-adds, in evaluations | "
        + " | ".join(f"distance ({space})" for space in spaces)
        + " | paired L1 |",
        "|---" * (5 + len(spaces)) + "|",
    ]
    for sampler, row in zip(samplers, rows, strict=True):
        spent = f"{sampler.nfe - 1 + costs.get(sampler.name, 1):.2f}"
        where = (sampler.spacing or "-").removeprefix("from ").replace("uniform", "1")
        distances = [f"{row['frechet_distance'][space]:.3f}" for space in spaces]
        paired = "-" if row["paired_l1"] is None else f"{row['paired_l1']:.4f}"
        cells = [sampler.label, where, str(sampler.nfe), spent, *distances, paired]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def opened(run: Path, out: Path, samples: int | None) -> tuple[Ways, Draws, Reference, Desk]:
    """What a run's folder holds, as `dsno evaluate` reads it."""
    recipe, device = saved_recipe(run), distributed.device()
    spec = recipe.evaluate
    if samples is not None:
        spec = spec.model_copy(update={"samples": samples})
        recipe = recipe.model_copy(update={"evaluate": spec})
    teacher, operator = (
        load_teacher(run / "teacher"),
        load_operator(run / model_of(saved_recipe(run))).to(device),
    )
    denoiser, decode = to_device(guided(recipe, teacher), device), decoder(teacher)
    if teacher.latents is not None:
        teacher.latents.vae.to(device)
    storage = trajectories_storage(recipe, run)
    prompts = read_prompts(storage, load_manifest(storage))
    conditions = conditions_of(recipe, teacher, prompts)
    draws = Draws(recipe.seed, denoiser.sample_shape, conditions, spec.batch_size, device)
    weights = [sha256(p) for p in sorted(run.glob("student/model/*.safetensors"))]
    desk = Desk(out / fingerprint([weights, recipe.model_dump(mode="json"), versions()]))
    data = real_data(recipe, teacher, draws, desk)
    wanted = Wanted(
        data.sample_shape,
        inception=spec.inception,
        torchscript=spec.torchscript,
        device=device,
    )
    reference = build_reference(
        data,
        spec.features,
        seed=spec.classifier_seed,
        wanted=wanted,
        desk=desk,
        batch_size=spec.batch_size,
    )
    return Ways(operator, denoiser, spec, decode), draws, reference, desk


@arithmetic("exact")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--times", type=float, nargs="+", default=[0.0625, 0.125, 0.25])
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--samples", type=int, help="the recipe's by default")
    parser.add_argument("--out", type=Path, default=Path("runs/dial"))
    arguments = parser.parse_args()
    ways, draws, reference, desk = opened(arguments.run, arguments.out, arguments.samples)
    samplers = ways.every(arguments.times, arguments.steps)
    rows = Measurement(reference, draws, ways.spec, ways.truth, desk).rows(samplers)
    shown = [ways.truth, *samplers]
    measures = [dict(rows[s.key].measures) for s in shown]
    print(table(shown, measures, list(reference.spaces), ways.relative_cost(draws)))
    calls = evaluations_per_call(ways.denoiser)
    trained = ", ".join(f"{t:g}" for t in ways.operator.times.tolist())
    print(f"\n{ways.spec.samples:,} samples; trained at t = {trained}; {calls} a step.")
    print("two halves of the reference:", dict(reference.floor))
    print("environment:", environment())


if __name__ == "__main__":
    main()
