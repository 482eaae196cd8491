"""A run: its folder, its stages, what is finished and what must be made again.

    runs/<name>/recipe.yaml        the resolved recipe
               /stages.json        finished stages, with what they depended on
               /teacher/  /trajectories/  /student/  /finished/  /samples/  /report/
               /evaluation/        what was measured of each sampler, to go on from
               /checkpoints/       the last of each finished training, to extend it from
               /student.1/         what was made by an earlier recipe, set aside

A stage's fingerprint covers those keys of its sections of the recipe that change a result, and the
fingerprint of the stage before it, so a change anywhere upstream is seen downstream. A finished
stage is skipped; what another recipe made is set aside, and the change is named.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml

from dsno.recipes import Recipe
from dsno.recipes.effects import map_files, result_values, with_later
from dsno.runs.build import check_buildable
from dsno.runs.dependencies import ONCE_NAMES, collect_settings, content_hash, stamps
from dsno.runs.identity import extended, identity, tag_of
from dsno.runs.locate import saved_recipe, trajectories_storage
from dsno.runs.outlook import outlook
from dsno.runs.records import (
    Extended,
    Extension,
    StageRecord,
    Stamp,
    read_stage,
    read_stages,
    write_stage,
)
from dsno.runs.set_aside import holds_files, set_aside, those_aside
from dsno.runs.stages import FOLDERS, LAST, WORK, Task
from dsno.support import distributed
from dsno.support.console import alert, console, say
from dsno.support.differences import changes
from dsno.support.errors import DsnoError, InputError
from dsno.support.files import locked, read_json, sha256, write_text
from dsno.support.storage import StorageDir
from dsno.teachers.store import saved_clips
from dsno.training.checkpoints import Checkpoints, newest
from dsno.trajectories.foreign import another_recipe
from dsno.trajectories.manifest import has_manifest, load_manifest
from dsno.trajectories.prompts import read_prompts
from dsno.trajectories.shards import damaged_shards

STAGES = ("teacher", "collect", "train", "finish", "evaluate", "report")
"""Of every run but those whose recipe has no `finish`."""
# Done by process 0 while the others wait.
ALONE = ("report",)
# What `extend` goes on with; their sections have the same names.
TRAINED = ("teacher", "train")
# What a stage reads of the recipe besides what the stage before it did.
SECTIONS = {
    "teacher": ("seed", "data", "teacher"),
    "collect": ("collect",),
    "train": ("student", "train"),
    "finish": ("finish",),
    "evaluate": ("evaluate",),
    "report": ("title",),
}
VERSION = 3  # raise when a stage's results change for the same recipe
ORDER = {"order of guidance and clipping": "guidance first"}
"""Recorded of guided trajectories, as earlier versions clipped first."""


class Declined(DsnoError):
    """The user answered no. Exit code 1."""


class Run:
    """A recipe and the folder its stages live in.

    Args:
        recipe: what to do.
        folder: where; made by the first stage if missing.
        command: what the user typed, for the report.
        yes: set a finished stage aside without asking where the recipe has changed.
        extend: where `steps` of a training has grown, go on from its last step.

    Raises:
        InputError: if the folder belongs to another recipe or to something else.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        command: str = "",
        yes: bool = False,
        extend: bool = False,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.command = command
        self.yes, self.extend = yes, extend
        self.stages = tuple(s for s in STAGES if s != "finish" or recipe.finish is not None)
        self._is_buildable, self._has_training = False, False
        self.values = recipe.model_dump(mode="json")
        self._check_folder()

    # ------------------------------------------------------------------------ stages

    def run(self) -> None:
        """Every stage, each skipped if finished; what there is to ask is asked before the first."""
        distributed.on_main(lambda: self._foresee(self.stages))
        for stage in self.stages:
            self.stage(stage)

    def stage(self, name: str, *, shards: range | None = None, full: bool = False) -> None:
        """One stage, skipped if it is finished.

        Under a launcher every process comes here; process 0 keeps the books.

        Args:
            name: which.
            shards: of `collect`, the shards to make; other jobs may make the others meanwhile.
            full: of `evaluate`, measure `evaluate.more_curves` too; what is measured is kept.

        Raises:
            InputError: if the stage before it is not finished, or was made by another recipe; if
                the recipe cannot work; if the stage is finished by another recipe and nobody can be
                asked; or if there is no training to extend. Nothing is changed then.
            Declined: if the user does not want it set aside. Nothing is changed then either.
        """
        if not distributed.on_main(lambda: self._prepare(name, full=full)):
            return
        if name in ALONE and not distributed.is_main():
            return
        start, records = time.monotonic(), read_stages(self.folder)
        task = Task(
            self.recipe,
            self.folder,
            tags={s: self.fingerprint(s) for s in self.stages[: self.stages.index(name) + 1]},
            seconds={s: record["seconds"] for s, record in records.items()},
            command=self.command,
            shards=shards,
            full=full,
            extends=self._extends(name),
            extended=records[name].get("extended", []),
        )
        if (amount := outlook(name, self.recipe, shards=shards, full=full)) is not None:
            say(f"{name}: {amount}.")
        finished, is_whole, outcome = False, False, ""
        try:
            outcome = WORK[name](task)
            finished = True
        finally:  # an interrupted run's time counts too
            if distributed.is_main():
                is_whole = self._close(name, time.monotonic() - start, finished, full=full)
        say(f"{name}: {outcome} ({time.monotonic() - start:.0f} s)")
        aside = those_aside(self.folder, _output_name(name))
        if is_whole and aside:
            say(
                f"{name}: what was made before is kept in {', '.join(map(str, aside))}; delete it "
                "once you do not need it."
            )

    def _prepare(self, name: str, *, full: bool) -> bool:
        """Whether there is work to do; if so, it is begun in the books."""
        if name not in self.stages:
            raise InputError(
                f"The recipe has no `{name}`; add it, such as {name}.steps=300 with its batch_size "
                "and learning_rate."
            )
        if name != self.stages[0]:
            self.require(self.stages[self.stages.index(name) - 1])
        self._foresee([name])
        with self._books():
            if not self._has_recipe():
                write_text(self.folder / "recipe.yaml", self._text)
            if self._finished(name):
                if full and not self._is_full(name):
                    return True
                self._note_read(name)
                say(f"{name}: finished already in {self._location(name)}.")
                return False
            self._begin(name)
            return True

    def _foresee(self, stages: Sequence[str]) -> None:
        """Find out, before anything is changed, what would stop stages from being made.

        Raises:
            InputError, Declined: see `stage`.
        """
        if "train" in stages:
            self._check_start()
        is_read_anew = self.recipe.teacher.source and not self._is_recorded("teacher")
        if not self._is_buildable and (is_read_anew or not self._has_recipe()):
            check_buildable(self.recipe, [s for s in self.stages if self._is_recorded(s)])
            self._is_buildable = True
        if "collect" in stages:
            self._check_destination()
        trained = [s for s in stages if s in TRAINED]
        if self.extend and trained and not self._has_training:
            if not any(s in read_stages(self.folder) for s in trained):
                raise InputError(
                    f"There is no {trained[-1]} stage in {self.folder} to extend; leave out "
                    "--extend."
                )
            self._has_training = True  # of the later stages of a whole run there may be none yet
        changed = {}
        for stage in stages:
            record = read_stages(self.folder).get(stage)
            if self.extend and stage in TRAINED and self._extension(stage, record) is not None:
                later = read_stages(self.folder).get("collect")
                if stage == "teacher" and later is not None and later["finished"]:
                    changed["collect"] = ["the teacher is extended"]
                continue
            if stage not in changed and (reasons := self._reasons_to_ask(stage, record)):
                changed[stage] = reasons
        self._ask(changed)

    def _reasons_to_ask(self, stage: str, record: StageRecord | None) -> list[str]:
        """How the recipe of a finished stage changed; empty if there is nothing to ask.

        A stage after a changed one is not asked about: without its source it is worth nothing.
        """
        if record is None or not record["finished"]:
            return []
        if record["fingerprint"] == self.fingerprint(stage) or not self._has_output(stage):
            return []
        found = self._changes(stage, record)
        if stage == self.stages[0] and not found:
            return ["this version of dsno computes it differently"]
        return found

    def _ask(self, changed: Mapping[str, list[str]]) -> None:
        if not changed or self.yes:
            return
        what = "; ".join(f"{stage}: {', '.join(reasons)}" for stage, reasons in changed.items())
        names = " and ".join(changed)
        if not sys.stdin.isatty():
            raise InputError(
                f"The recipe of what is finished in {self.folder} changed ({what}); give --yes to "
                f"set the results of {names} aside and make them again, or another folder to --out."
            )
        console().print(
            f"The recipe of what is finished in {self.folder} changed ({what}).", markup=False
        )
        question = f"Set the results of {names} aside and make them again? [y/N] "
        try:
            answer = console().input(question, markup=False)
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise Declined("Nothing was changed.")
        self.yes = True

    def _check_start(self) -> None:
        start, own = self.recipe.train.start_from, self.folder / FOLDERS["train"]
        if start and Path(start).resolve().is_relative_to(own.resolve()):
            raise InputError(
                f"`train.start_from` = {start} is this run's own student, which the new one "
                "replaces; rename it first, or give another folder to --out."
            )

    def _check_destination(self) -> None:
        """Refuse trajectories of another recipe outside the run's folder: they are not moved."""
        storage = self.trajectories
        if not has_manifest(storage):
            self._check_moved(storage)
        elif self.recipe.collect.destination:
            found, record = load_manifest(storage), read_stages(self.folder).get("collect")
            if found.tag == self.fingerprint("collect"):
                return
            is_ours = record is not None and record["fingerprint"] == found.tag
            recorded = self._changes("collect", record) if record is not None and is_ours else []
            raise another_recipe(storage, found, collect_settings(self.recipe), recorded)

    def _check_moved(self, storage: StorageDir) -> None:
        """Refuse a destination without trajectories where the finished ones lie elsewhere."""
        if not self._is_recorded("collect"):
            return
        last = trajectories_storage(saved_recipe(self.folder), self.folder)
        if str(last) != str(storage) and has_manifest(last):
            raise InputError(
                f"The trajectories of this run are in {last}, and there are none in {storage}; "
                "copy them there, or set collect.destination back."
            )

    def _extension(
        self, stage: str, record: StageRecord | None
    ) -> tuple[Extension, Extended] | None:
        """The training to go on from, and where; None if there is none or nothing has changed.

        Raises:
            InputError: if more has changed than `steps`, or there is no checkpoint.
        """
        if record is None or (stage == "teacher" and self.recipe.teacher.source):
            return None
        changed = self._changes(stage, record)
        if not changed:
            return None
        before, steps = _planned(stage, record), self.values[stage]["steps"]
        forms = [{**form, stage: {**form[stage], "steps": before}} for form in self._forms(stage)]
        is_all = (
            identity(self._fingerprint_before(stage), forms, record)[0] == record["fingerprint"]
        )
        if not is_all and all(reason.startswith(f"{stage}.steps ") for reason in changed):
            changed = [*changed, "an earlier stage changed too"]
        if not is_all or before is None or steps < before:
            raise InputError(
                f"--extend goes on with more `{stage}.steps` and nothing else changed, but "
                f"{'; '.join(changed)}; leave it out (train.start_from=FOLDER begins a training "
                "with the weights of another student)."
            )
        name = FOLDERS[stage]
        folders = [self.folder / LAST / name]
        made = [self.folder / name, *those_aside(self.folder, name)]
        folders += [path / "checkpoints" for path in made]
        earlier = [record["extends"]["tag"]] if "extends" in record else []
        tags = (record["fingerprint"], *earlier)
        if found := newest([Checkpoints(folder, tag) for tag in tags for folder in folders]):
            where, step = found
            folder = str(where.folder.relative_to(self.folder))
            return {"tag": where.tag, "folder": folder}, {"steps": before, "at": step}
        raise InputError(
            f"There is no checkpoint of the {stage} stage in {self.folder} to extend it from; "
            "leave out --extend to train again."
        )

    def _extends(self, stage: str) -> Checkpoints | None:
        """The checkpoints of the training that a begun stage goes on from."""
        record = read_stage(self.folder, stage)
        if "extends" not in record:
            return None
        found = record["extends"]
        return Checkpoints(self.folder / found["folder"], found["tag"])

    def _is_full(self, name: str) -> bool:
        """Whether a finished evaluation has all that `full` asks for."""
        return read_stage(self.folder, name).get("full") == self._more_curves

    @property
    def _more_curves(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.values["evaluate"]["more_curves"]
        return found

    def _close(self, name: str, seconds: float, finished: bool, *, full: bool) -> bool:
        """Note how long the stage took and what it left; return whether that is whole now."""
        with self._books():
            record = read_stage(self.folder, name)
            if name == "collect" and finished:  # other jobs may have shards to make yet
                finished = not load_manifest(self.trajectories).missing
            record["seconds"] = round(record["seconds"] + seconds, 1)
            if finished:
                record |= {"finished": True, "files": self._checksums(name)}
            if finished and full:
                record["full"] = self._more_curves
                report = read_stages(self.folder).get("report")
                if report is not None:  # it was of fewer samplers
                    write_stage(self.folder, "report", {**report, "finished": False})
            write_stage(self.folder, name, record)
        return finished

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

    def outcome(self, stage: str) -> dict[str, Any]:
        """What the books say of a stage that has been begun: where its result is, and its time."""
        record = read_stage(self.folder, stage)
        return {
            "stage": stage,
            "result": str(self._location(stage)),
            "finished": record["finished"],
            "seconds": record["seconds"],
        }

    # -------------------------------------------------------------------- bookkeeping

    def fingerprint(self, stage: str) -> str:
        """Hash of everything the stage's result depends on."""
        return self._identity(stage)[0]

    def _fingerprint_before(self, stage: str) -> str:
        index = self.stages.index(stage)
        return self.fingerprint(self.stages[index - 1]) if index else str(VERSION)

    def _identity(self, stage: str) -> tuple[str, dict[str, Any]]:
        """Fingerprint and inputs of a stage; as recorded, if its record is of this recipe."""
        record = read_stages(self.folder).get(stage)
        return identity(self._fingerprint_before(stage), self._forms(stage), record)

    def _forms(self, stage: str) -> list[dict[str, Any]]:
        """The stage's inputs as they are recorded now, then as an earlier version did."""
        values = self._result_values(stage)

        def earlier_content(key: str, path: str) -> str:
            return path if key in ONCE_NAMES else self._content(stage, key, path)

        now = map_files(Recipe, values, lambda key, path: self._content(stage, key, path))
        earlier = map_files(Recipe, values, earlier_content)
        is_guided = self.recipe.collect.guidance_scale is not None
        if stage == "collect" and is_guided and not self.recipe.collect.source:
            now |= ORDER
            if saved_clips(self.folder / FOLDERS["teacher"]):
                earlier |= ORDER
        if stage == "finish" and self._lacks_data(stage):
            earlier = {section: value for section, value in earlier.items() if section != "data"}
        return [now] if now == earlier else [now, earlier]

    def _lacks_data(self, stage: str) -> bool:
        """Whether a stage was recorded without the data that it compares samples with."""
        record = read_stages(self.folder).get(stage)
        return record is not None and "data" not in record["inputs"]

    def _result_values(self, stage: str) -> dict[str, Any]:
        """What the recipe says that the stage's result depends on."""
        sections = SECTIONS[stage]
        if self.recipe.teacher.source:  # the data are only what samples are compared with
            sections = tuple(s for s in sections if s != "data")
            if stage in ("finish", "evaluate"):
                sections = ("data", *sections)
        return result_values(Recipe, {section: self.values[section] for section in sections})

    def _content(self, stage: str, key: str, path: str) -> str:
        """A file's name with a hash of what is in it; as recorded, if it is gone since."""
        if not path:
            return ""
        record = read_stages(self.folder).get(stage)
        if found := content_hash(key, Path(path), _read(record)):
            return f"{path} ({found})"
        known: Any = None if record is None else record["inputs"]
        for part in key.split("."):
            known = known.get(part) if isinstance(known, dict) else None
        is_its = isinstance(known, str) and known.startswith(f"{path} (")
        if is_its:
            return str(known)
        return path if key in ONCE_NAMES else f"{path} (missing)"

    def _stamps(self, stage: str) -> dict[str, Stamp]:
        """What to record of the files that the stage's inputs name."""
        known = _read(read_stages(self.folder).get(stage))
        found = dict[str, Stamp]()

        def add(key: str, path: str) -> str:
            found.update(stamps(key, Path(path), known) if path else {})
            return path

        map_files(Recipe, self._result_values(stage), add)
        return found

    def _note_read(self, stage: str) -> None:
        """Note the files of a finished stage that were written again without a change."""
        record = read_stage(self.folder, stage)
        read = {**_read(record), **self._stamps(stage)}
        if read != _read(record):
            write_stage(self.folder, stage, {**record, "read": read})

    def _changes(self, stage: str, record: StageRecord) -> list[str]:
        """How the keys that change the stage's own result differ from the recorded ones."""
        known = with_later(Recipe, result_values(Recipe, record["inputs"]))
        forms = (with_later(Recipe, form) for form in self._forms(stage))
        return min((changes(known, form) for form in forms), key=len)

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

    @functools.cached_property
    def _text(self) -> str:
        """The resolved recipe as YAML."""
        return yaml.safe_dump(self.values, sort_keys=False)

    def _has_recipe(self) -> bool:
        path = self.folder / "recipe.yaml"
        return path.exists() and path.read_text(encoding="utf-8") == self._text

    def _location(self, stage: str) -> Path | StorageDir:
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

    def _is_recorded(self, stage: str) -> bool:
        """Whether this recipe's stage was finished, by the record alone."""
        record = read_stages(self.folder).get(stage)
        if record is None or record["fingerprint"] != self.fingerprint(stage):
            return False
        return record["finished"]

    def _finished(self, stage: str) -> bool:
        if not self._is_recorded(stage):
            return False
        return self._whole(stage, read_stage(self.folder, stage)["files"])

    def require(self, stage: str) -> None:
        """Raise `InputError` unless the stage, and all before it, are finished by this recipe."""
        if stage != self.stages[0]:
            self.require(self.stages[self.stages.index(stage) - 1])
        record = read_stages(self.folder).get(stage)
        if record is None or not record["finished"]:
            raise InputError(
                f"The {stage} stage is not finished in {self.folder}; "
                f"run `dsno {stage}` or `dsno run` first."
            )
        if record["fingerprint"] != self.fingerprint(stage):
            changed = self._changes(stage, record) or ["an earlier stage"]
            raise InputError(
                f"The {stage} stage in {self.folder} was made by another recipe "
                f"({'; '.join(changed)}); "
                f"run `dsno {stage}` or `dsno run` first."
            )

    def _outputs(self, stage: str) -> list[Path]:
        """What a stage leaves in the folder of the run."""
        report = self.folder / "report"
        if stage == "evaluate":  # the report is of these metrics
            return [report]
        if stage == "report":
            return [report / "report.html", report / "figures"]
        return [self.folder / FOLDERS[stage]]

    def _has_output(self, stage: str) -> bool:
        return any(holds_files(path) for path in self._outputs(stage))

    def _begin(self, stage: str) -> None:
        """Record that a stage is being made; first set aside what another recipe left of it."""
        record = read_stages(self.folder).get(stage)
        is_same = record is not None and record["fingerprint"] == self.fingerprint(stage)
        if record is not None and is_same and self._can_go_on(stage, record):
            if record["finished"]:
                self._set_damaged_aside(stage)
                again: StageRecord = {**record, "seconds": 0.0, "finished": False, "files": {}}
                write_stage(self.folder, stage, again)
            return
        before, inputs = self._fingerprint_before(stage), self._forms(stage)[0]
        begun: StageRecord = {
            "fingerprint": tag_of(before, inputs),
            "inputs": inputs,
            "seconds": 0.0,
            "finished": False,
            "files": {},
        }
        if read := self._stamps(stage):
            begun["read"] = read
        extension = None
        if self.extend and stage in TRAINED and not is_same:
            extension = self._extension(stage, record)
        aside = self._set_aside(stage)
        kept = f" What was made before is now in {aside}." if aside else ""
        if record is not None:
            reason = "; ".join(self._changes(stage, record)) or "an earlier stage changed"
            what = f"the recipe changed ({reason})"
            if is_same:
                what = "the checkpoints that it was extended from are gone"
            doing = "starting it again" if extension is None else "going on from its last step"
            say(f"{stage}: {what}; {doing}.{kept}")
        elif aside:
            say(f"{stage}: there is no record of it; starting it again.{kept}")
        if extension is not None:
            assert record is not None
            where, point = extension
            begun["seconds"] = record["seconds"]
            begun["extends"] = self._moved(where, stage, aside)
            if history := extended(record, getattr(self.recipe, stage), point):
                begun |= {"extended": history, "fingerprint": tag_of(before, inputs, history)}
                alert(
                    f"{stage}: its learning rates till now were those of {point['steps']:,} steps, "
                    "so the result is not that of a training with more steps from the start; this "
                    "is recorded."
                )
        # What is half made from here on belongs to this recipe.
        write_stage(self.folder, stage, begun)

    def _can_go_on(self, stage: str, record: StageRecord) -> bool:
        """Whether what is recorded can still be made: an extension needs what it goes on from."""
        if "extended" not in record:
            return True
        name = FOLDERS[stage]
        folders = (self.folder / name / "checkpoints", self.folder / LAST / name)
        own = [Checkpoints(folder, record["fingerprint"]) for folder in folders]
        first = self._extends(stage)
        return newest(own if first is None else [*own, first]) is not None

    def _set_aside(self, stage: str) -> Path | None:
        """Move what a stage left, with the checkpoint to extend it from, out of the way."""
        if stage in TRAINED:
            name = FOLDERS[stage]
            last, target = self.folder / LAST / name, self.folder / name / "checkpoints"
            if last.is_dir() and holds_files(self.folder / name) and not target.exists():
                last.rename(target)
        return set_aside(self.folder, _output_name(stage), self._outputs(stage))

    def _moved(self, extension: Extension, stage: str, aside: Path | None) -> Extension:
        """Where the checkpoints to go on from are once the stage is set aside."""
        if aside is None or (self.folder / extension["folder"]).is_dir():
            return extension
        return {**extension, "folder": f"{aside.name}/checkpoints"}

    def _set_damaged_aside(self, stage: str) -> None:
        """Keep what can be kept of a finished stage of which something is missing or damaged.

        Whole shards stay where they are, and so does the last checkpoint of a training, from which
        its result is written again.
        """
        what = f"{stage}: something in {self._location(stage)} is missing or damaged"
        keeps_shards = stage == "collect" and has_manifest(self.trajectories)
        aside = None
        if not keeps_shards:
            aside = set_aside(self.folder, _output_name(stage), self._outputs(stage))
        kept = f" What is left of it is now in {aside}." if aside else ""
        alert(f"{what}; making it again.{kept}")


def _read(record: StageRecord | None) -> dict[str, Stamp]:
    """The files that a stage's inputs named, as they were."""
    return {} if record is None else record.get("read", {})


def _planned(stage: str, record: StageRecord) -> int | None:
    """Steps that a training was to have; None if its record does not say."""
    was = record["inputs"].get(stage)
    steps = was.get("steps") if isinstance(was, dict) else None
    return steps if isinstance(steps, int) else None


def _output_name(stage: str) -> str:
    """What a stage's results are called when they are set aside."""
    return FOLDERS.get(stage, "report")
