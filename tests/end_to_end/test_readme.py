"""The README lists every command; what it shows is tried in tests/docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsno.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_of_the_table_exists(capsys: pytest.CaptureFixture[str]) -> None:
    commands = set(re.findall(r"^\| `dsno (trajectories \w+|\w+)", README, re.MULTILINE))
    assert {
        "teacher",
        "collect",
        "train",
        "finish",
        "evaluate",
        "report",
        "run",
        "sample",
        "serve",
        "export",
        "import",
        "trajectories export",
        "trajectories info",
        "trajectories verify",
    } == commands
    for command in sorted(commands):
        assert main([*command.split(), "--help"]) == 0
