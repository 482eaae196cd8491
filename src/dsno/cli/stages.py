"""Commands that make a run, or one of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsno.cli.options import DryRun, Extend, Out, Overrides, RecipeArgument, Yes
from dsno.cli.work import open_run, print_table, print_yaml
from dsno.support.console import is_silent
from dsno.support.errors import InputError


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    extend: Extend = False,
) -> None:
    """Run every stage: teacher, collect, train, finish, evaluate, report; not what is done."""
    opened = open_run(recipe, overrides, out, dry_run, yes=yes, extend=extend)
    opened.run()
    if not is_silent():
        print_table(opened)
        typer.echo(f"\nReport: {opened.folder / 'report' / 'report.html'}")


def teacher(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    extend: Extend = False,
) -> None:
    """Train the teacher, a diffusion model."""
    open_run(recipe, overrides, out, dry_run, yes=yes, extend=extend).stage("teacher")


def collect(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    shard_range: Annotated[
        str,
        typer.Option(
            metavar="A:B", help="Make shards A to B - 1 only; other jobs may make the others."
        ),
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved recipe and an estimate of what it takes, and stop.",
        ),
    ] = False,
    yes: Yes = False,
) -> None:
    """Solve the teacher's ODE for many noises and store the trajectories."""
    shards = parse_range(shard_range) if shard_range else None
    if dry_run:
        from dsno.recipes import load_recipe
        from dsno.runs.estimate import estimate_collection, estimate_lines

        resolved = load_recipe(recipe, overrides or [])
        print_yaml(resolved.model_dump(mode="json"))
        found = estimate_collection(resolved, out or Path("runs") / resolved.name)
        typer.echo("\n".join(estimate_lines(found)))
        return
    open_run(recipe, overrides, out, yes=yes).stage("collect", shards=shards)


def parse_range(text: str) -> range:
    """`0:128` as a range.

    Raises:
        InputError: if it is anything else.
    """
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise InputError(f"Expected --shard-range A:B with A < B, such as 0:128; found {text!r}.")
    return range(int(first), int(end))


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    extend: Extend = False,
) -> None:
    """Train the operator on the trajectories."""
    open_run(recipe, overrides, out, dry_run, yes=yes, extend=extend).stage("train")


def finish(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Match the distribution of the student's samples to the teacher's, without data."""
    open_run(recipe, overrides, out, dry_run, yes=yes).stage("finish")


def report(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Evaluate if that is not done, and write the report."""
    opened = open_run(recipe, overrides, out, dry_run, yes=yes)
    opened.stage("evaluate")
    opened.stage("report")
