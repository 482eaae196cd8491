"""Submodules found by pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from dsno.support.errors import InputError, closest


def match_sites(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The names of submodules that match shell-style patterns, in the network's order.

    As in paths, `*` stands for any part of one name and `**` for any number of nested names:
    `blocks.*` matches blocks.0 but not blocks.0.norm, `**.attn` every attn.

    Raises:
        InputError: for a pattern that matches nothing.
    """
    names = [name for name, _ in network.named_modules() if name]
    chosen: set[str] = set()
    for pattern in patterns:
        rule = _translate(pattern)
        found = [name for name in names if rule.fullmatch(name)]
        if not found:
            raise InputError(
                f"No submodule matches the site {pattern!r}: {closest(pattern, names)}"
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def _translate(pattern: str) -> re.Pattern[str]:
    """A regular expression for a dotted pattern."""
    rules = {"**.": r"(?:.*\.)?", "**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    pieces = re.split(r"(\*\*\.|\*\*|\*|\?)", pattern)
    return re.compile("".join(rules.get(piece, re.escape(piece)) for piece in pieces))


def inside(name: str, parents: Iterable[str]) -> bool:
    """Whether a submodule is one of the parents or a part of one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


@dataclass(frozen=True)
class Level:
    """What a U-Net does at one resolution.

    Attributes:
        encoder: names of the submodules on the way down.
        decoder: names of those on the way up.
    """

    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
