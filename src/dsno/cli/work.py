"""What commands share: open a run, print what it gave."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from dsno.recipes import Recipe
    from dsno.runs.run import Run


def resolve(recipe: str, overrides: list[str] | None, dry_run: bool) -> Recipe:
    """The recipe with its overrides; if that is all that is wanted, print it and stop."""
    from dsno.recipes import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    if dry_run:
        print_yaml(resolved.model_dump(mode="json"))
        raise typer.Exit
    return resolved


def print_yaml(values: dict[str, Any]) -> None:
    """Print sections of a recipe as a file of one has them."""
    import yaml

    typer.echo(yaml.safe_dump(values, sort_keys=False), nl=False)


def open_run(
    recipe: str,
    overrides: list[str] | None,
    out: Path | None,
    dry_run: bool = False,
    *,
    yes: bool = False,
    extend: bool = False,
) -> Run:
    """The run of a recipe in its folder."""
    resolved = resolve(recipe, overrides, dry_run)
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


def print_table(run: Run) -> None:
    """Print what was measured of a run's samplers."""
    from dsno.evaluation.table import table

    typer.echo(table(run.metrics()))
