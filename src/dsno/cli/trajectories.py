"""`dsno trajectories`: commands that look at what was collected."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from dsno.cli.options import with_verbosity
from dsno.cli.work import note, print_json, typed
from dsno.support.errors import InputError

app = typer.Typer(
    no_args_is_help=True, help="Inspect collected trajectories, and check that they are complete."
)
Where = Annotated[
    str,
    typer.Argument(metavar="DIR", help="Folder or URL of trajectories, or the folder of a run."),
]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("info")
def info(where: Where, as_json: AsJson = False) -> None:
    """Print what a folder of trajectories contains."""
    from dsno.runs.locate import trajectories_of
    from dsno.trajectories.describe import describe, values

    storage, _ = trajectories_of(where)
    if as_json:
        print_json(values(storage))
        return
    for key, value in describe(storage).items():
        typer.echo(f"{key:<13} {value}")


@app.command("verify")
@with_verbosity
def verify(
    where: Where,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Move foreign files aside and make damaged shards again."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Read every shard and name all that are missing, truncated, edited or foreign."""
    from dsno.runs.locate import saved_recipe, trajectories_of
    from dsno.trajectories.describe import spans, values
    from dsno.trajectories.verify import ASIDE, inspect_trajectories, repair_trajectories

    storage, folder = trajectories_of(where)
    manifest, findings = inspect_trajectories(storage)
    if as_json:
        found = [dataclasses.asdict(finding) for finding in findings]
        print_json({**values(storage), "findings": found})
    else:
        for finding in findings:
            typer.echo(f"{storage.at(finding.file)} {finding.says}.")
        typer.echo(
            f"{len(manifest.shards):,} of {manifest.shard_count:,} shards are made; "
            f"{len(findings):,} findings."
        )
        if manifest.missing:
            typer.echo(f"Not made yet: shards {spans(manifest.missing)}.")
    if not findings and not manifest.missing:
        return
    again = f"`dsno collect RECIPE collect.destination={storage}`"
    if not repair:
        remedy = again if folder is None else f"`dsno trajectories verify {where} --repair`"
        if not as_json:
            note(f"{remedy} makes what is missing or damaged again.")
        raise typer.Exit(1)
    if folder is None:
        raise InputError(
            f"{where} is not in the folder of a run, so its recipe is unknown; run {again}, which "
            "makes what is missing or damaged again."
        )
    for name in repair_trajectories(storage, findings):
        if not as_json:
            note(f"Moved {name} to {storage.at(ASIDE)}.")
    from dsno.runs.run import Run

    Run(saved_recipe(folder), folder, command=typed()).stage("collect")
