"""The work of each stage: read the folder of the one before, write one's own, say what was done."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from safetensors.torch import save_file
from torch import Tensor, nn

from dsno.data.dataset import Dataset
from dsno.diffusion.arithmetic import arithmetic
from dsno.diffusion.conditions import Condition, Conditions
from dsno.diffusion.denoisers import Denoiser, DenoiserProtocol, evaluations_per_call, to_device
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.diffusion.solvers import evaluations, solve
from dsno.diffusion.time_grids import Spacing, grid_times
from dsno.evaluation.arrays import ARRAYS
from dsno.evaluation.batchwise import Desk
from dsno.evaluation.evaluate import evaluate
from dsno.evaluation.features import Wanted, usual_spaces
from dsno.evaluation.reference import build_reference
from dsno.evaluation.samplers import Draws
from dsno.evaluation.trajectories import power_spectrum, trajectory_arrays
from dsno.operator.dsno import DSNO, sampling_cost
from dsno.operator.scaled import ScaledDenoiser
from dsno.recipes.schema import Evaluate, Recipe
from dsno.runs.build import (
    class_frequencies,
    conditions_of,
    count,
    decoder,
    embedded_prompts,
    guided,
    imported_teacher,
    load_recipe_data,
    load_start,
    new_operator,
    new_teacher,
    real_data,
    shape_text,
    summary,
    trajectory_objective,
)
from dsno.runs.dependencies import collect_settings
from dsno.runs.exchange import import_into
from dsno.runs.locate import FINISHED, MODELS, STUDENT, model_of, trajectories_storage
from dsno.runs.records import Extended
from dsno.sampling.folder import weights_checksums
from dsno.support import distributed, seeds
from dsno.support.environment import environment, versions
from dsno.support.errors import InputError
from dsno.support.files import filling, fingerprint, read_json, replacing, write_json
from dsno.support.storage import StorageDir
from dsno.teachers.store import Teacher, load_teacher, save_teacher
from dsno.training.batches import student_batches, teacher_batches
from dsno.training.checkpoints import Checkpoints
from dsno.training.guard import Guard, Measure
from dsno.training.losses import DenoisingObjective
from dsno.training.matching import MatchingObjective, Pair, matching_batches
from dsno.training.trainer import Preview, Row, train
from dsno.trajectories.collect import collect, scales_at
from dsno.trajectories.dataset import TrajectoryStore
from dsno.trajectories.exchange.about import is_export
from dsno.trajectories.foreign import another_recipe
from dsno.trajectories.lmdb import import_lmdb
from dsno.trajectories.manifest import Manifest, has_manifest, load_manifest
from dsno.trajectories.prompts import Prompts, read_prompts, write_prompts

FOLDERS = {
    "teacher": "teacher",
    "collect": "trajectories",
    "train": STUDENT,
    "finish": FINISHED,
}
"""Where a stage's results are, in the folder of a run."""
HISTORY = "history.json"
"""Of a training, in the folder of its result."""
LAST = "checkpoints"
"""Where a run keeps the last checkpoint of each finished training, to extend it from."""
KEPT = "evaluation"
"""Where a run keeps what was measured of each sampler, for an evaluation that goes on."""
PREVIEWS = 16
"""Samples in a logged picture."""


@dataclass(frozen=True)
class Task:
    """What a stage works on.

    Attributes:
        recipe: what to do.
        folder: of the run.
        tags: fingerprint of the stage and those before it, which half-made work carries.
        seconds: how long the earlier stages took.
        command: what the user typed.
        shards: of the trajectories, which this job makes; all if None.
        full: measure `evaluate.more_curves` too.
        extends: checkpoints of an earlier training that this stage goes on from; None if it is not
            an extension.
        extended: where the training was extended, if that made it another.
    """

    recipe: Recipe
    folder: Path
    tags: Mapping[str, str]
    seconds: Mapping[str, float]
    command: str
    shards: range | None = None
    full: bool = False
    extends: Checkpoints | None = None
    extended: Sequence[Extended] = ()

    def checkpoints(self, stage: str) -> list[Checkpoints]:
        """Where a training stage may go on from, besides its own folder's checkpoints."""
        kept = Checkpoints(self.folder / LAST / FOLDERS[stage], self.tags[stage])
        return [kept] if self.extends is None else [kept, self.extends]

    def close_training(self, stage: str) -> None:
        """Keep the last checkpoint of a finished training, outside its result; drop the others."""
        folder = self.folder / FOLDERS[stage] / "checkpoints"
        Checkpoints(folder, self.tags[stage]).move_newest(self.folder / LAST / FOLDERS[stage])
        shutil.rmtree(folder, ignore_errors=True)

    def history(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What is saved of a training beside its weights."""
        return {"history": rows, **({"extended": self.extended} if self.extended else {})}

    @property
    def trajectories(self) -> StorageDir:
        """Where the trajectories are."""
        return trajectories_storage(self.recipe, self.folder)


def make_teacher(task: Task) -> str:
    """Import or train the diffusion model; return what was read and written."""
    if task.recipe.teacher.source:
        return distributed.on_main(lambda: _import_teacher(task))
    return _train_teacher(task)


def _import_teacher(task: Task) -> str:
    teacher, folder = imported_teacher(task.recipe.teacher), task.folder / "teacher"
    save_teacher(teacher, folder)
    return f"read {task.recipe.teacher.source}; wrote {summary(teacher)} to {folder}"


def _train_teacher(task: Task) -> str:
    data, teacher = load_recipe_data(task.recipe), new_teacher(task.recipe)
    spec, folder = task.recipe.teacher, task.folder / "teacher"
    assert spec.batch_size is not None
    averaged, history = train(
        DenoisingObjective(teacher.denoiser),
        teacher_batches(
            data,
            spec.batch_size,
            seed=task.recipe.seed,
            flips=task.recipe.data is not None and task.recipe.data.random_flip,
            conditional=spec.conditional,
            label_dropout=spec.label_dropout,
            null_class=teacher.null_class,
        ),
        spec,
        folder / "checkpoints",
        seed=task.recipe.seed,
        tag=task.tags["teacher"],
        earlier=task.checkpoints("teacher"),
        label="training the teacher",
        log_folder=task.folder / "logs" / "teacher",
        preview=_teacher_preview(task.recipe, teacher),
    )
    assert isinstance(averaged, Denoiser)
    if distributed.is_main():
        save_teacher(dataclasses.replace(teacher, denoiser=averaged), folder)
        write_json(folder / HISTORY, task.history(history))
        task.close_training("teacher")
    return (
        f"read {len(data):,} {data.name} of {shape_text(data.sample_shape)}; "
        f"wrote a U-Net of {count(averaged.network):,} parameters to {folder}"
    )


def _teacher_preview(recipe: Recipe, teacher: Teacher) -> Preview:
    """Samples of the half-trained teacher."""
    draws = _preview_draws(recipe, teacher, None)

    def preview(model: nn.Module) -> Tensor:
        assert isinstance(model, Denoiser)
        noise, condition = send_to_device(draws, next(model.parameters()).device)
        return solve(model, noise, steps=8, condition=condition).states[:, -1]

    return preview


def _preview_draws(
    recipe: Recipe, teacher: Teacher, prompts: Prompts | None
) -> tuple[Tensor, Condition | None]:
    """Noise and condition of the samples that are logged, the same each time."""
    items = range(PREVIEWS)
    shape = teacher.denoiser.sample_shape
    noise = seeds.item_noise(recipe.seed, items, shape, stream=seeds.PREVIEW)
    conditions = conditions_of(recipe, teacher, prompts)
    return noise, conditions.expand(conditions.draw(recipe.seed, items))


def make_trajectories(task: Task) -> str:
    """Solve the teacher's ODE; return what was read and written."""
    spec, storage = task.recipe.collect, task.trajectories
    teacher = load_teacher(task.folder / "teacher")
    if spec.source:
        return distributed.on_main(lambda: _import_trajectories(task, teacher))
    denoiser = guided(task.recipe, teacher)
    wanted = distributed.on_main(lambda: _wanted(task, teacher, denoiser))
    manifest = collect(
        denoiser,
        storage,
        wanted,
        batch_size=spec.batch_size,
        conditions=conditions_of(task.recipe, teacher, read_prompts(storage, wanted)),
        shards=task.shards,
        compiled=spec.compile,
    )
    size, made = sum(s.bytes for s in manifest.shards), sum(s.count for s in manifest.shards)
    waiting = f"; {len(manifest.missing):,} shards are still to be made" if manifest.missing else ""
    return (
        f"read {task.folder / 'teacher'}; wrote {made:,} trajectories of {spec.slices} states by "
        f"{spec.solver} with {spec.steps} steps to {storage} ({size / 1e6:,.1f} MB){waiting}"
    )


def _wanted(task: Task, teacher: Teacher, denoiser: DenoiserProtocol) -> Manifest:
    """What to collect; prompts are written first."""
    spec, storage = task.recipe.collect, task.trajectories
    prompts = _kept_prompts(task)
    checksum = "" if prompts is None else load_manifest(storage).prompts_sha256
    if prompts is None and (prompts := embedded_prompts(task.recipe, teacher)) is not None:
        checksum = write_prompts(storage, prompts)
    times = grid_times(Spacing(spec.grid, denoiser.schedule), spec.slices)
    assert spec.count is not None
    return Manifest(
        tag=task.tags["collect"],
        count=spec.count,
        shard_size=min(spec.shard_size, spec.count),
        sample_shape=denoiser.sample_shape,
        times=tuple(times.tolist()),
        scales=scales_at(denoiser, times),
        dtype=spec.dtype,
        seed=task.recipe.seed,
        num_classes=teacher.num_classes,
        solver={
            "method": spec.solver,
            "steps": spec.steps,
            "spacing": spec.spacing,
            "nfe": evaluations(spec.solver, spec.steps) * evaluations_per_call(denoiser),
            **({} if spec.precision == "exact" else {"precision": spec.precision}),
        },
        guidance_scale=spec.guidance_scale,
        prompts=None if prompts is None else len(prompts.texts),
        prompts_sha256=checksum,
    )


def _kept_prompts(task: Task) -> Prompts | None:
    """The embedded prompts of an interrupted collection, if they are whole."""
    storage = task.trajectories
    if not has_manifest(storage):
        return None
    manifest = load_manifest(storage)
    if manifest.tag != task.tags["collect"]:
        raise another_recipe(storage, manifest, collect_settings(task.recipe))
    try:
        return read_prompts(storage, manifest)
    except InputError:
        return None


def _import_trajectories(task: Task, teacher: Teacher) -> str:
    spec, storage, tag = task.recipe.collect, task.trajectories, task.tags["collect"]

    def check(made: Manifest) -> None:
        shape, wanted = made.sample_shape, teacher.denoiser.sample_shape
        labels, known = made.num_classes, teacher.num_classes
        if shape != wanted or (labels is None) != (known is None) or (labels or 0) > (known or 0):
            raise InputError(
                f"The trajectories in {spec.source} are of shape {shape_text(shape)} with "
                f"{labels or 'no'} classes, but the teacher makes {shape_text(wanted)} with "
                f"{known or 'no'} classes."
            )

    if is_export(StorageDir(spec.source)):
        manifest = import_into(task.recipe, teacher, storage, tag)
    else:
        manifest = import_lmdb(
            Path(spec.source),
            storage,
            slices=spec.slices,
            spacing=spec.grid,
            schedule=teacher.denoiser.schedule,
            dtype=spec.dtype,
            shard_size=spec.shard_size,
            tag=tag,
            check=check,
        )
    return f"read {spec.source}; wrote {manifest.count:,} trajectories to {storage}"


def make_student(task: Task) -> str:
    """Train the operator; return what was read and written."""
    student, spec, folder = task.recipe.student, task.recipe.train, task.folder / "student"
    teacher = load_teacher(task.folder / "teacher")
    denoiser = teacher.denoiser
    operator = new_operator(task.recipe, teacher)
    load_start(operator, spec.start_from)
    store = _store(task, operator)
    objective = trajectory_objective(spec, operator, denoiser)
    assert spec.batch_size is not None
    averaged, history = train(
        objective,
        student_batches(
            store,
            spec.batch_size,
            seed=task.recipe.seed,
            window=spec.shuffle_shards,
            trajectory_every=spec.trajectory_every,
        ),
        spec,
        folder / "checkpoints",
        seed=task.recipe.seed,
        tag=task.tags["train"],
        earlier=task.checkpoints("train"),
        label="training the student",
        log_folder=task.folder / "logs" / "student",
        preview=_student_preview(task.recipe, teacher, store.prompts),
    )
    assert isinstance(averaged, DSNO)
    _save_student(task, teacher, averaged, folder, task.history(history))
    if distributed.is_main():
        task.close_training("train")
    return (
        f"read {len(store):,} trajectories; wrote an operator of {count(averaged):,} parameters, "
        f"{averaged.lifted.time_enters}, {student.slices} slices, to {folder}"
    )


def _store(task: Task, operator: DSNO) -> TrajectoryStore:
    """The run's trajectories at the operator's times."""
    limit = task.recipe.collect.cache_gb
    return TrajectoryStore(
        task.trajectories,
        tag=task.tags["collect"],
        times=operator.times.tolist(),
        cache=task.folder / "cache",
        cache_bytes=math.inf if limit is None else limit * 1e9,
    )


def _wanted_features(spec: Evaluate, data: Dataset, device: torch.device) -> Wanted:
    """What the feature spaces of an evaluation are made for."""
    return Wanted(
        data.sample_shape,
        inception=spec.inception,
        torchscript=spec.torchscript,
        device=device,
    )


def _save_student(
    task: Task, teacher: Teacher, operator: DSNO, folder: Path, history: Mapping[str, Any]
) -> None:
    """Write a trained operator as a pipeline, with the history of its training."""
    from dsno.pipeline import DSNOModel, save_pipeline  # diffusers: seconds

    model = DSNOModel.from_operator(
        operator,
        class_frequencies=class_frequencies(task.recipe, teacher),
        guidance_scale=task.recipe.collect.guidance_scale,
        is_textual=teacher.is_textual,
    )
    if distributed.is_main():
        with filling(folder) as temporary:
            save_pipeline(model, temporary, teacher.latents, teacher.text)
            write_json(temporary / HISTORY, history)


def finish_student(task: Task) -> str:
    """Match the distribution of the student's samples; return what was read and written."""
    recipe, folder = task.recipe, task.folder / FINISHED
    spec = recipe.finish
    assert spec is not None
    assert spec.batch_size is not None
    teacher = load_teacher(task.folder / "teacher")
    solver, shape = guided(recipe, teacher), teacher.denoiser.sample_shape
    guidance = (solver.scale, solver.null_condition) if isinstance(solver, GuidedDenoiser) else None
    manifest = load_manifest(task.trajectories)
    prompts = read_prompts(task.trajectories, manifest)
    conditions = conditions_of(recipe, teacher, prompts)
    operator = load_operator(task.folder / STUDENT)
    start = teacher.denoiser
    if operator.lifted.config.guidance:
        start = ScaledDenoiser.like(start, operator.lifted)
    guard = Guard(_finish_measure(task, teacher, conditions), spec.recall_drop)
    averaged, history = train(
        MatchingObjective(
            Pair(operator, start),
            teacher.denoiser,
            guidance=guidance,
            anchor=spec.anchor,
            fake_rate=spec.fake_rate,
        ),
        matching_batches(
            spec.batch_size,
            shape,
            conditions,
            seed=recipe.seed,
            times=spec.times,
            fake_steps=spec.fake_steps,
            fake_first=spec.fake_first,
            store=_store(task, operator) if spec.anchor else None,
        ),
        spec,
        folder / "checkpoints",
        seed=recipe.seed,
        tag=task.tags["finish"],
        label="finishing the student",
        log_folder=task.folder / "logs" / "finish",
        preview=_student_preview(recipe, teacher, prompts),
        guard=guard,
    )
    assert isinstance(averaged, Pair)
    kept = guard.best(guard.looks)["step"]
    about = {"kept": kept, "samples": spec.watch_samples, "looks": guard.looks}
    _save_student(task, teacher, averaged.student, folder, {"history": history, "finish": about})
    if distributed.is_main():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return f"read {task.folder / STUDENT}; wrote the student of step {kept:,} to {folder}"


def _finish_measure(task: Task, teacher: Teacher, conditions: Conditions) -> Measure:
    """Distance to the data, if there are any, and recall of a half-finished student."""
    recipe, device, decode = task.recipe, distributed.device(), decoder(teacher)
    finish = recipe.finish
    assert finish is not None
    count, chosen = finish.watch_samples, finish.watch_features
    # of `evaluate` only what changes no result: the rest may change after the finish
    spec = Evaluate(
        samples=count,
        batch_size=recipe.evaluate.batch_size,
        inception=recipe.evaluate.inception,
        torchscript=finish.watch_torchscript,
    )
    if teacher.latents is not None:
        teacher.latents.vae.to(device)
    # noises of no other sample: an evaluation's have the seed, those of its reference the next one
    draws = Draws(
        (recipe.seed + 2) % 2**63,
        teacher.denoiser.sample_shape,
        conditions,
        min(spec.batch_size, count),
        device,
    )
    data = real_data(recipe.model_copy(update={"evaluate": spec}), teacher, draws)
    reference = build_reference(
        data,
        usual_spaces(data)[-1:] if chosen is None else [chosen],
        seed=spec.classifier_seed,
        wanted=_wanted_features(spec, data, device),
        batch_size=spec.batch_size,
    )

    def measure(model: nn.Module) -> tuple[float | None, float]:
        batches = (draws.batch(items) for items in draws.batches(count))
        images = torch.cat([decode(model(*batch)).cpu() for batch in batches])

        def found() -> tuple[float | None, float]:
            measures = reference.measure(images)
            distance, recall = (
                float(next(iter(measures[name].values())))
                for name in ("frechet_distance", "recall")
            )
            return distance if recipe.data is not None else None, recall

        return distributed.on_main(found)

    return measure


def _student_preview(recipe: Recipe, teacher: Teacher, prompts: Prompts | None) -> Preview:
    """Samples of the half-trained student."""
    draws, decode = _preview_draws(recipe, teacher, prompts), decoder(teacher)

    def preview(model: nn.Module) -> Tensor:
        operator = model.student if isinstance(model, Pair) else model
        assert isinstance(operator, DSNO)
        noise, condition = send_to_device(draws, next(operator.parameters()).device)
        return decode(operator.sample(noise, condition).cpu())

    return preview


@arithmetic("exact")
def make_metrics(task: Task) -> str:
    """Measure every sampler; return what was read and written."""
    spec, folder = task.recipe.evaluate, task.folder / "report"
    if task.full:
        spec = spec.model_copy(update={"curves": (*spec.curves, *spec.more_curves)})
    teacher = load_teacher(task.folder / "teacher")
    device = distributed.device()
    last = model_of(task.recipe)
    operator = load_operator(task.folder / last).to(device)
    unfinished = load_operator(task.folder / STUDENT).to(device) if last == FINISHED else None
    denoiser, decode = to_device(guided(task.recipe, teacher), device), decoder(teacher)
    if teacher.latents is not None:
        teacher.latents.vae.to(device)
    manifest = load_manifest(task.trajectories)
    prompts = read_prompts(task.trajectories, manifest)
    conditions = conditions_of(task.recipe, teacher, prompts)
    draws = Draws(task.recipe.seed, denoiser.sample_shape, conditions, spec.batch_size, device)
    kept = task.folder / KEPT
    now = kept / fingerprint(
        [
            task.tags.get("finish", task.tags["train"]),
            spec.samples,
            spec.reference_steps,
            versions(),
        ]
    )
    data = real_data(task.recipe, teacher, draws, Desk(now))
    reference = build_reference(
        data,
        spec.features,
        seed=spec.classifier_seed,
        wanted=_wanted_features(spec, data, device),
        desk=Desk(now),
        batch_size=spec.batch_size,
    )
    spaces = [space.identity for space in reference.spaces.values()]
    desk = Desk(now / fingerprint([data.digest, spaces, spec.pictures]))
    metrics, arrays = evaluate(
        denoiser, operator, reference, draws, spec, decode, unfinished=unfinished, desk=desk
    )
    metrics["reference"]["real"] = task.recipe.data is not None

    def finish() -> None:
        shown = arrays | trajectory_arrays(denoiser, operator, draws, decode)
        config, spectrum = operator.lifted.config, None
        if not config.readout:
            power = power_spectrum(denoiser, operator.spacing, draws)
            spectrum = {**power, "kept": config.modes}
        record = {
            "name": task.recipe.name,
            "title": task.recipe.title,
            **metrics,
            "protocol": protocol(task, data),
            "trained_times": operator.times.tolist(),
            "teacher_history": _saved(task.folder / "teacher", "history"),
            "student_history": _saved(task.folder / "student", "history"),
            "extended": {
                name: found
                for name in ("teacher", "student")
                if (found := _saved(task.folder / name, "extended"))
            },
            **({} if unfinished is None else {"finish": _saved(task.folder / FINISHED, "finish")}),
            "spectrum": spectrum,
            "parameters": {
                "teacher": count(teacher.denoiser.network),
                "student": count(operator),
                "temporal": count(operator.lifted.temporal),
            },
            "trajectories": {
                "count": manifest.count,
                "solver": manifest.solver["method"],
                **{key: manifest.solver[key] for key in ("steps", "spacing", "nfe")},
                "precision": manifest.precision,
            },
            "weights": {
                name: weights_checksums(task.folder / name)
                for name in MODELS[: MODELS.index(last) + 1]
            },
            "sampling_cost": _sampling_cost(operator, teacher, draws),
            "durations": {s: task.seconds[s] for s in FOLDERS if s in task.tags},
            "recipe": task.recipe.model_dump(mode="json"),
            "environment": environment(),
            "command": task.command,
        }
        with replacing(folder / ARRAYS) as temporary:
            save_file({k: v.float().contiguous() for k, v in shown.items()}, temporary)
        write_json(folder / "metrics.json", record)
        for other in kept.iterdir():
            if other != now:  # of another recipe, or an older version
                shutil.rmtree(other, ignore_errors=True)

    distributed.on_main(finish)
    return (
        f"read {spec.samples:,} samples of each of {len(metrics['samplers'])} samplers and "
        f"{len(data):,} {data.name}; wrote {folder / 'metrics.json'}"
    )


def _sampling_cost(operator: DSNO, teacher: Teacher, draws: Draws) -> float | None:
    """Multiply-adds of a sample, in evaluations of the teacher's network; None if it has none."""
    _, condition = draws.batch(range(1))
    try:
        return sampling_cost(operator, teacher.denoiser, condition)
    except ZeroDivisionError:
        return None


def protocol(task: Task, data: Dataset) -> dict[str, Any]:
    """What decides the numbers of an evaluation and stands nowhere else in metrics.json."""
    recipe = task.recipe
    has_split = recipe.data is not None and recipe.data.source in ("folder", "huggingface")
    return {
        "split": recipe.data.split if has_split and recipe.data is not None else None,
        "shape": list(data.sample_shape),
        "ema_decay": {
            "teacher": None if recipe.teacher.source else recipe.teacher.ema_decay,
            "student": (recipe.finish or recipe.train).ema_decay,
        },
        "full": task.full,
        "data_sha256": data.digest,
    }


def make_report(task: Task) -> str:
    """Draw the report; return what was read and written."""
    from dsno.evaluation.report import write_report  # matplotlib: a second

    folder = task.folder / "report"
    return f"read {folder / 'metrics.json'}; wrote {write_report(folder, title=task.recipe.title)}"


WORK: dict[str, Callable[[Task], str]] = {
    "teacher": make_teacher,
    "collect": make_trajectories,
    "train": make_student,
    "finish": finish_student,
    "evaluate": make_metrics,
    "report": make_report,
}


def load_operator(folder: Path) -> DSNO:
    """The trained operator in a model's folder."""
    from dsno.pipeline import DSNOPipeline  # diffusers: seconds

    operator: DSNO = DSNOPipeline.from_pretrained(folder).model.operator.eval()
    return operator


def _saved(folder: Path, key: str) -> Any:
    """What is saved of a training under a key; nothing of a teacher that was imported."""
    if not (folder / HISTORY).exists():
        return []
    return read_json(folder / HISTORY, "training history", "train again").get(key, [])
