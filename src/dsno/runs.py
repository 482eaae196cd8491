"""A run: its folder, its stages, what is finished and what must be made again.

    runs/<name>/recipe.yaml        the resolved recipe
               /stages.json        finished stages, with what they depended on
               /teacher/  /trajectories/  /student/  /samples/  /report/

A stage's fingerprint covers its sections of the recipe and the fingerprint of the stage before it,
so a change anywhere upstream is seen downstream. A finished stage is skipped; one whose part of the
recipe changed is started again, and the change is named.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from dsno import seeds
from dsno.backbones.unet import unet_sites
from dsno.collect import collect, scales_at
from dsno.console import say
from dsno.data import Dataset, load_data
from dsno.denoisers import Denoiser, Preconditioning
from dsno.errors import InputError
from dsno.evaluate import Draws, build_reference, evaluate, power_spectrum, trajectory_arrays
from dsno.files import (
    filling,
    fingerprint,
    read_json,
    replacing,
    sha256,
    write_json,
    write_text,
)
from dsno.objectives import denoising_loss, slice_weights, trajectory_loss
from dsno.operator import DSNO, grid_times, match_sites
from dsno.pipeline import DSNOModel, DSNOPipeline, save_pipeline
from dsno.recipes.load import load_recipe
from dsno.recipes.schema import Optimisation, Recipe
from dsno.report import write_report
from dsno.schedules import Spacing, schedule_from_config
from dsno.solvers import evaluations
from dsno.teachers.unet import build_unet, load_teacher, save_teacher, unet_denoiser
from dsno.training import Plan, train
from dsno.trajectories import (
    MANIFEST,
    Manifest,
    TrajectoryStore,
    damaged_shards,
    load_manifest,
)

STAGES = ("teacher", "collect", "train", "evaluate", "report")
FOLDERS = {"teacher": "teacher", "collect": "trajectories", "train": "student"}
# What a stage reads of the recipe besides what the stage before it did.
SECTIONS = {
    "teacher": ("seed", "data", "teacher"),
    "collect": ("collect",),
    "train": ("student", "train"),
    "evaluate": ("evaluate",),
    "report": ("title",),
}
# Keys that do not change a result.
NEUTRAL = {"checkpoint_every"}
VERSION = 1  # raise when a stage's results change for the same recipe


class StageRecord(TypedDict):
    """What stages.json says of a stage."""

    fingerprint: str
    inputs: dict[str, Any]
    seconds: float
    finished: bool
    files: dict[str, str]
    """Checksums of what a finished stage left; of trajectories the manifest has them."""


class Run:
    """A recipe and the folder its stages live in.

    Args:
        recipe: what to do.
        folder: where; made by the first stage if missing.
        command: what the user typed, for the report.

    Raises:
        InputError: if the folder belongs to another recipe or to something else.
    """

    def __init__(self, recipe: Recipe, folder: Path, *, command: str = "") -> None:
        self.recipe = recipe
        self.folder = folder
        self.command = command
        self.values = recipe.model_dump(mode="json")
        self._check_folder()

    # ------------------------------------------------------------------------ stages

    def run(self) -> None:
        """Every stage, each skipped if finished."""
        for stage in STAGES:
            self.stage(stage)

    def stage(self, name: str) -> None:
        """One stage, skipped if it is finished.

        Raises:
            InputError: if the stage before it is not finished, or was made by another recipe; or if
                the recipe cannot work. Nothing is changed then.
        """
        if name != STAGES[0]:
            self.require(STAGES[STAGES.index(name) - 1])
        self._write_recipe()
        if self._finished(name):
            say(f"{name}: finished already in {self._place(name)}.")
            return
        self._begin(name)
        start = time.monotonic()
        work: dict[str, Callable[[], str]] = {
            "teacher": self._teacher,
            "collect": self._collect,
            "train": self._train,
            "evaluate": self._evaluate,
            "report": self._report,
        }
        record = self._stages()[name]
        try:
            outcome = work[name]()
            record |= {"finished": True, "files": self._checksums(name)}
        finally:  # an interrupted run's time counts too
            seconds = time.monotonic() - start
            record["seconds"] = round(record["seconds"] + seconds, 1)
            self._write_stage(name, record)
        say(f"{name}: {outcome} ({seconds:.0f} s)")

    def _teacher(self) -> str:
        data, denoiser = self.data(), self._new_teacher()
        spec, folder = self.recipe.teacher, self.folder / "teacher"

        def loss(model: nn.Module, step: int) -> tuple[Tensor, None]:
            assert isinstance(model, Denoiser)
            rows = seeds.batch_items(self.recipe.seed, step, spec.batch_size, len(data.images))
            clean = data.images[rows]
            # one time in each of batch_size equal strata
            t = (torch.arange(len(clean)) + torch.rand(len(clean), dtype=torch.float64)) / len(
                clean
            )
            condition = {"class_labels": data.labels[rows]} if spec.conditional else None
            noise = torch.randn(clean.shape)
            return denoising_loss(model, clean, noise, t, condition), None

        averaged, history = train(
            denoiser,
            loss,
            _plan(spec, self.recipe.seed),
            folder / "checkpoints",
            tag=self.fingerprint("teacher"),
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

    def _collect(self) -> str:
        spec, folder = self.recipe.collect, self.folder / "trajectories"
        denoiser, data = load_teacher(self.folder / "teacher"), self.data()
        times = grid_times(Spacing(spec.grid, denoiser.schedule), spec.slices)
        conditional = self.recipe.teacher.conditional
        solver = {
            "method": spec.solver,
            "steps": spec.steps,
            "spacing": spec.spacing,
            "nfe": evaluations(spec.solver, spec.steps),
        }
        wanted = Manifest(
            tag=self.fingerprint("collect"),
            count=spec.count,
            shard_size=min(spec.shard_size, spec.count),
            sample_shape=denoiser.sample_shape,
            times=tuple(times.tolist()),
            scales=scales_at(denoiser, times),
            dtype=spec.dtype,
            seed=self.recipe.seed,
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
            f"read {self.folder / 'teacher'}; wrote {manifest.count:,} trajectories of "
            f"{spec.slices} states by {spec.solver} with {spec.steps} steps to {folder} "
            f"({size / 1e6:,.1f} MB)"
        )

    def _train(self) -> str:
        student, spec, folder = self.recipe.student, self.recipe.train, self.folder / "student"
        denoiser = load_teacher(self.folder / "teacher")
        operator = self._new_operator(denoiser)
        times = operator.times
        store = TrajectoryStore(
            self.folder / "trajectories", tag=self.fingerprint("collect"), times=times.tolist()
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
            rows = seeds.batch_items(self.recipe.seed, step, spec.batch_size, len(store))
            noise, states, condition = store.rows(rows)
            predicted = model(noise, condition) / scales
            return trajectory_loss(
                predicted, states, weights, distance=spec.loss, delta=spec.huber_delta
            )

        averaged, history = train(
            operator,
            loss,
            _plan(spec, self.recipe.seed),
            folder / "checkpoints",
            tag=self.fingerprint("train"),
            label="training the student",
        )
        assert isinstance(averaged, DSNO)
        frequencies = self.data().label_frequencies if self.recipe.teacher.conditional else None
        model = DSNOModel.from_operator(averaged, class_frequencies=frequencies)
        with filling(folder) as temporary:
            save_pipeline(model, temporary)
            write_json(temporary / "history.json", {"history": history})
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return (
            f"read {len(store):,} trajectories; wrote an operator of {_count(model):,} parameters, "
            f"{len(averaged.lifted.sites)} time-mixing sites, {student.slices} slices, to {folder}"
        )

    def _evaluate(self) -> str:
        spec, folder = self.recipe.evaluate, self.folder / "report"
        denoiser, operator, data = (
            load_teacher(self.folder / "teacher"),
            self.operator(),
            self.data(),
        )
        conditional = self.recipe.teacher.conditional
        draws = Draws(
            self.recipe.seed,
            data.sample_shape,
            data.label_frequencies if conditional else None,
            spec.batch_size,
        )
        reference = build_reference(data, spec.features, seed=spec.classifier_seed)
        metrics, arrays = evaluate(denoiser, operator, reference, draws, spec)
        arrays |= trajectory_arrays(denoiser, operator, draws)
        spectrum = power_spectrum(denoiser, operator.spacing, draws)
        manifest = load_manifest(self.folder / "trajectories")
        stages = self._stages()
        record = {
            "name": self.recipe.name,
            "title": self.recipe.title,
            **metrics,
            "trained_times": operator.times.tolist(),
            "teacher_history": _history(self.folder / "teacher"),
            "student_history": _history(self.folder / "student"),
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
            "durations": {s: stages[s]["seconds"] for s in ("teacher", "collect", "train")},
            "recipe": self.values,
            "environment": environment(),
            "command": self.command,
        }
        with replacing(folder / "arrays.safetensors") as temporary:
            save_file({k: v.float().contiguous() for k, v in arrays.items()}, temporary)
        write_json(folder / "metrics.json", record)
        return (
            f"read {spec.samples:,} samples of each of {len(metrics['samplers'])} samplers and "
            f"{len(data.images):,} real {data.name}; wrote {folder / 'metrics.json'}"
        )

    def _report(self) -> str:
        folder = self.folder / "report"
        return f"read {folder / 'metrics.json'}; wrote {write_report(folder)}"

    # ------------------------------------------------------------------ what is in it

    def data(self) -> Dataset:
        """The real data of the recipe."""
        return load_data(self.recipe.data.source)

    def operator(self) -> DSNO:
        """The trained operator."""
        operator: DSNO = DSNOPipeline.from_pretrained(self.folder / "student").model.operator.eval()
        return operator

    def metrics(self) -> dict[str, Any]:
        """What the evaluation measured."""
        return read_json(
            self.folder / "report" / "metrics.json", "evaluation", "run `dsno evaluate`"
        )

    def _new_teacher(self) -> Denoiser:
        data, spec = self.data(), self.recipe.teacher
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_torch_seed(self.recipe.seed, 0))
            network = build_unet(
                data.sample_shape,
                num_classes=data.num_classes if spec.conditional else None,
                **spec.network.model_dump(),
            )
        preconditioning = Preconditioning(
            schedule_from_config(spec.schedule), spec.prediction_type, spec.sigma_data
        )
        return unet_denoiser(network, preconditioning)

    def _new_operator(self, denoiser: Denoiser) -> DSNO:
        spec = self.recipe.student
        sites = list(spec.sites)
        if "default" in sites:
            sites.remove("default")
            sites = unet_sites(denoiser.network) + (
                match_sites(denoiser.network, sites) if sites else []
            )
        labels = {"class_labels": torch.zeros(1, dtype=torch.int64)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_torch_seed(self.recipe.seed, 1))
            operator = DSNO.from_teacher(
                denoiser,
                sites,
                slices=spec.slices,
                modes=spec.modes,
                spacing=self.recipe.collect.grid,
                output=spec.output,
                condition=labels if self.recipe.teacher.conditional else None,
            )
        return operator.requires_grad_(True)

    # -------------------------------------------------------------------- bookkeeping

    def fingerprint(self, stage: str) -> str:
        """Hash of everything the stage's result depends on."""
        index = STAGES.index(stage)
        before = self.fingerprint(STAGES[index - 1]) if index else str(VERSION)
        return fingerprint([before, self._inputs(stage)])

    def _inputs(self, stage: str) -> dict[str, Any]:
        def relevant(value: Any) -> Any:
            return (
                {k: v for k, v in value.items() if k not in NEUTRAL}
                if isinstance(value, dict)
                else value
            )

        return {section: relevant(self.values[section]) for section in SECTIONS[stage]}

    def _check_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; give a folder to --out.")
        if (self.folder / "recipe.yaml").exists():
            found = saved_recipe(self.folder).name
            if found != self.recipe.name:
                raise InputError(
                    f"{self.folder} holds a run of the recipe {found!r}, not {self.recipe.name!r}; "
                    "give another folder to --out."
                )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise InputError(
                f"{self.folder} is not empty and holds no run; give a new or empty folder to --out."
            )

    def _write_recipe(self) -> None:
        path, text = self.folder / "recipe.yaml", yaml.safe_dump(self.values, sort_keys=False)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            self._new_operator(self._new_teacher())  # refuses a recipe that cannot be built
            write_text(path, text)

    def _stages(self) -> dict[str, StageRecord]:
        path = self.folder / "stages.json"
        if not path.exists():
            return {}
        remedy = "delete it to run the stages again"
        stages = read_json(path, "record of stages", remedy)
        try:
            return TypeAdapter(dict[str, StageRecord]).validate_python(stages, strict=True)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise InputError(
                f"The record of stages {path} is damaged at {where!r}; {remedy}."
            ) from None

    def _write_stage(self, name: str, record: StageRecord | None) -> None:
        stages = {k: v for k, v in self._stages().items() if k != name}
        write_json(self.folder / "stages.json", {**stages, name: record} if record else stages)

    def _place(self, stage: str) -> Path:
        if stage == "evaluate":
            return self.folder / "report" / "metrics.json"
        if stage == "report":
            return self.folder / "report" / "report.html"
        return self.folder / FOLDERS[stage]

    def _checksums(self, stage: str) -> dict[str, str]:
        report = self.folder / "report"
        if stage == "collect":
            return {}
        if stage == "evaluate":
            paths = [report / "metrics.json", report / "arrays.safetensors"]
        else:  # a report is of the metrics beside it
            paths = list((self.folder / FOLDERS.get(stage, "report")).rglob("*"))
        return {str(p.relative_to(self.folder)): sha256(p) for p in sorted(paths) if p.is_file()}

    def _whole(self, stage: str, files: dict[str, str]) -> bool:
        """Whether the outputs of a finished stage are still all there, as they were."""
        if stage == "collect":
            place = self._place(stage)
            if not (place / MANIFEST).exists():
                return False
            manifest = load_manifest(place)
            return not manifest.missing and not damaged_shards(place, manifest)
        return files.items() <= self._checksums(stage).items()

    def _finished(self, stage: str) -> bool:
        record = self._stages().get(stage)
        if record is None or record["fingerprint"] != self.fingerprint(stage):
            return False
        return record["finished"] and self._whole(stage, record["files"])

    def require(self, stage: str) -> None:
        """Raise `InputError` unless the stage, and all before it, are finished by this recipe."""
        if stage != STAGES[0]:
            self.require(STAGES[STAGES.index(stage) - 1])
        record = self._stages().get(stage)
        if record is None or not record["finished"]:
            raise InputError(
                f"The {stage} stage is not finished in {self.folder}; "
                f"run `dsno {stage}` or `dsno run` first."
            )
        if record["fingerprint"] != self.fingerprint(stage):
            changed = changes(record["inputs"], self._inputs(stage)) or ["an earlier stage"]
            raise InputError(
                f"The {stage} stage in {self.folder} was made by another recipe "
                f"({'; '.join(changed)}); "
                f"run `dsno {stage}` or `dsno run` first."
            )

    def _begin(self, stage: str) -> None:
        """Record that a stage is being made; first clear what another recipe left of it."""
        record = self._stages().get(stage)
        begun: StageRecord = {
            "fingerprint": self.fingerprint(stage),
            "inputs": self._inputs(stage),
            "seconds": 0.0,
            "finished": False,
            "files": {},
        }
        if record is not None and record["fingerprint"] == begun["fingerprint"]:
            if record["finished"]:
                place = self._place(stage)
                say(f"{stage}: something in {place} is missing or damaged; making it again.")
                self._write_stage(stage, begun)
            return
        if record is not None:
            changed = changes(record["inputs"], self._inputs(stage)) or ["an earlier stage changed"]
            say(f"{stage}: the recipe changed ({'; '.join(changed)}); starting it again.")
            self._write_stage(stage, None)
        if stage in FOLDERS:
            shutil.rmtree(self._place(stage), ignore_errors=True)
        # What is half made from here on belongs to this recipe.
        self._write_stage(stage, begun)


def changes(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The keys whose values differ, as `key old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(set(old) | set(new)):
            found += changes(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if old == new else [f"{prefix} {old} -> {new}"]


def saved_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a run's folder.

    Raises:
        InputError: if it is missing or damaged.
    """
    path = folder / "recipe.yaml"
    try:
        return load_recipe(str(path))
    except InputError as error:
        reason = str(error).rstrip(".")
        raise InputError(
            f"{path} is damaged ({reason}); restore it or give another folder."
        ) from None


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
