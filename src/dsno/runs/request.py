"""What `dsno evaluate TARGET` asks for; read and checked before PyTorch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsno.recipes.load import load_section
from dsno.recipes.schema import Data, Evaluate
from dsno.support.errors import InputError

TAKEN = (
    *("samples", "batch_size", "precision", "compile"),
    *("features", "classifier_seed", "inception", "torchscript"),
)
"""Keys of `evaluate` that mean something where there is no teacher."""
FITTING = {"size", "channels"}
"""Keys of `data` that images are fitted to, whatever they are compared with."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        data: real data to compare with, unless there are statistics.
        spec: how many samples, in which features.
        seed: of a model's samples.
        statistics: an .npz file to compare with instead of data.
        save: an .npz file to write the reference's statistics to.
        samples: how many were asked for; None if that was left open.
    """

    data: Data
    spec: Evaluate
    seed: int = 0
    statistics: Path | None = None
    save: Path | None = None
    samples: int | None = None


def sections(
    given: Mapping[str, str | int | bool | None], overrides: Sequence[str]
) -> tuple[Data, Evaluate]:
    """The sections of a recipe that an evaluation without a recipe takes.

    Args:
        given: values by their keys in a recipe; those that are None are left to their defaults.
        overrides: `data.KEY=VALUE` and `evaluate.KEY=VALUE`, which go before `given`.

    Raises:
        InputError: for another key, or a wrong value.
    """
    values: dict[str, dict[str, Any]] = {"data": {}, "evaluate": {}}
    options: dict[str, list[str]] = {"data": [], "evaluate": []}
    for key, value in given.items():
        if value is not None:
            section, _, name = key.partition(".")
            values[section][name] = value
    for override in overrides:
        section, dot, option = override.partition(".")
        if not dot or section not in options:
            raise InputError(
                f"A trained model takes data.KEY=VALUE and evaluate.KEY=VALUE, not {override!r}; "
                "give the recipe of its run to override other keys."
            )
        if section == "evaluate" and (name := option.partition("=")[0]) not in TAKEN:
            raise InputError(
                f"A trained model has no teacher beside it, so of `evaluate` only "
                f"{', '.join(TAKEN)} can be given, not {name!r}."
            )
        options[section].append(option)
    return (
        load_section(Data, "data", values["data"], options["data"]),
        load_section(Evaluate, "evaluate", values["evaluate"], options["evaluate"]),
    )


def taken(spec: Evaluate) -> dict[str, Any]:
    """The keys of the section that count without a recipe."""
    return spec.model_dump(mode="json", include=set(TAKEN))
