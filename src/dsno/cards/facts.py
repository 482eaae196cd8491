"""What is known of a saved model: how it was made, and what was measured of these very weights.

An evaluation names the checksums of the weights that it measured. A model in the folder of a run is
looked up there; a folder that `save_pretrained` wrote has a copy in card.json of what is `public`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import safe_open
from torch import nn

from dsno.cards.picture import of_evaluation, read_picture
from dsno.cards.public import public
from dsno.evaluation.metrics import METRICS, Metrics, read_metrics
from dsno.evaluation.samplers import STUDENT, UNFINISHED
from dsno.sampling.folder import (
    CARD,
    FACTS,
    MODEL,
    ORIGIN,
    PICTURE,
    weights_checksums,
    weights_files,
)
from dsno.support.errors import InputError
from dsno.support.files import read_json

if TYPE_CHECKING:
    from dsno.pipeline import DSNOModel

MARK = (
    "<!-- Written by dsno. Without this line, the text stays as it is when the model is saved. -->"
)
"""In a card that may be written again."""
REPORT = "report"
"""Folder of a run with its evaluation."""


class Facts(BaseModel):
    """What card.json holds."""

    model_config = ConfigDict(extra="forbid")

    metrics: Metrics | None = None
    """The evaluation; of it alone is known how the model was made."""
    row: str = STUDENT
    """Name of this model's rows in it."""
    weights: dict[str, str] = {}
    """Checksums of the files of weights in the folder, by their names there."""
    rounded: str | None = None
    """To which type the weights that were measured have been rounded since."""
    license: str | None = None
    """That its owner gave it, by the Hub's names."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.metrics is not None:
            self.metrics.of_one_step(self.row)
        return self


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


def known_of(model: DSNOModel) -> Known:
    """What is known of a model; nothing if it was made here, or nothing is beside it.

    Args:
        model: as loaded from the folder model/ of a pipeline's folder.

    Raises:
        InputError: if the evaluation or card.json is damaged.
    """
    origin = model.config.get(ORIGIN)
    folder = Path(origin or "").absolute().parent
    if not origin or Path(origin).name != MODEL or not (sums := weights_checksums(folder)):
        return Known()
    if (folder.parent / REPORT / METRICS).is_file() and not (folder / FACTS).is_file():
        found = _from_run(folder.parent / REPORT, sums)
    else:
        found = _from_card(folder, sums)
    if found.facts.metrics is not None and not _is_unchanged(model, folder):
        found = Known(Facts(license=found.facts.license))
    return replace(found, own_text=own_text(folder / CARD))


def _is_unchanged(model: DSNOModel, folder: Path) -> bool:
    """Whether a model's weights are still a file's, rounded to its precision."""
    module = cast(nn.Module, getattr(model, "_orig_mod", model))  # it may be compiled
    weights = module.state_dict()
    changed = set(weights)
    for file in weights_files(folder):
        with safe_open(file, "pt") as opened:
            for name in changed & set(opened.keys()):
                weight = weights[name].cpu()
                if torch.equal(opened.get_tensor(name).to(weight.dtype), weight):
                    changed.remove(name)
    return not changed


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
        where = ".".join(str(key) for key in error.errors()[0]["loc"]) or "row"
        raise InputError(f"{folder / FACTS} is damaged at {where!r:.60}; {remedy}.") from None
    if not sums.items() <= facts.weights.items():
        return Known(Facts(license=facts.license))
    return Known(facts, read_picture(folder / PICTURE))


def _from_run(report: Path, sums: Mapping[str, str]) -> Known:
    metrics = read_metrics(report / METRICS)
    of = [name for name, known in metrics.weights.items() if sums.items() <= known.items()]
    if not of:  # made again since, or measured by an earlier version
        return Known()
    if of[-1] == list(metrics.weights)[-1]:
        return Known(Facts(metrics=public(metrics)), of_evaluation(report))
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
