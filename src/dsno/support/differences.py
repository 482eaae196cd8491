"""How two records of settings differ, for people."""

from __future__ import annotations

from typing import Any


def changes(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The keys whose values differ, as `key old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(set(old) | set(new)):
            found += changes(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if old == new else [f"{prefix} {old} -> {new}"]
