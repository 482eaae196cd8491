"""A run: its folder, its stages, what is finished and what must be made again.

    runs/<name>/recipe.yaml        the resolved recipe
               /stages.json        finished stages, with what they depended on
               /teacher/  /trajectories/  /student/  /samples/  /report/

A stage's fingerprint covers its sections of the recipe and the fingerprint of the stage before it,
so a change anywhere upstream is seen downstream. A finished stage is skipped; one whose part of the
recipe changed is started again, and the change is named.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from dsno.recipes import Recipe, load_recipe
from dsno.recipes.effects import map_files, result_values
from dsno.runs.build import check_buildable
from dsno.runs.stages import WORK, Task, trajectories_storage
from dsno.support import distributed
from dsno.support.console import say
from dsno.support.errors import InputError
from dsno.support.files import fingerprint, locked, read_json, sha256, write_json, write_text
from dsno.support.storage import StorageDir
from dsno.trajectories.manifest import damaged_shards, has_manifest, load_manifest, read_prompts

STAGES = ("teacher", "collect", "train", "evaluate", "report")
# Done by process 0 while the others wait.
ALONE = ("evaluate", "report")
FOLDERS = {"teacher": "teacher", "collect": "trajectories", "train": "student"}
# What a stage reads of the recipe besides what the stage before it did.
SECTIONS = {
    "teacher": ("seed", "data", "teacher"),
    "collect": ("collect",),
    "train": ("student", "train"),
    "evaluate": ("evaluate",),
    "report": ("title",),
}
MAX_SECONDS = 1e10
"""Longer than any stage can have taken."""
VERSION = 3  # raise when a stage's results change for the same recipe


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

    def stage(self, name: str, *, shards: range | None = None) -> None:
        """One stage, skipped if it is finished.

        Under a launcher every process comes here; process 0 keeps the books.

        Args:
            name: which.
            shards: of `collect`, the shards to make; other jobs may make the others meanwhile.

        Raises:
            InputError: if the stage before it is not finished, or was made by another recipe; or if
                the recipe cannot work. Nothing is changed then.
        """
        if not distributed.on_main(lambda: self._prepare(name)):
            return
        if name in ALONE and not distributed.is_main():
            return
        start = time.monotonic()
        task = Task(
            self.recipe,
            self.folder,
            tags={s: self.fingerprint(s) for s in STAGES},
            seconds={s: record["seconds"] for s, record in self._stages().items()},
            command=self.command,
            shards=shards,
        )
        finished, outcome = False, ""
        try:
            outcome = WORK[name](task)
            finished = True
        finally:  # an interrupted run's time counts too
            if distributed.is_main():
                self._close(name, time.monotonic() - start, finished)
        say(f"{name}: {outcome} ({time.monotonic() - start:.0f} s)")

    def _prepare(self, name: str) -> bool:
        """Whether there is work to do; if so, it is begun in the books."""
        if name != STAGES[0]:
            self.require(STAGES[STAGES.index(name) - 1])
        text = yaml.safe_dump(self.values, sort_keys=False)
        is_new = not self._has_recipe(text)
        if is_new:
            check_buildable(self.recipe)
        with self._books():
            if is_new:
                write_text(self.folder / "recipe.yaml", text)
            if self._finished(name):
                say(f"{name}: finished already in {self._place(name)}.")
                return False
            self._begin(name)
            return True

    def _close(self, name: str, seconds: float, finished: bool) -> None:
        """Note how long the stage took and, if it came to its end, what it left."""
        if name == "collect" and finished:  # other jobs may have shards to make yet
            finished = not load_manifest(self.trajectories).missing
        with self._books():
            record = self._stages()[name]
            record["seconds"] = round(record["seconds"] + seconds, 1)
            if finished:
                record |= {"finished": True, "files": self._checksums(name)}
            self._write_stage(name, record)

    def _books(self) -> AbstractContextManager[None]:
        """Held while the books are kept: jobs of an array share them."""
        return locked(self.folder / ".lock")

    @property
    def trajectories(self) -> StorageDir:
        """Where the trajectories are."""
        return trajectories_storage(self.recipe, self.folder)

    def metrics(self) -> dict[str, Any]:
        """What the evaluation measured."""
        return read_json(
            self.folder / "report" / "metrics.json", "evaluation", "run `dsno evaluate`"
        )

    # -------------------------------------------------------------------- bookkeeping

    def fingerprint(self, stage: str) -> str:
        """Hash of everything the stage's result depends on."""
        index = STAGES.index(stage)
        before = self.fingerprint(STAGES[index - 1]) if index else str(VERSION)
        return fingerprint([before, self._inputs(stage)])

    def _inputs(self, stage: str) -> dict[str, Any]:
        sections = SECTIONS[stage]
        if self.recipe.teacher.source:  # the data are only what samples are compared with
            sections = tuple(s for s in sections if s != "data")
            if stage == "evaluate":
                sections = ("data", *sections)
        values = result_values(Recipe, {section: self.values[section] for section in sections})
        return map_files(Recipe, values, lambda _, path: _content(path))

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

    def _has_recipe(self, text: str) -> bool:
        path = self.folder / "recipe.yaml"
        return path.exists() and path.read_text(encoding="utf-8") == text

    def _stages(self) -> dict[str, StageRecord]:
        path = self.folder / "stages.json"
        if not path.exists():
            return {}
        remedy = "delete it to run the stages again"
        stages = read_json(path, "record of stages", remedy)
        try:
            found = TypeAdapter(dict[str, StageRecord]).validate_python(stages, strict=True)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise InputError(
                f"The record of stages {path} is damaged at {where!r}; {remedy}."
            ) from None
        for name, record in found.items():
            if not 0 <= record["seconds"] < MAX_SECONDS or not _is_finite(record["inputs"]):
                raise InputError(
                    f"The record of stages {path} is damaged at {name!r:.60}; {remedy}."
                )
        return found

    def _write_stage(self, name: str, record: StageRecord | None) -> None:
        stages = {k: v for k, v in self._stages().items() if k != name}
        write_json(self.folder / "stages.json", {**stages, name: record} if record else stages)

    def _place(self, stage: str) -> Path | StorageDir:
        if stage == "collect":
            return self.trajectories
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
            storage = self.trajectories
            if not has_manifest(storage):
                return False
            manifest = load_manifest(storage)
            try:
                read_prompts(storage, manifest)
            except InputError:
                return False
            return not manifest.missing and not damaged_shards(storage, manifest)
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
                storage = self._place(stage)
                say(f"{stage}: something in {storage} is missing or damaged; making it again.")
                self._write_stage(stage, begun)
            return
        if record is not None:
            changed = changes(record["inputs"], self._inputs(stage)) or ["an earlier stage changed"]
            say(f"{stage}: the recipe changed ({'; '.join(changed)}); starting it again.")
            self._write_stage(stage, None)
        if stage in FOLDERS:  # never another place that the recipe names
            shutil.rmtree(self.folder / FOLDERS[stage], ignore_errors=True)
        # What is half made from here on belongs to this recipe.
        self._write_stage(stage, begun)


def _is_finite(values: Mapping[str, Any]) -> bool:
    """Whether values are JSON that can be written again: none is infinite."""
    try:
        json.dumps(values, allow_nan=False)
    except ValueError:
        return False
    return True


def _content(path: str) -> str:
    """A file's name with a hash of what is in it."""
    if not path:
        return ""
    if not Path(path).is_file():
        return f"{path} (missing)"
    stat = Path(path).stat()
    return f"{path} ({_hash(path, stat.st_size, stat.st_mtime_ns)})"


@functools.lru_cache(maxsize=16)
def _hash(path: str, size: int, changed: int) -> str:
    return sha256(Path(path))[:16]


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
