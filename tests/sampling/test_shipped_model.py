"""The model under examples/ makes the samples that the README shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dsno.cli import main

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "models" / "cifar10-small"
CELL, GAP, TEACHER = 66, 14, 4
"""In the picture: pixels from sample to sample (each twice enlarged), between teacher and model,
and the teacher's rows."""


def test_it_makes_the_samples_of_the_readmes_picture(tmp_path: Path) -> None:
    """The picture was made on a GPU, in TF32, with the weights in full precision."""
    assert main(["sample", str(MODEL), "--num", "8", "--out", str(tmp_path / "grid.npz")]) == 0
    with np.load(tmp_path / "grid.npz") as saved:
        samples = saved[saved.files[0]]
    with Image.open(ROOT / "docs" / "images" / "cifar10.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float32)
    top = TEACHER * CELL + GAP
    shown = [pixels[top : top + 64 : 2, i * CELL : i * CELL + 64 : 2] for i in range(8)]
    assert samples.shape == (8, 32, 32, 3)
    assert np.abs(np.stack(shown) - samples).mean() < 1.0  # of 255
    assert sum(f.stat().st_size for f in MODEL.rglob("*")) < 20e6
