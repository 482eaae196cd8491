"""Random images, as files and as floats, and what `load_data` says of bad ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsno.data.load import load_data
from dsno.support.errors import InputError


def random_levels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def as_floats(levels: np.ndarray) -> Tensor:
    """(N, H, W, C) bytes as (N, C, H, W) floats."""
    return torch.from_numpy(levels).permute(0, 3, 1, 2) / 127.5 - 1


def picture(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def png(levels: np.ndarray) -> bytes:
    file = io.BytesIO()
    picture(levels).save(file, "PNG")
    return file.getvalue()


def write(path: Path, levels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(levels).save(path)


def refused(*words: str, **options: Any) -> str:
    """The sentence `load_data` refuses with, which must hold the words."""
    with pytest.raises(InputError) as caught:
        load_data(**options)
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert sentence.endswith((".", "?")), sentence
    assert "\n" not in sentence
    return sentence
