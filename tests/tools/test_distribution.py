"""What is released: the wheel, made from the sdist, has every file and works where only it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import dsno

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])('dist'))"


def built(kind: str, folder: Path) -> Path:
    """A distribution of the project in a folder; no isolation, as nothing may be downloaded."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "dist" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from an unpacked sdist of a copy of this checkout."""
    copy = tmp_path_factory.mktemp("checkout") / "dsno"
    left_out = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "src", copy / "src", ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(built("build_sdist", copy)) as archive:
        archive.extractall(unpacked, filter="data")
    (folder,) = unpacked.iterdir()
    return built("build_wheel", folder)


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    source = ROOT / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in (source / "dsno").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert "dsno/recipes/digits.yaml" in files
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (record,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = Parser().parsestr(archive.read(record).decode())
    assert {name for name in names if name.startswith("dsno/")} == files
    assert (about["Name"], about["Version"]) == ("dsno", dsno.__version__)
    assert about["License-Expression"] == "Apache-2.0"
    assert "torch>=2.6" in about.get_all("Requires-Dist", [])
    needed = [line for line in about.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not any("torchvision" in line for line in needed)


def test_it_works_where_only_it_is(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", place]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(place)}

    def said(*words: str) -> str:
        command = [sys.executable, "-m", "dsno", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert f"({place / 'dsno'})" in said("info")
    assert "digits" in said("recipes")
    assert "name: digits" in said("run", "digits", "--dry-run")
    made = ["--num", "2", "--out", "grid.png"]
    said("sample", str(ROOT / "examples" / "models" / "cifar10-small"), *made)
    assert (tmp_path / "grid.png").stat().st_size > 1000
