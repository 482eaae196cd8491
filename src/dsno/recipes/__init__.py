"""Recipes: YAML files checked against typed sections, with `key.sub=value` overrides.

The one place where a setting, its choices and its default are written down.
"""

from dsno.recipes.load import load_recipe, shipped_recipes
from dsno.recipes.schema import Recipe

__all__ = ["Recipe", "load_recipe", "shipped_recipes"]
