"""What a recipe's keys do to a result: said in each field's type, read by whoever keeps results.

steps: Result[int]           another value is another result
precision: LaterResult[str]  likewise; at its default the result is that of recipes without the key
compile: Rounding[bool]      the same result to rounding
keep: Neutral[int]           the same result
vgg16: ResultOfFile[str]     names a file or folder; what is in it is part of the result
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Value = TypeVar("Value")


class Effect(Enum):
    """What another value of a key changes of what was or is being made."""

    RESULT = "result"
    """Everything: what was made with the old value does not serve."""
    ROUNDING = "rounding"
    """The last digits (and, with dropout, which units are dropped): what was made serves, and what
    is half made is continued."""
    NOTHING = "nothing"
    """Nothing, or only what is recorded and where."""


class _File:
    """Marks a key that names a file."""


class _Later:
    """Marks a key that earlier versions did not have, whose default does what they did."""


Result = Annotated[Value, Effect.RESULT]
LaterResult = Annotated[Value, Effect.RESULT, _Later()]
ResultOfFile = Annotated[Value, Effect.RESULT, _File()]
LaterResultOfFile = Annotated[Value, Effect.RESULT, _File(), _Later()]
Rounding = Annotated[Value, Effect.ROUNDING]
Neutral = Annotated[Value, Effect.NOTHING]


def effect(section: type[BaseModel], name: str) -> Effect | None:
    """The effect of a key: what its field says, else its section's `EFFECT`; None if neither does.

    Args:
        section: a section of the schema.
        name: of one of its fields.
    """
    said = [mark for mark in section.model_fields[name].metadata if isinstance(mark, Effect)]
    found: Effect | None = said[-1] if said else getattr(section, "EFFECT", None)
    return found


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a key holds; None if it holds a value."""
    annotation: Any = field.annotation
    options = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    found = (o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return next(found, None)


def result_values(section: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a section's plain values that a result depends on.

    Keys that the schema does not have (an older version's) are kept, as nothing is known of them. A
    `LaterResult` at its default is left out, so that results recorded without it stay valid.
    """

    def kept(name: str, value: Any) -> bool:
        field = section.model_fields.get(name)
        if field is None or section_of(field) is not None:
            return True
        is_as_before = _is_later(field) and value == field.default
        return effect(section, name) is Effect.RESULT and not is_as_before

    return {
        name: _within(section, name, value, result_values)
        for name, value in values.items()
        if kept(name, value)
    }


def with_later(section: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """What `result_values` gave, with the defaults that it left out, to compare key by key."""
    later = {k: f.default for k, f in section.model_fields.items() if _is_later(f)}
    given = {k: _within(section, k, value, with_later) for k, value in values.items()}
    return {**later, **given}


def _is_later(field: FieldInfo) -> bool:
    return any(isinstance(mark, _Later) for mark in field.metadata)


def map_files(
    section: type[BaseModel],
    values: Mapping[str, Any],
    change: Callable[[str, str], Any],
    prefix: str = "",
) -> dict[str, Any]:
    """A section's plain values with `change(key, name)` for every name of a file.

    Keys are as in a recipe's overrides, `train.vgg16`; `prefix` is what precedes the section's own.
    """
    found = {}
    for name, value in values.items():
        field = section.model_fields.get(name)
        is_file = field is not None and any(isinstance(m, _File) for m in field.metadata)
        if is_file and isinstance(value, str):
            found[name] = change(prefix + name, value)
        else:
            inner = functools.partial(map_files, change=change, prefix=f"{prefix}{name}.")
            found[name] = _within(section, name, value, inner)
    return found


def _within(
    section: type[BaseModel],
    name: str,
    value: Any,
    act: Callable[[type[BaseModel], Mapping[str, Any]], dict[str, Any]],
) -> Any:
    """`act` on the section that a key holds, if it does; else its value."""
    field = section.model_fields.get(name)
    inner = None if field is None else section_of(field)
    return value if inner is None or not isinstance(value, Mapping) else act(inner, value)
