"""Arguments and options that several commands take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dsno.cli.completion import keys, recipes
from dsno.support.errors import InputError
from dsno.support.verbosity import Verbosity, set_verbosity

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A shipped recipe (`dsno recipes`) or a YAML file.",
        autocompletion=recipes,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Overrides, such as teacher.steps=40.", autocompletion=keys
    ),
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A recipe, or a folder with a trained model.",
        autocompletion=recipes,
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run; runs/NAME by default.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help="Set finished results aside without asking where the recipe changed."
    ),
]
Extend = Annotated[
    bool,
    typer.Option(
        "--extend", help="Where `steps` has grown, go on from the last step instead of anew."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result, or with --dry-run the recipe, as JSON.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only.")
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Let libraries say what they load, and show where an error was raised.",
    ),
]


def with_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options --quiet and --verbose."""

    @functools.wraps(command)
    def run(*, quiet: bool, verbose: bool, **given: Any) -> None:
        if quiet and verbose:
            raise InputError("Give --quiet or --verbose, not both.")
        if quiet or verbose:
            set_verbosity(Verbosity.QUIET if quiet else Verbosity.VERBOSE)
        command(**given)

    taken = inspect.signature(command, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for name, option in (("quiet", Quiet), ("verbose", Verbose))
    ]
    run.__signature__ = taken.replace(parameters=[*taken.parameters.values(), *more])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
    return run
