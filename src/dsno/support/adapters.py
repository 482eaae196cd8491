"""What checks values against a type, made once for each."""

from __future__ import annotations

import functools
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

T = TypeVar("T")


def adapter(kind: type[T]) -> TypeAdapter[T]:
    """Check values against a type.

    Making one takes milliseconds, many times what reading a small file does.

    Args:
        kind: the type; hashable.
    """
    return cast(TypeAdapter[T], _adapter(cast(Any, kind)))


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
