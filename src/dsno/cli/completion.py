"""What a shell may complete: names of recipes, and their keys."""

from __future__ import annotations

from collections.abc import Iterator


def recipes(incomplete: str) -> list[tuple[str, str]]:
    """The shipped recipes that begin so, each with its title."""
    from dsno.recipes import load_recipe, shipped_recipes

    return [
        (name, load_recipe(name).title) for name in shipped_recipes() if name.startswith(incomplete)
    ]


def keys(incomplete: str) -> list[str]:
    """The recipe keys that begin so, each with the equals sign that follows it."""
    return [f"{key}=" for key in _keys() if key.startswith(incomplete)]


def _keys() -> Iterator[str]:
    from dsno.recipes.effects import section_of
    from dsno.recipes.schema import Recipe

    for name, field in Recipe.model_fields.items():
        section = section_of(field)
        yield from [name] if section is None else (f"{name}.{key}" for key in section.model_fields)
