"""What `import dsno` gives, and what it must not cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dsno

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "diffusers", "transformers", "matplotlib", "sklearn", "scipy")
REPORT = f"print([name for name in {HEAVY} if name in sys.modules])"


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip().splitlines()[-1]


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert run(f"import sys, dsno; dsno.__version__; dir(dsno); {REPORT}") == "[]"


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from dsno.cli import main
sys.argv = ["dsno", "--help"]
try:
    main()
except SystemExit as stop:
    assert stop.code in (0, None)
{REPORT}
"""
    assert run(code) == "[]"


@pytest.mark.parametrize("name", dsno.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(dsno, name) is not None


def test_every_name_is_that_of_its_home() -> None:
    for name, home in dsno._HOMES.items():
        assert getattr(dsno, name).__module__ == home
    assert set(dsno._HOMES) | {"__version__"} == set(dsno.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Denoisers'"):
        _ = dsno.Denoisers


def test_saved_folders_name_modules_that_must_not_move() -> None:
    """`model_index.json` of every saved model says dsno.pipeline.DSNOModel."""
    assert (dsno.DSNOModel.__module__, dsno.DSNOModel.__qualname__) == (
        "dsno.pipeline",
        "DSNOModel",
    )
    assert (dsno.DSNOPipeline.__module__, dsno.DSNOPipeline.__qualname__) == (
        "dsno.pipeline",
        "DSNOPipeline",
    )


def test_the_doors_give_what_lives_in_the_rooms() -> None:
    import dsno.diffusion
    import dsno.images

    assert dsno.diffusion.solve is dsno.solve
    assert dsno.diffusion.Denoiser is dsno.Denoiser
    for room in (dsno.diffusion, dsno.images):
        for name in room.__all__:
            assert getattr(room, name).__module__.startswith(("dsno.diffusion.", "dsno.support."))


def test_every_room_says_what_it_is_for() -> None:
    rooms = sorted((ROOT / "src" / "dsno").glob("*/__init__.py"))
    assert len(rooms) == 16
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in rooms:
        assert f"`{path.parent.name}/`" in contributing
        assert (ROOT / "tests" / path.parent.name).is_dir()
