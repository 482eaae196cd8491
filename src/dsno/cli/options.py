"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe (`dsno recipes`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, such as teacher.steps=40."),
]
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="A recipe, or a folder with a trained model.")
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
