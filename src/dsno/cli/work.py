"""What commands share: open a run, print what it gave."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dsno.support.verbosity import is_quiet, is_silent

if TYPE_CHECKING:
    from dsno.recipes import Recipe
    from dsno.runs.run import Run


def resolve(
    recipe: str, overrides: list[str] | None, dry_run: bool, *, as_json: bool = False
) -> Recipe:
    """The recipe with its overrides; if that is all that is wanted, print it and stop."""
    from dsno.recipes import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    if dry_run:
        print_sections(resolved.model_dump(mode="json"), as_json=as_json)
        raise typer.Exit
    return resolved


def open_run(
    recipe: str,
    overrides: list[str] | None,
    out: Path | None,
    dry_run: bool = False,
    *,
    yes: bool = False,
    extend: bool = False,
    as_json: bool = False,
) -> Run:
    """The run of a recipe in its folder."""
    resolved = resolve(recipe, overrides, dry_run, as_json=as_json)
    from dsno.runs.run import Run

    return Run(
        resolved,
        out or Path("runs") / resolved.name,
        command=typed(),
        yes=yes,
        extend=extend,
    )


def typed() -> str:
    """What the user typed, for the record of a run."""
    return shlex.join(["dsno", *sys.argv[1:]])


def print_sections(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print sections of a recipe as a file of one has them, or as JSON."""
    if as_json:
        print_json(values)
        return
    import yaml

    typer.echo(yaml.safe_dump(values, sort_keys=False), nl=False)


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print one JSON value; of several processes the first does."""
    if not is_silent():
        typer.echo(json.dumps(value, indent=1))


def print_table(run: Run) -> None:
    """Print what was measured of a run's samplers; of several processes the first does."""
    if not is_silent():
        from dsno.evaluation.table import table

        typer.echo(table(run.metrics()))


def note(line: str) -> None:
    """Print where a result is, unless the user wants no such line or another process says it."""
    if not (is_quiet() or is_silent()):
        typer.echo(line)
