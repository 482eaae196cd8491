"""Text in Markdown that means nothing but itself, whoever wrote it, and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dsno.support.errors import one_line

_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~])")
_FENCE = "```"


def plain(text: str) -> str:
    """A text of somebody else's as one line without any formatting."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def code(text: str) -> str:
    """A text of somebody else's as one line of code."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown, in which a bar is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def named(rows: Iterable[tuple[str, str]]) -> str:
    """A list of what has names."""
    return listed(f"**{name}**: {text}" for name, text in rows)


def listed(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def fenced(text: str, language: str) -> str:
    """A block of code, which `text` cannot end."""
    inside = text.replace(_FENCE, "'''").strip("\n")
    return f"{_FENCE}{language}\n{inside}\n{_FENCE}"


def folded(summary: str, text: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"
