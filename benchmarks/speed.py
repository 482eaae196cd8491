"""What the operator costs beside its own backbone, the authors' network and the teacher's solvers.

    python benchmarks/speed.py --out results/bench.json      (`make bench`; half an hour, two cores)
    python benchmarks/speed.py --show results/bench.json

Every figure is a ratio of medians of works that took turns in one process (`timing.py`), beside the
least it could be: the floor. On a GPU the same runs with CUDA events; figures that need one are
"not run" without. For the figures against the authors' network their code must be in an ignored
folder (`authors.py` says how). Sections can be named, and are kept in the file as each is finished.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import authors
import torch
from timing import ceilings, interleaved
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import Denoiser, Preconditioning
from dsno.diffusion.schedules import schedule_from_config
from dsno.diffusion.solvers import METHODS, evaluations, solve
from dsno.diffusion.time_grids import SPACINGS, Spacing, grid_times
from dsno.evaluation.reference import build_reference
from dsno.evaluation.samplers import Draws, draw, teacher_sampler
from dsno.operator.dsno import DSNO, sampling_cost
from dsno.recipes.choices import Compilation
from dsno.recipes.load import load_recipe
from dsno.runs.build import conditions_of, load_recipe_data, new_operator
from dsno.runs.stages import environment
from dsno.support import distributed
from dsno.support.files import write_json
from dsno.teachers.store import Teacher, denoiser_of, load_teacher
from dsno.teachers.unet import build_unet
from dsno.training.average import average_of, update_average
from dsno.training.engine import Engine, checkpoint_activations
from dsno.training.losses import TrajectoryObjective

SHAPE = (3, 32, 32)
HERE = Path(__file__).parent
NOT_MIXED = ("student.lift=null", "student.sites=[]")
LIFTS = {
    "all lifted, M = 4": ("student.slices=4",),
    "all lifted, M = 2": ("student.slices=2",),
    "core lifted, M = 4": ("student.slices=4", "student.lift=core"),
    "core lifted, M = 2": ("student.slices=2", "student.lift=core"),
    "middle lifted, M = 2": ("student.slices=2", "student.lift=middle"),
    "not lifted, M = 1": ("student.slices=1", "student.modes=1", *NOT_MIXED),
}
CORE = LIFTS["core lifted, M = 4"]
"""Another function than theirs: quality against cost is in `frontier.py`."""
LADDER = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of steps tried; for Frechet distances, up to 24."""
Row = dict[str, Any]


def row(figure: str, setting: str, value: float | None, **more: Any) -> Row:
    """One line of the table; a value of None was not run."""
    print(f"{figure} ({setting}): {value}", flush=True)
    return {"figure": figure, "setting": setting, "value": value, **more}


# ---- the networks measured -----------------------------------------------------------------------


def student(width: int, *changes: str) -> tuple[DSNO, Denoiser]:
    """The CIFAR-10 recipe's student at some width and its teacher, untrained."""
    widths = [width] * 3
    named = [f"teacher.network.channels={widths}", "teacher.prediction_type=sample"]
    recipe = load_recipe("cifar10", [*named, "train.vgg16=none", *changes])
    spec = recipe.teacher
    assert spec.network is not None
    assert spec.schedule is not None
    assert spec.prediction_type is not None
    torch.manual_seed(0)
    network = build_unet(SHAPE, **spec.network.model_dump())
    meaning = Preconditioning(schedule_from_config(spec.schedule), spec.prediction_type)
    denoiser = denoiser_of(network, meaning, SHAPE).eval()
    operator = new_operator(recipe, Teacher(denoiser, None, None)).eval()
    place = distributed.device()
    return operator.to(place), denoiser.to(place)


def without_mixing(width: int, *changes: str) -> DSNO:
    """The same backbone on as many rows, without temporal layers."""
    return student(width, *changes, *NOT_MIXED)[0]


def without_layers(width: int, *changes: str) -> DSNO:
    """The student with temporal layers that do nothing: what is left if they cost nothing."""
    operator = student(width, *changes)[0]
    for layer in operator.lifted.temporal:
        layer.forward = lambda u, slices, last_only=False: u
    return operator


def noise(batch: int) -> Tensor:
    """Unit normal, (batch, *SHAPE)."""
    return torch.randn(batch, *SHAPE, device=distributed.device())


def operations(operator: DSNO, x: Tensor) -> float:
    """Multiplications and additions of its convolutions, matrix products and attention."""
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        operator(x)
    return float(counted.get_total_flops())


def without_gradients(work: Callable[[], object]) -> Callable[[], object]:
    """For timing."""

    def run() -> object:
        with torch.no_grad():
            return work()

    return run


# ---- sections ------------------------------------------------------------------------------------


def lift_rows(options: argparse.Namespace) -> list[Row]:
    """Lifted forward over the same backbone on the batch's rows."""
    device = distributed.device()
    limits = ceilings(device)
    rows = []
    for width in options.widths:
        operator = student(width, *options.changes)[0]
        bare = without_mixing(width, *options.changes)
        left = without_layers(width, *options.changes)
        moved = site_bytes(operator)
        for batch in (1, 4):
            x = noise(batch)
            taken = interleaved(
                {
                    "lifted": without_gradients(lambda o=operator, x=x: o(x)),
                    "bare": without_gradients(lambda o=bare, x=x: o(x)),
                    "left": without_gradients(lambda o=left, x=x: o(x)),
                },
                options.rounds,
                device,
                least_seconds=options.seconds,
            )
            ours, theirs, kept = (operations(each, x) for each in (operator, bare, left))
            least = max(
                (ours - kept) / limits["operations_per_second_float32"],
                batch * moved / limits["bytes_per_second"],
            )
            setting = f"{width} channels, batch {batch}"
            rows += [
                row(
                    "lifted forward / backbone on B x M rows",
                    setting,
                    taken["lifted"] / taken["bare"],
                    floor=kept / theirs + least / taken["bare"],
                    reach=1.08,
                    seconds=taken,
                    ceilings=limits,
                ),
                row(
                    "lifted forward / the same without its temporal layers",
                    setting,
                    taken["lifted"] / taken["left"],
                    floor=1 + least / taken["left"],
                ),
            ]
    return rows


def site_bytes(operator: DSNO) -> float:
    """Bytes that temporal layers read and write at least, per sample, float32."""
    sizes: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, args: sizes.append(args[0].numel()))
        for layer in operator.lifted.temporal
    ]
    with torch.no_grad():
        operator(noise(1))
    for handle in handles:
        handle.remove()
    return 2 * 4.0 * sum(sizes)


def author_rows(options: argparse.Namespace) -> list[Row]:
    """Forward passes and training steps beside the authors'."""
    rows = []
    for width, batch in options.against:
        rows += forward_rows(width, batch, options)
        rows += training_rows(width, batch, options)
    return rows


def forward_rows(width: int, batch: int, options: argparse.Namespace) -> list[Row]:
    """A forward pass beside theirs, with the same weights."""
    device = distributed.device()
    operator = student(width)[0]
    theirs = authors.network(width, 4).eval()
    log_snr = operator.preconditioning.schedule.log_snr(operator.times).float()
    authors.give_weights(operator.cpu(), theirs, log_snr)
    operator, theirs, log_snr = operator.to(device), theirs.to(device), log_snr.to(device)
    left, core, x = without_layers(width), student(width, *CORE)[0], noise(batch)
    with torch.no_grad():
        apart = float((operator(x) - theirs(x, log_snr)).abs().max())
    works = {
        "ours": without_gradients(lambda: operator(x)),
        "theirs": without_gradients(lambda: theirs(x, log_snr)),
        "left": without_gradients(lambda: left(x)),
        "core": without_gradients(lambda: core.sample(x)),
    }
    if device.type == "cuda":
        works["fast"] = fast(operator, x)
    taken = interleaved(works, options.rounds, device, least_seconds=options.seconds)
    named = "student forward / the authors' network"
    setting = f"{width} channels, batch {batch}"
    ratio = {name: value / taken["theirs"] for name, value in taken.items()}
    same = {"floor": ratio["left"], "reach": 0.85, "seconds": taken}
    return [
        row(named, setting, ratio["ours"], **same, largest_difference_of_outputs=apart),
        row(named, f"{setting}, core lifted, a sample", ratio["core"], reach=0.85),
        row(named, f"{setting}, ours in bf16, compiled; GPU", ratio.get("fast"), reach=0.4),
    ]


def fast(operator: DSNO, x: Tensor) -> Callable[[], object]:
    """A compiled forward pass in bfloat16, captured as a CUDA graph."""
    compiled = torch.compile(operator, mode="reduce-overhead")

    def run() -> object:
        with torch.autocast(x.device.type, torch.bfloat16):
            return compiled(x)

    return without_gradients(run)


def our_step(
    operator: DSNO,
    batch: int,
    *,
    bf16: bool = False,
    compiled: Compilation = False,
    condition: Condition | None = None,
) -> Callable[[], object]:
    """A step as `dsno.training.trainer` makes it: gradient norm, fused AdamW, average."""
    m = operator.slices
    objective = TrajectoryObjective(operator, torch.ones(m), torch.ones(m)).train()
    engine = Engine(mixed_precision="bf16" if bf16 else "no")
    objective.to(engine.device)
    average = average_of(operator)
    engine.compile(operator.lifted.network, compiled)
    optimizer = engine.optimizer([list(operator.parameters())], lr=2e-4)
    shape, device = operator.sample_shape, engine.device
    rows: dict[str, Any] = {
        "noise": torch.randn(batch, *shape, device=device),
        "states": torch.randn(batch, m, *shape, device=device),
    }
    if condition is not None:
        rows["condition"] = condition

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with engine.gradients(objective, last=True):
            with engine.accelerator.autocast():
                loss, _ = objective(rows)
            engine.backward(loss)
        engine.clip(float("inf"), optimizer)
        engine.step(optimizer)
        update_average(average, operator, int(average.n_averaged), 0.9999)

    return step


def their_step(theirs: nn.Module, log_snr: Tensor, batch: int) -> Callable[[], object]:
    """The same work in the order of their training loop: unfused Adam, average tensor by tensor."""
    theirs.train()
    average = copy.deepcopy(theirs)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=2e-4)
    x, states = noise(batch), noise(batch * len(log_snr)).reshape(batch, -1, *SHAPE)
    weights = torch.ones(len(log_snr), device=x.device)

    def step() -> None:
        error = (theirs(x, log_snr) - states).abs().mean((0, 2, 3, 4))
        loss = (error * weights).mean()
        theirs.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            pairs = zip(average.parameters(), theirs.parameters(), strict=True)
            for kept, new in pairs:
                kept.copy_(new.lerp(kept, 0.9999))

    return step


def training_rows(width: int, batch: int, options: argparse.Namespace) -> list[Row]:
    """A training step beside theirs."""
    device = distributed.device()
    operator, theirs = student(width)[0], authors.network(width, 4).to(device)
    log_snr = operator.preconditioning.schedule.log_snr(operator.times).float().to(device)
    again = student(width)[0]
    checkpoint_activations(again.lifted.network)
    works = {
        "ours": our_step(operator, batch),
        "theirs": their_step(theirs, log_snr, batch),
        "left": our_step(without_layers(width), batch),
        "core": our_step(student(width, *CORE)[0], batch),
        "checkpointed": our_step(again, batch),
    }
    if device.type == "cuda":
        works["fast"] = our_step(student(width)[0], batch, bf16=True, compiled=True)
    taken = interleaved(works, options.rounds, device, least_seconds=options.seconds)
    named = "training step / the authors'"
    setting = f"{width} channels, batch {batch}"
    ratio = {name: value / taken["theirs"] for name, value in taken.items()}
    return [
        row(named, setting, ratio["ours"], floor=ratio["left"], reach=0.75, seconds=taken),
        row(named, f"{setting}, core lifted", ratio["core"], reach=0.75),
        row(named, f"{setting}, gradient checkpointing", ratio["checkpointed"]),
        row(named, f"{setting}, ours in bf16, compiled; GPU", ratio.get("fast"), reach=0.35),
    ]


def memory_rows(options: argparse.Namespace) -> list[Row]:
    """Peak memory of training steps, each kind in a process of its own."""
    width, batch = options.memory

    def peak(kind: str) -> float:
        command = [sys.executable, __file__, "--peak", kind, "--memory", str(width), str(batch)]
        # glibc gives what is freed back at once, so that what counts is what is in use
        environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
        return float(done.stdout.split()[-1])

    peaks = {kind: peak(kind) for kind in ("ours", "core", "checkpointed", "theirs")}
    # weights, gradients, two moments and the average: none of them can be done without
    held = 5 * 4 * sum(p.numel() for p in student(width)[0].parameters())
    words = {
        "ours": "",
        "core": ", core lifted",
        "checkpointed": ", gradient checkpointing",
    }
    return [
        row(
            "peak training memory / the authors'",
            f"{width} channels, batch {batch}{words[kind]}",
            peaks[kind] / peaks["theirs"],
            floor=held / peaks["theirs"],
            reach=0.6,
            bytes=peaks,
        )
        for kind in words
    ]


def peak(kind: str, width: int, batch: int) -> None:
    """Print by how many bytes two training steps let this process grow."""

    def largest() -> float:
        if torch.cuda.is_available():
            return float(torch.cuda.max_memory_allocated())
        # getrusage would count what the parent held when it started this process
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024.0 * int(status.split("VmHWM:")[1].split()[0])

    operator = student(32)[0]  # what libraries take before anything large is made
    our_step(operator, 1)()
    before = largest()
    if kind == "theirs":
        model = authors.network(width, 4).to(distributed.device())
        log_snr = operator.preconditioning.schedule.log_snr(operator.times).float()
        step = their_step(model, log_snr.to(distributed.device()), batch)
    else:
        operator = student(width, *(CORE if kind == "core" else ()))[0]
        if kind == "checkpointed":
            checkpoint_activations(operator.lifted.network)
        step = our_step(operator, batch)
    step()
    step()
    print(largest() - before)


def sample_rows(options: argparse.Namespace) -> list[Row]:
    """A one-step sample over one backbone evaluation, for every lift."""
    device, width, batch = distributed.device(), 128, 4 if not torch.cuda.is_available() else 64
    rows = []
    for name, changes in LIFTS.items():
        operator, denoiser = student(width, *changes)
        x, one = noise(batch), torch.ones((), dtype=torch.float64)
        taken = interleaved(
            {
                "sample": without_gradients(lambda o=operator, x=x: o.sample(x)),
                "evaluation": without_gradients(lambda d=denoiser, x=x, t=one: d(x, t)),
            },
            options.rounds,
            device,
            least_seconds=options.seconds,
        )
        rows.append(
            row(
                "one-step sample / one backbone evaluation",
                f"{name}; {width} channels, batch {batch}",
                taken["sample"] / taken["evaluation"],
                floor=sampling_cost(operator, denoiser),
                reach=1.8,
                seconds=taken,
            )
        )
    if device.type == "cuda":
        rows.append(graph_row(256, options))
    else:
        rows.append(row(GRAPHS[0], GRAPHS[1].format(256), None, reach=1.3))
    return rows


GRAPHS = (
    "one-step sample / one backbone evaluation",
    "{} channels, batch 1, CUDA graphs, GPU",
)


def graph_row(width: int, options: argparse.Namespace, *changes: str) -> Row:
    """A one-step sample over one backbone evaluation at batch 1, without the cost of launches."""
    device = distributed.device()
    operator, denoiser = student(width, *changes)
    x, one = noise(1), torch.ones((), dtype=torch.float64, device=device)
    evaluation = torch.compile(denoiser, mode="reduce-overhead")
    sample = torch.compile(operator.sample, mode="reduce-overhead")
    taken = interleaved(
        {
            "sample": without_gradients(lambda: sample(x)),
            "evaluation": without_gradients(lambda: evaluation(x, one)),
        },
        options.rounds,
        device,
        least_seconds=options.seconds,
    )
    value = taken["sample"] / taken["evaluation"]
    return row(GRAPHS[0], GRAPHS[1].format(width), value, reach=1.3, seconds=taken)


def collection_rows(options: argparse.Namespace) -> list[Row]:
    """What collecting costs over bare evaluations."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, str(HERE / "collection_overhead.py"), "--rounds", "3"]
        subprocess.run([*command, *options.collection, "--out", str(out)], check=True)
        found = json.loads(out.read_text())
    kind = "processor" if distributed.device().type == "cpu" else "wall"
    channels = "-".join(map(str, found["network"]["channels"]))
    return [
        row(
            "collection / bare backbone evaluations",
            f"{channels} channels, batch {found['batch']}, DPM-Solver++(2M) with "
            f"{found['solver']['steps']} steps",
            found["ratio"][kind]["median"],
            floor=1.0,
            reach=1.05,
            found=found["ratio"],
        )
    ]


def solver_rows(options: argparse.Namespace) -> list[Row]:
    """Evaluations to be as good as the paper's 512 DDIM steps, by two standards."""
    folder = Path("runs/bench-teacher")
    command = [sys.executable, "-m", "dsno", "teacher", "digits", "--out", str(folder)]
    subprocess.run(command, check=True)
    teacher = load_teacher(folder / "teacher")
    return [*nearness_rows(teacher), *distance_rows(teacher, options.samples)]


def nearness_rows(teacher: Teacher) -> list[Row]:
    """Root mean square distance from the exact solution of the network's own ODE, at each time."""
    denoiser = teacher.denoiser
    times = grid_times(Spacing("quadratic", denoiser.schedule), 4)
    x = torch.randn(64, *denoiser.sample_shape, generator=torch.Generator().manual_seed(0))
    labels = {"class_labels": torch.arange(64) % 10}

    def states(method: str, steps: int, spacing: str) -> Tensor:
        return solve(
            denoiser, x, times, method=method, steps=steps, spacing=spacing, condition=labels
        ).states

    exact = states("heun", 800, "quadratic")

    def error(method: str, steps: int, spacing: str) -> Tensor:
        gap = states(method, steps, spacing) - exact
        return gap.square().mean((0, *range(2, gap.ndim))).sqrt()

    goal = error("ddim", 512, "uniform")
    rows = []
    for method in METHODS:
        if method == "ddim":
            continue
        needed = {
            spacing: least(
                lambda k, s=spacing, m=method: bool((error(m, k, s) <= goal).all()), LADDER
            )
            for spacing in SPACINGS
        }
        # halving the steps divides the error by 2^order; a rough network shows less than the method
        ratio = (error(method, 32, "quadratic") / error(method, 64, "quadratic")).log2()
        named = "evaluations to be as near the exact trajectory as 512 DDIM steps"
        more = {
            "reach": 24,
            "tried": evaluations(method, LADDER[-1]),
            "goal": goal.tolist(),
            "order_seen": ratio.tolist(),
        }
        rows += [
            row(named, f"digits, {method}, {spacing}", count(method, steps), **more)
            for spacing, steps in needed.items()
        ]
    return rows


def distance_rows(teacher: Teacher, samples: int) -> list[Row]:
    """Frechet distance of samples to the real digits."""
    recipe = load_recipe("digits")
    draws = Draws(0, teacher.denoiser.sample_shape, conditions_of(recipe, teacher, None), 500)
    data = load_recipe_data(recipe)
    reference = build_reference(
        data, recipe.evaluate.features, seed=recipe.evaluate.classifier_seed
    )

    def distance(method: str, steps: int, spacing: str) -> float:
        sampler = teacher_sampler(teacher.denoiser, method, steps, spacing)
        made = draw(sampler, draws, samples, lambda *_, **__: None)
        return float(reference.distances(made)["classifier"])

    goal = distance("ddim", 512, "uniform")
    named = "evaluations for the Frechet distance of 512 DDIM steps"
    ladder = [steps for steps in LADDER if steps <= 24]
    more = {"reach": 24, "tried": 24, "goal": goal}
    rows = []
    for spacing in SPACINGS:
        steps = least(lambda k, s=spacing: distance("dpm++2m", k, s) <= goal, ladder)
        setting = f"digits, dpm++2m, {spacing}, {samples:,} samples"
        rows.append(row(named, setting, count("dpm++2m", steps), **more))
    return rows


def count(method: str, steps: int | None) -> int | None:
    """Evaluations of so many steps; None for more than were tried."""
    return None if steps is None else evaluations(method, steps)


def least(good: Callable[[int], bool], ladder: Sequence[int]) -> int | None:
    """The number of steps of a ladder from which on all are good; None if the last is not."""
    found = None
    for steps in reversed(ladder):
        if not good(steps):
            break
        found = steps
    return found


SECTIONS: Mapping[str, Callable[[argparse.Namespace], list[Row]]] = {
    "lift": lift_rows,
    "authors": author_rows,
    "memory": memory_rows,
    "sample": sample_rows,
    "collection": collection_rows,
    "solver": solver_rows,
}
NEED_AUTHORS = ("authors", "memory")


# ---- the table -----------------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> str:
    """Markdown, a row a figure."""
    lines = ["| figure | setting | measured | floor | asked for |", "|---|---|---|---|---|"]
    for section in SECTIONS:
        for r in found["sections"].get(section, {}).get("rows", ()):
            floor = f"{r['floor']:.2f}" if r.get("floor") is not None else ""
            missing = f"> {r['tried']}" if "tried" in r else "not run"
            kind = "d" if isinstance(r["value"], int) else ".2f"
            value = missing if r["value"] is None else format(r["value"], kind)
            reach = f"<= {r['reach']}" if "reach" in r else ""
            lines.append(f"| {r['figure']} | {r['setting']} | {value} | {floor} | {reach} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("results/bench.json"))
    parser.add_argument("--show", type=Path, help="print the table in this file and do nothing")
    parser.add_argument("--rounds", type=int, default=7, help="of taking turns, at least")
    parser.add_argument("--seconds", type=float, default=30, help="of taking turns, at least")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument(
        "--against",
        type=json.loads,
        default=[[128, 1], [128, 4], [256, 1]],
        help="[[width, batch]]",
    )
    parser.add_argument("--memory", type=int, nargs=2, default=[256, 4], help="width and batch")
    parser.add_argument("--samples", type=int, default=2000, help="of a Frechet distance")
    parser.set_defaults(collection=(), changes=())
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.show is not None:
        print(table(json.loads(options.show.read_text(encoding="utf-8"))))
        return
    if options.peak:
        peak(options.peak, *options.memory)
        return
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    sections = found.get("sections", {})
    for name in options.sections or SECTIONS:
        if name in NEED_AUTHORS and not authors.available():
            print(f"{name}: not run, see benchmarks/authors.py", flush=True)
            continue
        rows = SECTIONS[name](options)
        command = shlex.join(["python", *sys.argv])
        sections[name] = {"command": command, "environment": environment(), "rows": rows}
        options.out.parent.mkdir(exist_ok=True)
        write_json(options.out, {"sections": sections})
    print(table({"sections": sections}))


if __name__ == "__main__":
    main()
