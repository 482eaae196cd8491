"""Commands that say what there is: recipes, and the installation."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def recipes() -> None:
    """List the recipes that ship."""
    from dsno.recipes import load_recipe, shipped_recipes

    for name in shipped_recipes():
        typer.echo(f"{name:<20} {load_recipe(name).title}")


def info(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Print versions, machine and settings, for a bug report."""
    from dsno.support.installation import installation

    found = installation()
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(map(len, found))
    for key, value in found.items():
        typer.echo(f"{key:<{width}}  {value}")
