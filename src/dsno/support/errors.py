"""Errors a user can act on: one sentence that says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

Name = TypeVar("Name", bound=str)


class DsnoError(Exception):
    """Base of every error the package raises on purpose; its text is shown without a traceback."""

    exit_code = 1
    is_shared = False
    """Whether process 0 of several raised it and reports it for all."""

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence))


class InputError(DsnoError, ValueError):
    """The user's input (argument, recipe, file, folder) is wrong. Exit code 2."""

    exit_code = 2


class WorkError(DsnoError, RuntimeError):
    """The work itself failed (NaN loss, full disk). Exit code 1."""


def one_line(text: str) -> str:
    """`text` without what a terminal would obey or cannot show; names in files may hold such."""
    shown = (c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)
    return "".join(shown)


def closest(name: str, known: Iterable[str]) -> str:
    """Return a sentence naming the closest known names, or all of them if none is close."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known are " + ", ".join(repr(n) for n in names) + "."


def one_of(value: str, known: Iterable[Name], what: str) -> Name:
    """Return `value` if it is known, as the type of the known names.

    Raises:
        InputError: if it is not; the message names the closest ones.
    """
    names = list(known)
    for name in names:
        if name == value:
            return name
    raise InputError(f"Unknown {what} {value!r}: {closest(str(value), names)}")
