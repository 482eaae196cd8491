"""The paper's ImageNet-64 network at its real size, random weights: the rates a plan assumes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import plan_imagenet64 as plan
import speed as bench
import torch
from timing import interleaved

from dsno.diffusion.denoisers import Denoiser, Preconditioning
from dsno.diffusion.schedules import CosineSchedule
from dsno.operator.dsno import DSNO
from dsno.recipes import Recipe, load_recipe
from dsno.runs.build import new_operator
from dsno.teachers.store import Teacher, denoiser_of
from dsno.teachers.unet import build_unet
from dsno.training.engine import checkpoint_activations
from gpu.models import PRECISIONS, arithmetic
from gpu.work import Work

SHARE = 2.5
CLASSES, SIZE = 1000, 64
EVALUATED = (16, 128)
"""Batches of evaluations."""
TRAINED = ((8, False), (32, True))
"""Batches of training steps, and whether activations are computed again."""
TOY = (
    "teacher.network.channels=[8, 16]",
    "teacher.network.attention=[false, true]",
    "teacher.network.layers_per_block=1",
    "teacher.network.head_channels=8",
    "teacher.network.norm_num_groups=8",
    "data.size=16",
)


def run(work: Work) -> None:
    """Count the operations, then time evaluations and training steps."""
    recipe = load_recipe("imagenet64", TOY if work.toy else ())
    counted = plan.flops(recipe, CLASSES)
    for name in ("teacher_evaluation", "student_evaluation"):
        work.record("operations, counted", name.replace("_", "'s "), counted[name] / 1e9, "GFLOP")
    work.record("parameters", "student", int(counted["parameters"]))
    work.section("evaluations", lambda: _evaluations(work, recipe, counted), 25)
    for batch, again in TRAINED if not work.toy else ((2, False), (2, True)):
        name = f"training step, batch {batch}"
        work.section(name, lambda b=batch, a=again: _step(work, recipe, counted, b, a), 40)


def network_of(recipe: Recipe) -> Denoiser:
    """The recipe's teacher with random weights, on the CPU."""
    assert recipe.data is not None
    assert recipe.teacher.network is not None
    shape = (3, recipe.data.size or SIZE, recipe.data.size or SIZE)
    torch.manual_seed(0)
    network = build_unet(shape, num_classes=CLASSES, **recipe.teacher.network.model_dump())
    return denoiser_of(network.eval(), Preconditioning(CosineSchedule(), "sample"), shape)


def _labels(batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    return {"class_labels": torch.arange(batch, device=device) % CLASSES}


def _evaluations(work: Work, recipe: Recipe, counted: dict[str, float]) -> None:
    """Evaluations a second in each arithmetic: a collection of 16 steps makes a 16th of it."""
    device = work.device
    denoiser = network_of(recipe).to(device)
    compiled = torch.compile(denoiser)
    one = torch.ones((), dtype=torch.float64, device=device)
    kinds: list[tuple[str, Callable[..., object]]] = [(name, denoiser) for name in PRECISIONS]
    kinds.append(("bf16, compiled", compiled))
    batches = EVALUATED if not work.toy else (2,)
    for batch, (name, call) in itertools.product(batches, kinds):
        x = torch.randn(batch, *denoiser.sample_shape, device=device)
        with torch.no_grad(), arithmetic(name.split(",")[0], device):
            works = {"call": lambda c=call, x=x, b=batch: c(x, one, _labels(b, device))}
            taken = interleaved(works, work.scaled(5, 1), device)["call"]
        setting = f"teacher, {name}, batch {batch}"
        work.record("evaluations", setting, batch / taken, "1/s")
        rate = counted["teacher_evaluation"] * batch / taken / 1e12
        work.record("evaluations, sustained", setting, rate, "TFLOP/s")


def _step(work: Work, recipe: Recipe, counted: dict[str, float], batch: int, again: bool) -> None:
    """A step of the recipe's student in bf16: time, sustained rate, memory."""
    device = work.device
    operator: DSNO = new_operator(recipe, Teacher(network_of(recipe), CLASSES, None))
    if again:
        checkpoint_activations(operator.lifted.network)
    step = bench.our_step(operator.to(device), batch, bf16=True, condition=_labels(batch, device))
    taken = interleaved({"step": step}, work.scaled(5, 1), device)["step"]
    words = ", gradient checkpointing" if again else ""
    setting = f"student, bf16{words}, M = {operator.slices}, batch {batch}"
    work.record("training", setting, batch / taken, "trajectories/s")
    # forward and backward; what is computed again is not counted as work
    rate = 3 * counted["student_evaluation"] * batch / taken / 1e12
    work.record("training, sustained", setting, rate, "TFLOP/s")
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e9
        work.record("training, peak memory", setting, peak, "GB")
