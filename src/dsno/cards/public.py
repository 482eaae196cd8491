"""What others may read of an evaluation: no path of the machine that it was made on."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

from dsno.evaluation.metrics import Metrics
from dsno.recipes import Recipe
from dsno.recipes.effects import map_files, result_values

_KEY = re.compile(r"[\w.-]+=")
"""Of a word of the command line."""


def public(metrics: Metrics) -> Metrics:
    """An evaluation without paths of the machine, and without the course of the losses."""
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


def shown(word: str) -> str:
    """A file's name, or key=name, without the folders that it is in.

    A Hub id stays as it is, and of an address its host and path are left.
    """
    key = _KEY.match(word)
    lead = key[0] if key else ""
    value = word[len(lead) :]
    if "://" in value and not value.startswith("file:"):
        address = urlsplit(value)
        return f"{lead}{address.scheme}://{address.hostname or ''}{address.path}"
    is_path = value.startswith(("/", "~", ".", "file:")) or value.count("/") > 1
    is_path = is_path or os.path.exists(value)  # noqa: PTH110 (Path's raises for long names)
    return lead + Path(value).name if is_path and "/" in value else word


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()
