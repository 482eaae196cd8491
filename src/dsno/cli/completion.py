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
    from dsno.recipes.schema import Recipe, Section

    sections = {
        name: kind
        for name, field in Recipe.model_fields.items()
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
        if isinstance(kind, type) and issubclass(kind, Section)
    }
    for name in Recipe.model_fields:
        if name in sections:
            yield from (f"{name}.{key}" for key in sections[name].model_fields)
        else:
            yield name
