"""The command that shows a trained model on a web page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from dsno.cli.completion import recipes
from dsno.support.errors import InputError

RUNS = Path("runs")
"""Where runs are made by default."""


def serve(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A run's folder, a trained model's folder or a recipe; by default what was made "
            "last in runs/.",
            autocompletion=recipes,
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve at; 0.0.0.0 lets other machines see the page.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve at; 0 for any free one.")] = 7860,
    max_images: Annotated[
        int, typer.Option(help="Images of a request at most; they are one batch.")
    ] = 64,
    max_steps: Annotated[int, typer.Option(help="Steps of the teacher at most.")] = 100,
    max_queue: Annotated[
        int, typer.Option(help="Requests that wait at most; one is worked on at a time.")
    ] = 16,
) -> None:
    """Show a trained model on a web page: samples beside the teacher's, trajectories, mixtures."""
    if any(importlib.util.find_spec(name) is None for name in ("gradio", "uvicorn")):
        raise InputError("The web page needs Gradio: run pip install 'dsno[app]'.")
    from dsno.app.gate import is_loopback
    from dsno.app.listening import listen, url
    from dsno.app.request import Limits
    from dsno.runs.locate import newest_run

    limits = Limits(max_images, max_steps, max_queue)
    folder = _folder(str(newest_run(RUNS)) if target is None else target)
    with listen(host, port) as listener:
        from dsno.app.served import ServedModel
        from dsno.runs.export import load_model
        from dsno.runs.locate import name_of
        from dsno.support import distributed
        from dsno.support.console import alert, say

        pipeline = load_model(folder).to(distributed.device())
        model = ServedModel(pipeline, name_of(folder))
        model.warm_up()
        from dsno.app.server import serve as run

        if not is_loopback(listener.getsockname()[0]):
            alert(
                f"Whoever reaches {host} can see the page and make this machine work: there is no "
                "password."
            )
        typer.echo(f"Serving {model.name} at {url(listener)}")
        say("Ctrl-C stops it.")
        run(model, limits, listener)


def _folder(target: str) -> Path:
    """The model's folder that a path or the name of a recipe means.

    Raises:
        InputError: if there is no trained model.
    """
    from dsno.runs.locate import model_folder

    folder = model_folder(target)
    if folder is not None:
        return folder
    from dsno.recipes import load_recipe

    run = RUNS / load_recipe(target).name
    folder = model_folder(str(run)) if run.is_dir() else None
    if folder is None:
        raise InputError(
            f"The recipe {target} has no trained model in {run}; run `dsno run {target}` first, or "
            "give a model's folder."
        )
    return folder
