"""Durations in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Such as `40 s`, `12 min` or `3.5 h`; `unknown` if it is not finite."""
    if not 0 <= seconds < float("inf"):
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"
