"""What stages.json says of the stages of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from dsno.support.adapters import adapter
from dsno.support.errors import InputError, WorkError
from dsno.support.files import read_json, write_json

NAME = "stages.json"
_Whole = Annotated[int, Field(ge=0)]
MAX_SECONDS = 1e10
"""Longer than any stage can have taken."""


class Extension(TypedDict):
    """A training that another one goes on from."""

    tag: str
    """Its fingerprint."""
    folder: str
    """Where its checkpoints are, in the folder of the run."""


class Extended(TypedDict):
    """Where a training was extended whose learning rates depend on how many steps there are."""

    steps: _Whole
    """It was to have till then."""
    at: _Whole
    """Steps it had done."""


class Stamp(TypedDict):
    """By what a file is known again without reading it, and its checksum."""

    size: _Whole
    changed: int
    """When it was written, in nanoseconds."""
    sha256: str


class StageRecord(TypedDict):
    """What stages.json says of a stage."""

    fingerprint: str
    inputs: dict[str, Any]
    seconds: float
    finished: bool
    files: dict[str, str]
    """Checksums of what a finished stage left; of trajectories the manifest has them."""
    full: NotRequired[list[dict[str, Any]]]
    """What an evaluation measured besides its recipe's `curves`."""
    extends: NotRequired[Extension]
    """The training that this one goes on from."""
    extended: NotRequired[list[Extended]]
    """Where it was extended, oldest first; not where that makes no difference."""
    read: NotRequired[dict[str, Stamp]]
    """The files that the inputs name, by path."""


def read_stages(folder: Path) -> dict[str, StageRecord]:
    """The records of a run's stages; none if no stage was begun.

    Args:
        folder: of the run.

    Raises:
        InputError: if they are damaged.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    remedy = "delete it to run the stages again"
    stages = read_json(path, "record of stages", remedy)
    try:
        found = adapter(dict[str, StageRecord]).validate_python(stages, strict=True)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(
            f"The record of stages {path} is damaged at {where!r}; {remedy}."
        ) from None
    for name, record in found.items():
        if not 0 <= record["seconds"] < MAX_SECONDS or not _is_finite(record["inputs"]):
            raise InputError(f"The record of stages {path} is damaged at {name!r:.60}; {remedy}.")
    return found


def read_stage(folder: Path, name: str) -> StageRecord:
    """The record of a stage that was begun.

    Raises:
        WorkError: if it is gone.
        InputError: see `read_stages`.
    """
    found = read_stages(folder).get(name)
    if found is None:
        raise WorkError(
            f"What {folder} recorded of `{name}` is gone; was the folder deleted while dsno was at "
            "work? Delete what is left of it, and the same command begins again."
        )
    return found


def write_stage(folder: Path, name: str, record: StageRecord | None) -> None:
    """Replace the record of one stage; None removes it."""
    stages = {k: v for k, v in read_stages(folder).items() if k != name}
    write_json(folder / NAME, {**stages, name: record} if record else stages)


def _is_finite(values: Mapping[str, Any]) -> bool:
    """Whether values are JSON that can be written again: none is infinite."""
    try:
        json.dumps(values, allow_nan=False)
    except ValueError:
        return False
    return True
