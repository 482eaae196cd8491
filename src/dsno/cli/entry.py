"""The program `dsno`: its commands, its own options, and what it returns to the shell."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from dsno import __version__
from dsno.cli import about, evaluate, models, serve, stages, trajectories
from dsno.cli.options import with_verbosity
from dsno.support.errors import DsnoError
from dsno.support.verbosity import Verbosity, is_silent, is_verbose, set_verbosity

INTERRUPTED = 130
BEGINS_AGAIN = ("sample", "export", "serve")
"""Commands that leave nothing to go on from when they are interrupted."""

app = typer.Typer(
    name="dsno",
    help="Turn a diffusion model into a one-step generator with a neural operator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# In the order in which `dsno --help` lists them.
for command in (
    stages.run,
    stages.teacher,
    stages.collect,
    stages.train,
    stages.finish,
    stages.report,
    evaluate.evaluate,
    models.sample,
    serve.serve,
    models.export,
    models.import_,
):
    app.command(command.__name__.rstrip("_"))(with_verbosity(command))
app.command()(about.recipes)
app.command()(about.info)
app.add_typer(trajectories.app, name="trajectories")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"dsno {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            "--adapter", help="A Python file that makes your own network class known; it is run."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    for path in adapter or []:
        from dsno.teachers.own import load_adapter

        load_adapter(path)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, 1 (the work failed), 2 (the input is wrong) or 130."""
    try:
        app(args=arguments, prog_name="dsno")
    except SystemExit as stop:  # how Typer ends, well or not
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if code == INTERRUPTED and not is_silent():
            given = sys.argv[1:] if arguments is None else arguments
            commands = {c.name for c in app.registered_commands} | {"trajectories"}
            command = next((word for word in given if word in commands), "")
            rest = "" if command in BEGINS_AGAIN else "; the same command goes on from here"
            typer.echo(f"dsno: interrupted{rest}.", err=True)
        return code
    except DsnoError as error:
        if is_verbose():
            traceback.print_exception(error)
        if not (is_silent() and error.is_shared):  # process 0 says it for all
            who = f"dsno (process {os.environ['RANK']})" if is_silent() else "dsno"
            typer.echo(f"{who}: {error}", err=True)
        return error.exit_code
    finally:
        set_verbosity(Verbosity.USUAL)  # of this command alone, where a program runs several
    return 0
