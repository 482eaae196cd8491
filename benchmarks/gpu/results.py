"""The results of a visit: a line of JSON each, kept from the moment it stands, and their table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "results.jsonl"
DONE, FAILED, LATE, MISSING = "done", "failed", "out of time", "not run"
"""What became of a part, or of a figure that has no value."""

Record = dict[str, Any]


def append(folder: Path, record: Mapping[str, Any]) -> None:
    """Add one line; it is on the disk when this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> list[Record]:
    """All whole lines; a process that was killed may have left half of the last."""
    path = folder / FILE
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def table(records: Sequence[Record]) -> str:
    """Markdown: a row for each figure, under the parts with their outcome and minutes."""
    lines = ["| part | figure | setting | value |", "|---|---|---|---|"]
    for r in records:
        if "status" in r:
            lines.append(f"| **{r['part']}** | {r['status']} | {r['minutes']:.1f} minutes | |")
        else:
            lines.append(f"| {r['part']} | {r['figure']} | {r['setting']} | {_value(r)} |")
    return "\n".join(lines)


def _value(record: Record) -> str:
    value = record["value"]
    if value is None:
        why, reason = record.get("why", MISSING), record.get("reason", "")
        return f"{why}: {reason}" if reason else str(why)
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return f"{text} {record.get('unit', '')}".strip()


def provenance(records: Sequence[Record]) -> str:
    """Where the numbers come from: command, commit, device, date and minutes of each part."""
    lines = []
    for r in records:
        if "status" in r:
            lines.append(
                f"- {r['part']}: `{r['command']}`, commit {r['commit']}, {r['device']}, "
                f"{r['date']}, {r['minutes']:.1f} minutes"
            )
    return "\n".join(lines)
