"""What is known of a saved model: how it was made, and what was measured of these very weights.

An evaluation names the checksums of the weights that it measured. A model in the folder of a run is
looked up there; a folder that `save_pretrained` wrote has a copy of it in card.json, without what
concerns nobody else: paths of the machine, the course of the losses.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from dsno.evaluation.metrics import METRICS, Metrics, read_metrics
from dsno.evaluation.samplers import STUDENT, UNFINISHED
from dsno.recipes import Recipe
from dsno.recipes.effects import map_files, result_values
from dsno.sampling.folder import CARD, FACTS, MODEL, PICTURE, weights_checksums
from dsno.support.errors import InputError
from dsno.support.files import read_json

MARK = (
    "<!-- Written by dsno. Without this line, the text stays as it is when the model is saved. -->"
)
"""In a card that may be written again."""
REPORT = "report"
"""Folder of a run with its evaluation."""
COLUMNS = {32: 12, 64: 8, 128: 6}
"""Samples in a row of the picture by their longer side; `FEWEST` of larger ones."""
FEWEST = 4
PAIRS, GAP = 2, 12
"""Of rows in the picture, the teacher's samples above the model's of the same noises, and pixels
between the pairs."""


_KEY = re.compile(r"[\w.-]+=")
"""Of a word of the command line."""


class Facts(BaseModel):
    """What card.json holds."""

    model_config = ConfigDict(extra="forbid")

    metrics: Metrics | None = None
    """The evaluation; of it alone is known how the model was made."""
    row: str = STUDENT
    """Name of this model's rows in it."""
    weights: dict[str, str] = {}
    """Checksums of the files of weights in the folder, by their names there."""
    license: str | None = None
    """That its owner gave it, by the Hub's names."""


@dataclass(frozen=True)
class Known:
    """What there is to go into a card.

    Attributes:
        facts: of the model.
        picture: of its samples, with the teacher's of the same noises.
        own_text: what its owner wrote instead of a card.
    """

    facts: Facts = field(default_factory=Facts)
    picture: Image.Image | None = None
    own_text: str | None = None


def known_of(origin: str | None) -> Known:
    """What is known of a model; nothing if it was made here, or nothing is beside it.

    Args:
        origin: what it was loaded from: the folder model/ of a pipeline's folder.

    Raises:
        InputError: if the evaluation or card.json is damaged.
    """
    folder = Path(origin or "").absolute().parent
    if not origin or Path(origin).name != MODEL or not (sums := weights_checksums(folder)):
        return Known()
    if (folder.parent / REPORT / METRICS).is_file() and not (folder / FACTS).is_file():
        found = _from_run(folder.parent / REPORT, sums)
    else:
        found = _from_card(folder, sums)
    return replace(found, own_text=own_text(folder / CARD))


def own_text(path: Path) -> str | None:
    """A README.md that its owner wrote, or changed and says so; None if there is none."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    return None if MARK in text else text


def _from_card(folder: Path, sums: Mapping[str, str]) -> Known:
    if not (folder / FACTS).is_file():
        return Known()
    remedy = "delete it, or save the model again"
    try:
        facts = Facts.model_validate(read_json(folder / FACTS, "facts of the card", remedy))
    except ValidationError as error:
        where = ".".join(str(key) for key in error.errors()[0]["loc"])
        raise InputError(f"{folder / FACTS} is damaged at {where!r:.60}; {remedy}.") from None
    if not sums.items() <= facts.weights.items():
        return Known(Facts(license=facts.license))
    picture = folder / PICTURE
    if not picture.is_file():
        return Known(facts)
    with Image.open(picture, formats=("PNG",)) as opened:
        return Known(facts, opened.copy())


def _from_run(report: Path, sums: Mapping[str, str]) -> Known:
    metrics = read_metrics(report / METRICS)
    of = [name for name, known in metrics.weights.items() if sums.items() <= known.items()]
    if not of:  # made again since, or measured by an earlier version
        return Known()
    if of[-1] == list(metrics.weights)[-1]:
        return Known(Facts(metrics=public(metrics)), _picture(report))
    return Known(Facts(metrics=_unfinished(public(metrics)), row=UNFINISHED))


def _unfinished(metrics: Metrics) -> Metrics:
    """The evaluation without what concerns only the student after its finish."""
    recipe = {name: values for name, values in metrics.recipe.items() if name != "finish"}
    update: dict[str, object] = {"recipe": recipe, "finish": None, "sampling_cost": None}
    if metrics.protocol is not None:
        decay = metrics.protocol.ema_decay.model_copy(
            update={"student": recipe.get("train", {}).get("ema_decay")}
        )
        update["protocol"] = metrics.protocol.model_copy(update={"ema_decay": decay})
    return metrics.model_copy(update=update)


def _picture(report: Path) -> Image.Image | None:
    """Rows of the teacher's samples, each above the model's of the same noises."""
    import torch

    from dsno.evaluation.report import ARRAYS, read_arrays  # matplotlib: a second
    from dsno.support.images import grid

    if not (report / ARRAYS).is_file():
        return None
    arrays = read_arrays(report / ARRAYS)
    if "student" not in arrays:  # samples that are no images
        return None
    teacher, student = arrays["teacher"], arrays["student"]
    side = max(student.shape[-2:])
    columns = min(next((c for s, c in COLUMNS.items() if side <= s), FEWEST), len(student))
    firsts = range(0, min(PAIRS, len(student) // columns) * columns, columns)
    pairs = [
        grid(torch.cat([of[i : i + columns] for of in (teacher, student)]), columns) for i in firsts
    ]
    width, height = pairs[0].size
    picture = Image.new(pairs[0].mode, (width, len(pairs) * (height + GAP) - GAP), "white")
    for i, pair in enumerate(pairs):
        picture.paste(pair, (0, i * (height + GAP)))
    return picture


def public(metrics: Metrics) -> Metrics:
    """An evaluation without paths of the machine and the course of the losses."""
    recipe = map_files(Recipe, result_values(Recipe, metrics.recipe), lambda _, name: shown(name))
    return metrics.model_copy(
        update={
            "recipe": recipe,
            "command": shlex.join(shown(word) for word in _words(metrics.command)),
            "student_history": [],
            "teacher_history": [],
            "spectrum": None,
        }
    )


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def shown(word: str) -> str:
    """A file's name, or key=name, without the folders that it is in.

    A Hub id stays as it is, and an address loses what may be secret in it.
    """
    key = _KEY.match(word)
    lead = key[0] if key else ""
    value = word[len(lead) :]
    if "://" in value:
        address = urlsplit(value)
        return f"{lead}{address.scheme}://{address.hostname}{address.path}"
    is_path = value.startswith(("/", "~", ".")) or Path(value).exists() or value.count("/") > 1
    return lead + Path(value).name if is_path and "/" in value else word
