"""Commands that say what there is: recipes, and the installation."""

from __future__ import annotations

from typing import Annotated

import typer

from dsno.cli.work import print_json

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def recipes(as_json: AsJson = False) -> None:
    """List the recipes that ship."""
    from dsno.recipes import load_recipe, shipped_recipes

    titles = {name: load_recipe(name).title for name in shipped_recipes()}
    if as_json:
        print_json([{"name": name, "title": title} for name, title in titles.items()])
        return
    for name, title in titles.items():
        typer.echo(f"{name:<20} {title}")


def info(
    as_json: AsJson = False,
) -> None:
    """Print versions, machine and settings, for a bug report."""
    from dsno.support.installation import installation

    found = installation()
    if as_json:
        print_json(found)
        return
    width = max(map(len, found))
    for key, value in found.items():
        typer.echo(f"{key:<{width}}  {value}")
