"""Find a recipe, apply overrides, check it."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dsno.recipes.schema import LIFT_IN_DETAIL, Recipe, Section, with_teacher_defaults
from dsno.support.errors import InputError, closest
from dsno.support.files import require_regular

SectionType = TypeVar("SectionType", bound=Section)


MAX_RECIPE = 2**20
"""Characters of a recipe; also with every alias (`*name`) written out."""
_MAX_NUMBER = 100


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number (YAML 1.1 wants 1.0e-3), and which does not explode.

    Ten aliases of ten aliases of ... make a billion values out of a few lines, and a merge (`<<`)
    multiplies likewise: so every node is weighed as it would be with its aliases written out.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._weights: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        node = super().compose_node(parent, index)
        if node is not None and node not in self._weights:
            weight = self._weigh(node)
            if weight > MAX_RECIPE:
                raise yaml.composer.ComposerError(problem="it is too large", problem_mark=None)
            self._weights[node] = weight
        return node

    def _weigh(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            if node.tag.endswith((":int", ":float")) and len(node.value) > _MAX_NUMBER:
                raise yaml.composer.ComposerError(problem="a number is too long")
            return 1 + len(node.value)
        inside = [n for item in node.value for n in (item if isinstance(item, tuple) else (item,))]
        if any(n not in self._weights for n in inside):
            raise yaml.composer.ComposerError(problem="a value holds itself")
        return 1 + sum(self._weights[n] for n in inside)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def shipped_recipes() -> dict[str, str]:
    """Name and YAML text of every recipe in the package."""
    folder = resources.files("dsno.recipes")
    return {
        Path(item.name).stem: item.read_text(encoding="utf-8")
        for item in sorted(folder.iterdir(), key=lambda i: i.name)
        if item.name.endswith(".yaml")
    }


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a shipped recipe by name or any recipe by path, with `key.sub=value` overrides.

    An override of `student.lift` replaces the recipe's detailed keys of the lift, and one of those
    replaces its `student.lift`.

    Raises:
        InputError: for an unknown recipe or key (the closest are named), or a wrong value.
    """
    values = _read(source)
    overridden = set()
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise InputError(f"An override reads key.sub=value, not {override!r}.")
        _set(values, key.split("."), _parse(text, f"override {override!r}"), override)
        overridden.add(key)
    _drop_other_lift(values, overridden)
    return check_recipe(values)


def _drop_other_lift(values: dict[str, Any], overridden: Collection[str]) -> None:
    """Remove the recipe's own way of saying how to lift where an override says it the other way."""
    student = values.get("student")
    if not isinstance(student, dict):
        return
    named, detailed = ["lift"], LIFT_IN_DETAIL
    for said, other in (named, detailed), (detailed, named):
        if any(f"student.{key}" in overridden and student[key] is not None for key in said):
            for key in other:
                if f"student.{key}" not in overridden:
                    student.pop(key, None)


def load_section(
    section: type[SectionType], name: str, values: Mapping[str, Any], options: Sequence[str]
) -> SectionType:
    """One section of a recipe from plain values and `key=value` options.

    Raises:
        InputError: for an unknown key or a wrong value.
    """
    given: dict[str, Any] = {name: dict(values)}
    for option in options:
        key, sign, text = option.partition("=")
        if not sign or not key:
            raise InputError(f"An option reads key=value, not {option!r}.")
        value = _parse(text, f"option {option!r}")
        _set(given, [name, *key.split(".")], value, option)
    try:
        return section.model_validate_json(json.dumps(given[name]), strict=True)
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise InputError(f"The options cannot be read: {error}.") from None
        raise InputError(_sentence(error, [name])) from None


def check_recipe(values: Any) -> Recipe:
    """Check a recipe's values.

    Raises:
        InputError: one sentence on the first thing that is wrong.
    """
    try:
        # JSON mode is strict about types but takes lists for tuples and 1 for 1.0.
        text = json.dumps(with_teacher_defaults(values))
        return Recipe.model_validate_json(text, strict=True)
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise InputError(f"The recipe cannot be read: {error}.") from None
        raise InputError(_sentence(error)) from None


def _read(source: str) -> dict[str, Any]:
    shipped = shipped_recipes()
    if source in shipped:
        text = shipped[source]
    elif source.endswith((".yaml", ".yml")) or "/" in source:
        text = _text(Path(source))
    else:
        raise InputError(f"There is no recipe {source!r}: {closest(source, shipped)}")
    values = _parse(text, f"recipe {source}")
    if not isinstance(values, dict):
        raise InputError(f"The recipe {source} is not a mapping of sections.")
    return values


def _text(path: Path) -> str:
    """The text of a recipe's file.

    Raises:
        InputError: if it cannot be read, or is no recipe by its size alone.
    """
    try:
        require_regular(path)
        if path.stat().st_size > MAX_RECIPE:
            raise InputError(
                f"The recipe {path} has {path.stat().st_size:,} bytes, and at most {MAX_RECIPE:,} "
                "are read; put long lists of prompts into a text file."
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"The recipe {path} cannot be read ({reason}).") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The recipe's path cannot be used ({error}).") from None


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds plain values only
    except Exception as error:  # a date such as 2001-99-99, `!!int x`, `!!timestamp x`, ...
        line = " ".join(str(error).split())
        raise InputError(f"The {what} is not valid YAML ({line}).") from None


def _set(values: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    model: Any = Recipe
    for depth, part in enumerate(path):
        if isinstance(model, type) and issubclass(model, BaseModel):
            if part not in model.model_fields:
                name = ".".join(path[: depth + 1])
                raise InputError(
                    f"There is no recipe key {name!r}: {_nearest(path[:depth], part, model)}"
                )
            model = _inner(model.model_fields[part].annotation)
        if depth == len(path) - 1:
            values[part] = value
            return
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise InputError(
                f"`{'.'.join(path[: depth + 1])}` is a value, not a section: {override!r}."
            )
        values = inner


def _inner(annotation: Any) -> Any:
    """The model inside an annotation, if it is one."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((a for a in typing.get_args(annotation) if isinstance(a, type)), None)
    return annotation


def _nearest(prefix: Iterable[str], part: str, model: type[BaseModel]) -> str:
    names = [".".join([*prefix, name]) for name in model.model_fields]
    return closest(".".join([*prefix, part]), names)


def _named(loc: Sequence[int | str]) -> list[str]:
    """A location without the members of unions, which pydantic names by their types."""
    return [str(p) for p in loc if not re.search(r"[\[\]()-]", str(p)) and p not in _TYPES]


_TYPES = ("str", "float", "int", "tuple")


def _sentence(error: ValidationError, within: Sequence[str] = ()) -> str:
    # A misspelt key first: what is "missing" then is its right spelling.
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = [*within, *_named(first["loc"])]
    if first["type"] == "extra_forbidden":  # the file's own key, whatever characters it has
        path = [*within, *_named(first["loc"][:-1]), str(first["loc"][-1])]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        model: Any = Recipe
        for part in path[:-1]:
            fields = getattr(model, "model_fields", {})
            model = _inner(fields[part].annotation) if part in fields else None
        known = list(getattr(model, "model_fields", {}))
        hint = closest(path[-1], known) if known else "remove it."
        return f"There is no recipe key {key!r}: {hint}"
    if first["type"] == "missing":
        return f"The recipe lacks {key!r}; add it."
    if first["type"] == "value_error":
        return f"{str(first['ctx']['error']).rstrip('.')}."
    given = json.dumps(first["input"])
    given = given if len(given) < 60 else given[:57] + "..."
    wish = first["msg"].removeprefix("Input should be ").rstrip(".")
    return f"The recipe key {key!r} should be {wish}, not {given}."
