"""Commands that make a run, or one of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsno.cli.options import DryRun, Extend, Json, Out, Overrides, RecipeArgument, Yes
from dsno.cli.work import note, open_run, print_json, print_sections, print_table
from dsno.support.errors import InputError

if TYPE_CHECKING:
    from dsno.runs.run import Run


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    extend: Extend = False,
    as_json: Json = False,
) -> None:
    """Run every stage: teacher, collect, train, finish, evaluate, report; not what is done."""
    opened = open_run(recipe, overrides, out, dry_run, yes=yes, extend=extend, as_json=as_json)
    opened.run()
    if as_json:
        stages = [opened.outcome(stage) for stage in opened.stages]
        print_json({"folder": str(opened.folder), "stages": stages, "metrics": opened.metrics()})
        return
    print_table(opened)
    note(f"\nReport: {opened.folder / 'report' / 'report.html'}")


def teacher(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    extend: Extend = False,
    as_json: Json = False,
) -> None:
    """Train the teacher, a diffusion model."""
    opened = open_run(recipe, overrides, out, dry_run, yes=yes, extend=extend, as_json=as_json)
    _make(opened, "teacher", as_json)


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
    as_json: Json = False,
) -> None:
    """Solve the teacher's ODE for many noises and store the trajectories."""
    shards = parse_range(shard_range) if shard_range else None
    if dry_run:
        from dsno.recipes import load_recipe
        from dsno.runs.estimate import estimate_collection, estimate_lines, estimate_values

        resolved = load_recipe(recipe, overrides or [])
        values = resolved.model_dump(mode="json")
        if not as_json:
            print_sections(values, as_json=False)
        found = estimate_collection(resolved, out or Path("runs") / resolved.name)
        if as_json:
            print_json({"recipe": values, "estimate": estimate_values(found)})
        else:
            typer.echo("\n".join(estimate_lines(found)))
        return
    _make(open_run(recipe, overrides, out, yes=yes), "collect", as_json, shards=shards)


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
    as_json: Json = False,
) -> None:
    """Train the operator on the trajectories."""
    opened = open_run(recipe, overrides, out, dry_run, yes=yes, extend=extend, as_json=as_json)
    _make(opened, "train", as_json)


def finish(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Match the distribution of the student's samples to the teacher's, without data."""
    opened = open_run(recipe, overrides, out, dry_run, yes=yes, as_json=as_json)
    _make(opened, "finish", as_json)


def report(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Evaluate if that is not done, and write the report."""
    opened = open_run(recipe, overrides, out, dry_run, yes=yes, as_json=as_json)
    opened.stage("evaluate")
    _make(opened, "report", as_json)


def _make(run: Run, stage: str, as_json: bool, *, shards: range | None = None) -> None:
    run.stage(stage, shards=shards)
    if as_json:
        print_json(run.outcome(stage))
