"""The rows of results/speed.md that need a GPU, and times at the sizes a GPU is used at."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence

import authors
import speed as bench
import torch
from timing import interleaved, seconds

from dsno.diffusion.solvers import evaluations, solve
from dsno.evaluation.samplers import student_sampler
from dsno.recipes.choices import Compilation
from dsno.training.memory_format import lay_out
from gpu import results
from gpu.models import PRECISIONS, arithmetic
from gpu.work import Work

SHARE = 6.0
WIDTH, TOY_WIDTH = 256, 32
SMALLER = (
    f"teacher.network.channels=[{TOY_WIDTH}]",
    "teacher.network.attention=[]",
    "teacher.network.middle_attention=false",
    "teacher.network.layers_per_block=1",
    "student.slices=2",
    "collect.slices=2",
)
"""What a rehearsal changes in the networks."""
TOY_COLLECTION = ("--batch", "2", "--steps", "4", "--channels", "8", "8")
BATCHES = (1, 16, 256)
TRAINING, SOLVING = 64, 16
SOLVERS = (("dpm++2m", 16), ("ddim", 512))
AGAINST = ((256, 1), (128, 1), (128, 4))
"""Width and batch of the rows against the authors' network."""


def run(work: Work) -> None:
    """Each section is kept when it is finished; what compiles, which takes longest, comes last."""
    width = work.scaled(WIDTH, TOY_WIDTH)
    options = options_of(work)
    changes = options.changes

    def rows(make: Callable[[], list[bench.Row]]) -> Callable[[], None]:
        return lambda: _keep(work, make())

    batches = BATCHES if not work.toy else (1,)
    work.section("forward", lambda: _forward(work, width, batches, changes), 20)
    work.section("training step", lambda: _training(work, width, changes, UNCOMPILED_STEPS), 20)
    work.section("solvers", lambda: _solvers(work, width, changes), 30)
    work.section("collection", rows(lambda: bench.collection_rows(options)), 20)
    work.section("lift", rows(lambda: bench.lift_rows(options)), 20)
    work.section("CUDA graphs", rows(lambda: [bench.graph_row(width, options, *changes)]), 60)
    if authors.available():
        for size, batch in AGAINST if not work.toy else ((TOY_WIDTH, 1),):
            setting = f"the authors', {size} channels, batch {batch}"
            for what, kind in (
                ("forward", bench.forward_rows),
                ("training step", bench.training_rows),
            ):
                works = rows(lambda k=kind, w=size, n=batch: k(w, n, options))
                work.section(f"{what} / {setting}", works, 60)
        work.section("memory", rows(lambda: bench.memory_rows(options)), 40)
    else:
        work.section("beside the authors' network", lambda: _without_authors(work))
    compiled = COMPILED_STEPS[-1:] if work.toy else COMPILED_STEPS  # on a CPU they are the same
    for kind in compiled:
        name = f"training step{kind[1]}"
        work.section(name, lambda k=kind: _training(work, width, changes, [k]), 60)
    for batch in batches:
        name = f"forward, compiled, batch {batch}"
        work.section(name, lambda b=batch: _compiled(work, width, b, changes), 50)


def _without_authors(work: Work) -> None:
    why = "their code is not there, see benchmarks/authors.py"
    for width, batch in AGAINST:
        setting = f"{width} channels, batch {batch}"
        work.record("beside the authors' network", setting, None, why=results.MISSING, reason=why)


def options_of(work: Work) -> argparse.Namespace:
    """What the sections of benchmarks/speed.py are given."""
    toy = work.toy
    return argparse.Namespace(
        rounds=1 if toy else 5,
        seconds=0.0 if toy else 0.3,
        widths=[TOY_WIDTH] if toy else [64, 128, 256],
        memory=[TOY_WIDTH, 1] if toy else [WIDTH, TRAINING],
        collection=TOY_COLLECTION if toy else (),
        changes=SMALLER if toy else (),
    )


def _keep(work: Work, rows: list[bench.Row]) -> None:
    for row in rows:
        own = dict(row)
        figure, setting, value = (own.pop(key) for key in ("figure", "setting", "value"))
        work.record(figure, setting, value, **own)


def _times(work: Work, named: str, works: dict[str, Callable[[], object]], rows: int) -> None:
    """Record median times, and rows a second beside them."""
    options = options_of(work)
    taken = interleaved(works, options.rounds, work.device, least_seconds=options.seconds)
    for name, spent in taken.items():
        work.record(named, name, 1e3 * spent, "ms", samples_per_second=rows / spent)


def _within(work: Work, name: str, call: Callable[[], object]) -> Callable[[], object]:
    """A call without gradients in one of `PRECISIONS`."""

    def run() -> object:
        with torch.no_grad(), arithmetic(name, work.device):
            return call()

    return run


def _forward(work: Work, width: int, batches: Sequence[int], changes: tuple[str, ...]) -> None:
    """The student's sample and trajectory beside the bare network, in each arithmetic."""
    operator, denoiser = bench.student(width, *changes)
    one = torch.ones((), dtype=torch.float64, device=work.device)
    for batch in batches:
        x = bench.noise(batch)
        calls: dict[str, Callable[[], object]] = {
            "evaluation": lambda x=x: denoiser(x, one),
            "sample": lambda x=x: operator.sample(x),
            "trajectory": lambda x=x: operator(x),
        }
        works = {
            f"{n}, {a}": _within(work, a, call) for n, call in calls.items() for a in PRECISIONS
        }
        _times(work, f"forward pass, {_setting(width, operator.slices, batch)}", works, batch)


def _compiled(work: Work, width: int, batch: int, changes: tuple[str, ...]) -> None:
    """The student's sample, as an evaluation makes it, and trajectory, compiled."""
    operator, x = bench.student(width, *changes)[0], bench.noise(batch)
    quick = student_sampler(operator, precision="bf16", compiled=True)
    works = {
        "sample, bf16, compiled": bench.without_gradients(lambda: quick.generate(x, None)),
        "trajectory, bf16, compiled, CUDA graphs": bench.fast(copy.deepcopy(operator), x),
    }
    _times(work, f"forward pass, {_setting(width, operator.slices, batch)}", works, batch)


def _setting(width: int, slices: int, batch: int) -> str:
    return f"{width} channels, M = {slices}, batch {batch}"


PLAIN, CHANNELS_LAST, COMPILED = "", ", channels last", ", compiled"
GRAPHS = f"{COMPILED}, CUDA graphs"
UNCOMPILED_STEPS = (
    *(("float32", PLAIN), ("tf32", PLAIN), ("bf16", PLAIN)),
    *(("tf32", CHANNELS_LAST), ("bf16", CHANNELS_LAST)),
)
COMPILED_STEPS = (("bf16", COMPILED), ("bf16", GRAPHS))
"""Arithmetic of a training step, and what else is done to it."""
HOW: dict[str, Compilation] = {COMPILED: True, GRAPHS: "reduce-overhead"}


def _training(
    work: Work, width: int, changes: tuple[str, ...], kinds: Sequence[tuple[str, str]]
) -> None:
    """A step in each arithmetic, one network at a time in memory."""
    batch, options = work.scaled(TRAINING, 2), options_of(work)
    for kind, way in kinds:
        name = kind + way
        operator = bench.student(width, *changes)[0]
        if way == CHANNELS_LAST:
            lay_out(operator.lifted.network, torch.channels_last)
        if work.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        step = bench.our_step(operator, batch, bf16=kind == "bf16", compiled=HOW.get(way, False))
        with arithmetic("float32" if kind == "float32" else "tf32", work.device):
            taken = interleaved({"step": step}, options.rounds, work.device)["step"]
        setting = f"{name}, {_setting(width, operator.slices, batch)}"
        work.record("training step", setting, 1e3 * taken, "ms", samples_per_second=batch / taken)
        if work.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 1e9
            work.record("training step, peak memory", setting, peak, "GB")
        del operator, step


def _solvers(work: Work, width: int, changes: tuple[str, ...]) -> None:
    """The teacher's solvers and the student, time of a sample at one batch."""
    operator, denoiser = bench.student(width, *changes)
    batch = work.scaled(SOLVING, 2)
    x = bench.noise(batch)
    works: dict[str, Callable[[], object]] = {"student": lambda: operator.sample(x)}
    for method, real in SOLVERS:
        steps = work.scaled(real, 3)
        named = f"{method}, {evaluations(method, steps)} evaluations"
        works[named] = lambda m=method, n=steps: solve(denoiser, x, method=m, steps=n)
    for kind in PRECISIONS:
        with torch.no_grad(), arithmetic(kind, work.device):
            operator.sample(x)  # warm; hundreds of steps need no rounds
            solve(denoiser, x, method="ddim", steps=3)
            for name, call in works.items():
                taken = seconds(call, work.device)
                setting = f"{name}, {kind}, {width} channels, batch {batch}"
                work.record("time of a sample", setting, 1e3 * taken / batch, "ms")
