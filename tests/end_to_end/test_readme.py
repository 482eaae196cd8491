"""What the README shows works as pasted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsno.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TINY = (
    "teacher.network.channels=[8]",
    "teacher.steps=2",
    "collect.count=8",
    "train.steps=2",
    "finish.steps=2",
    "finish.fake_first=0",
    "finish.checkpoint_every=2",
    "finish.watch_samples=20",
    "finish.watch_features=pixels",
    "evaluate.samples=20",
    "evaluate.pictures=4",
    "evaluate.curves=[]",
    "evaluate.baseline_steps=2",
    "evaluate.reference_steps=2",
    "evaluate.features=[pixels]",
    "evaluate.timing_rounds=1",
)


def test_the_sampling_example_runs_on_a_model_the_demo_command_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "digits", *TINY, "--out", "runs/digits"]) == 0
    (snippet,) = [block for block in PYTHON if "DSNOPipeline" in block]
    scope: dict[str, object] = {}
    exec(snippet, scope)
    assert len(scope["sevens"]) == 16  # type: ignore[arg-type]
    assert (tmp_path / "digits.png").stat().st_size > 0
    assert "torch.Size([4, 1, 8, 8])" in capsys.readouterr().out


@pytest.mark.parametrize("index", [i for i, b in enumerate(PYTHON) if "DSNOPipeline" not in b])
def test_every_other_python_example_runs(index: int) -> None:
    exec(PYTHON[index], {})


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
        "trajectories info",
        "trajectories verify",
    } == commands
    for command in sorted(commands):
        assert main([*command.split(), "--help"]) == 0


def test_every_link_to_a_file_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
