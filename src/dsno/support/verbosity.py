"""Who prints, and how much: decided by the launcher and by the command line."""

from __future__ import annotations

import enum
import os


class Verbosity(enum.Enum):
    """How much is printed beside results, warnings and errors."""

    QUIET = "quiet"
    """Nothing."""
    USUAL = "usual"
    """What each stage does, and how far it is."""
    VERBOSE = "verbose"
    """Besides, what libraries say while they load, and where an error was raised."""


_chosen = Verbosity.USUAL


def set_verbosity(level: Verbosity) -> None:
    """Choose how much this process prints from here on."""
    global _chosen
    _chosen = level


def is_quiet() -> bool:
    """Whether only results, warnings and errors are printed."""
    return _chosen is Verbosity.QUIET


def is_verbose() -> bool:
    """Whether libraries are heard, and errors are shown with where they were raised."""
    return _chosen is Verbosity.VERBOSE


def is_silent() -> bool:
    """Whether this is not the first process of a launch, the one that prints for all."""
    return os.environ.get("RANK", "0") != "0"
