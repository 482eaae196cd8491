"""The work of each stage: read the folder of the one before, write one's own, say what was done."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dsno import seeds
from dsno.backbones.unet import unet_sites
from dsno.collect import collect, scales_at
from dsno.data import load_data
from dsno.denoisers import Denoiser, Preconditioning
from dsno.evaluate import Draws, build_reference, evaluate, power_spectrum, trajectory_arrays
from dsno.files import filling, read_json, replacing, write_json
from dsno.grids import Spacing, grid_times
from dsno.objectives import denoising_loss, slice_weights, trajectory_loss
from dsno.operator import DSNO, match_sites
from dsno.pipeline import DSNOModel, DSNOPipeline, save_pipeline
from dsno.recipes.schema import Optimisation, Recipe
from dsno.report import write_report
from dsno.schedules import schedule_from_config
from dsno.solvers import evaluations
from dsno.teachers.unet import build_unet, load_teacher, save_teacher, unet_denoiser
from dsno.training import Plan, train
from dsno.trajectories import Manifest, TrajectoryStore, load_manifest


@dataclass(frozen=True)
class Task:
    """What a stage is given.

    Attributes:
        recipe: what to do.
        folder: of the run.
        tags: fingerprint of every stage, which half-made work carries.
        seconds: how long the earlier stages took.
        command: what the user typed.
    """

    recipe: Recipe
    folder: Path
    tags: Mapping[str, str]
    seconds: Mapping[str, float]
    command: str


def make_teacher(task: Task) -> str:
    """Train the diffusion model; return what was read and written."""
    data, denoiser = load_data(task.recipe.data.source), new_teacher(task.recipe)
    spec, folder = task.recipe.teacher, task.folder / "teacher"

    def loss(model: nn.Module, step: int) -> tuple[Tensor, None]:
        assert isinstance(model, Denoiser)
        rows = seeds.batch_items(task.recipe.seed, step, spec.batch_size, len(data.images))
        clean = data.images[rows]
        # one time in each of batch_size equal strata
        t = (torch.arange(len(clean)) + torch.rand(len(clean), dtype=torch.float64)) / len(clean)
        condition = {"class_labels": data.labels[rows]} if spec.conditional else None
        noise = torch.randn(clean.shape)
        return denoising_loss(model, clean, noise, t, condition), None

    averaged, history = train(
        denoiser,
        loss,
        _plan(spec, task.recipe.seed),
        folder / "checkpoints",
        tag=task.tags["teacher"],
        label="training the teacher",
    )
    assert isinstance(averaged, Denoiser)
    save_teacher(averaged, folder)
    write_json(folder / "history.json", {"history": history})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return (
        f"read {len(data.images):,} {data.name} of {_shape(data.sample_shape)}; "
        f"wrote a U-Net of {_count(averaged.network):,} parameters to {folder}"
    )


def make_trajectories(task: Task) -> str:
    """Solve the teacher's ODE; return what was read and written."""
    spec, folder = task.recipe.collect, task.folder / "trajectories"
    denoiser, data = load_teacher(task.folder / "teacher"), load_data(task.recipe.data.source)
    times = grid_times(Spacing(spec.grid, denoiser.schedule), spec.slices)
    conditional = task.recipe.teacher.conditional
    solver = {
        "method": spec.solver,
        "steps": spec.steps,
        "spacing": spec.spacing,
        "nfe": evaluations(spec.solver, spec.steps),
    }
    wanted = Manifest(
        tag=task.tags["collect"],
        count=spec.count,
        shard_size=min(spec.shard_size, spec.count),
        sample_shape=denoiser.sample_shape,
        times=tuple(times.tolist()),
        scales=scales_at(denoiser, times),
        dtype=spec.dtype,
        seed=task.recipe.seed,
        num_classes=data.num_classes if conditional else None,
        solver=solver,
    )
    manifest = collect(
        denoiser,
        folder,
        wanted,
        batch_size=spec.batch_size,
        label_frequencies=data.label_frequencies if conditional else None,
    )
    size = sum(s.bytes for s in manifest.shards)
    return (
        f"read {task.folder / 'teacher'}; wrote {manifest.count:,} trajectories of "
        f"{spec.slices} states by {spec.solver} with {spec.steps} steps to {folder} "
        f"({size / 1e6:,.1f} MB)"
    )


def make_student(task: Task) -> str:
    """Train the operator; return what was read and written."""
    student, spec, folder = task.recipe.student, task.recipe.train, task.folder / "student"
    denoiser = load_teacher(task.folder / "teacher")
    operator = new_operator(task.recipe, denoiser)
    times = operator.times
    store = TrajectoryStore(
        task.folder / "trajectories", tag=task.tags["collect"], times=times.tolist()
    )
    scales = torch.tensor(scales_at(denoiser, times)).reshape(
        1, -1, *[1] * len(operator.sample_shape)
    )
    weights = slice_weights(
        spec.weight,
        denoiser.schedule,
        times,
        weight_max=spec.weight_max,
        sigma_data=denoiser.sigma_data,
    )

    def loss(model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        rows = seeds.batch_items(task.recipe.seed, step, spec.batch_size, len(store))
        noise, states, condition = store.rows(rows)
        predicted = model(noise, condition) / scales
        return trajectory_loss(
            predicted, states, weights, distance=spec.loss, delta=spec.huber_delta
        )

    averaged, history = train(
        operator,
        loss,
        _plan(spec, task.recipe.seed),
        folder / "checkpoints",
        tag=task.tags["train"],
        label="training the student",
    )
    assert isinstance(averaged, DSNO)
    frequencies = (
        load_data(task.recipe.data.source).label_frequencies
        if task.recipe.teacher.conditional
        else None
    )
    model = DSNOModel.from_operator(averaged, class_frequencies=frequencies)
    with filling(folder) as temporary:
        save_pipeline(model, temporary)
        write_json(temporary / "history.json", {"history": history})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return (
        f"read {len(store):,} trajectories; wrote an operator of {_count(model):,} parameters, "
        f"{len(averaged.lifted.sites)} time-mixing sites, {student.slices} slices, to {folder}"
    )


def make_metrics(task: Task) -> str:
    """Measure every sampler; return what was read and written."""
    spec, folder = task.recipe.evaluate, task.folder / "report"
    denoiser, operator, data = (
        load_teacher(task.folder / "teacher"),
        load_operator(task.folder),
        load_data(task.recipe.data.source),
    )
    conditional = task.recipe.teacher.conditional
    draws = Draws(
        task.recipe.seed,
        data.sample_shape,
        data.label_frequencies if conditional else None,
        spec.batch_size,
    )
    reference = build_reference(data, spec.features, seed=spec.classifier_seed)
    metrics, arrays = evaluate(denoiser, operator, reference, draws, spec)
    arrays |= trajectory_arrays(denoiser, operator, draws)
    spectrum = power_spectrum(denoiser, operator.spacing, draws)
    manifest = load_manifest(task.folder / "trajectories")
    record = {
        "name": task.recipe.name,
        "title": task.recipe.title,
        **metrics,
        "trained_times": operator.times.tolist(),
        "teacher_history": _history(task.folder / "teacher"),
        "student_history": _history(task.folder / "student"),
        "spectrum": {**spectrum, "kept": operator.lifted.modes},
        "parameters": {
            "teacher": _count(denoiser.network),
            "student": _count(operator),
            "temporal": _count(operator.lifted.temporal),
        },
        "trajectories": {
            "count": manifest.count,
            "solver": manifest.solver["method"],
            **{key: manifest.solver[key] for key in ("steps", "spacing", "nfe")},
        },
        "durations": {s: task.seconds[s] for s in ("teacher", "collect", "train")},
        "recipe": task.recipe.model_dump(mode="json"),
        "environment": environment(),
        "command": task.command,
    }
    with replacing(folder / "arrays.safetensors") as temporary:
        save_file({k: v.float().contiguous() for k, v in arrays.items()}, temporary)
    write_json(folder / "metrics.json", record)
    return (
        f"read {spec.samples:,} samples of each of {len(metrics['samplers'])} samplers and "
        f"{len(data.images):,} real {data.name}; wrote {folder / 'metrics.json'}"
    )


def make_report(task: Task) -> str:
    """Draw the report; return what was read and written."""
    folder = task.folder / "report"
    return f"read {folder / 'metrics.json'}; wrote {write_report(folder)}"


WORK: dict[str, Callable[[Task], str]] = {
    "teacher": make_teacher,
    "collect": make_trajectories,
    "train": make_student,
    "evaluate": make_metrics,
    "report": make_report,
}


def new_teacher(recipe: Recipe) -> Denoiser:
    """The untrained teacher.

    Raises:
        InputError: if the recipe describes a network that cannot be built.
    """
    data, spec = load_data(recipe.data.source), recipe.teacher
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_torch_seed(recipe.seed, 0))
        network = build_unet(
            data.sample_shape,
            num_classes=data.num_classes if spec.conditional else None,
            **spec.network.model_dump(),
        )
    preconditioning = Preconditioning(
        schedule_from_config(spec.schedule), spec.prediction_type, spec.sigma_data
    )
    return unet_denoiser(network, preconditioning)


def new_operator(recipe: Recipe, denoiser: Denoiser) -> DSNO:
    """The untrained operator.

    Raises:
        InputError: if a site the recipe names is not in the network.
    """
    spec = recipe.student
    sites = list(spec.sites)
    if "default" in sites:
        sites.remove("default")
        sites = unet_sites(denoiser.network) + (
            match_sites(denoiser.network, sites) if sites else []
        )
    labels = {"class_labels": torch.zeros(1, dtype=torch.int64)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_torch_seed(recipe.seed, 1))
        operator = DSNO.from_teacher(
            denoiser,
            sites,
            slices=spec.slices,
            modes=spec.modes,
            spacing=recipe.collect.grid,
            output=spec.output,
            condition=labels if recipe.teacher.conditional else None,
        )
    return operator


def load_operator(folder: Path) -> DSNO:
    """The trained operator of a run."""
    operator: DSNO = DSNOPipeline.from_pretrained(folder / "student").model.operator.eval()
    return operator


def environment() -> dict[str, Any]:
    """Where the numbers were made."""
    return {
        "dsno": importlib.metadata.version("dsno"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": importlib.metadata.version("diffusers"),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _plan(spec: Optimisation, seed: int) -> Plan:
    names = {f.name for f in dataclasses.fields(Plan)}
    values = {k: v for k, v in dict(spec).items() if k in names}
    return Plan(seed=seed, **values)


def _torch_seed(seed: int, index: int) -> int:
    return int(seeds.generator(seed, seeds.WEIGHTS, index).integers(2**63))


def _history(folder: Path) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = read_json(
        folder / "history.json", "training history", "train again"
    )["history"]
    return history


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape)
