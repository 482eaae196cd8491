"""`dsno trajectories`: commands that look at what was collected, or write it for others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from dsno.cli.options import with_verbosity
from dsno.cli.work import note, print_json, typed
from dsno.support.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    help="Inspect collected trajectories, check that they are complete, write them for others.",
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


@app.command("export")
@with_verbosity
def export(
    where: Where,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="webdataset|npz|huggingface|lmdb",
            help="Layout: tar files of .npy for FastGen; numpy's; Parquet for `datasets`; the LMDB "
            "of CausVid and Self-Forcing.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder or URL to write.")],
    slices: Annotated[
        int | None,
        typer.Option(
            help="States of each trajectory beside its noise, a divisor of those stored; all if "
            "not given. 1 writes pairs."
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="float16|float32|float64",
            help="Type of the states; if not given, the narrowest that loses nothing.",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the teacher that trajectories outside a run were solved with."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was written as JSON.")
    ] = False,
) -> None:
    """Write trajectories in a layout that other toolkits read; `dsno import` reads it back."""
    from dsno.runs.exchange import export_run

    done = export_run(where, out, to, slices=slices, dtype=dtype, teacher=teacher)
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    how = done.dtype if done.is_exact else f"rounded to {done.dtype}"
    note(
        f"Wrote {done.trajectories:,} trajectories of {done.states} states ({how}) to "
        f"{done.folder} in the layout {done.layout}: {done.bytes / 1e6:,.1f} MB."
    )


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
