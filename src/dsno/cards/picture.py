"""The picture in a model's card: the teacher's samples above the model's of the same noises."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from dsno.evaluation.arrays import ARRAYS, read_arrays
from dsno.support.errors import InputError
from dsno.support.images import grid

COLUMNS = {32: 12, 64: 8, 128: 6}
"""Samples in a row by their longer side; `FEWEST` of larger ones."""
FEWEST = 4
PAIRS, GAP = 2, 12
"""Pairs of rows at most, and pixels between them."""


def of_evaluation(report: Path) -> Image.Image | None:
    """The picture of the samples that an evaluation kept; None if they are no images.

    Args:
        report: folder of the evaluation.

    Raises:
        InputError: if its file of samples is malformed.
    """
    if not (report / ARRAYS).is_file():
        return None
    arrays = read_arrays(report / ARRAYS)
    if "student" not in arrays:
        return None
    teacher, student = arrays["teacher"], arrays["student"]
    side = max(student.shape[-2:])
    columns = min(next((c for s, c in COLUMNS.items() if side <= s), FEWEST), len(student))
    firsts = range(0, min(PAIRS, len(student) // columns) * columns, columns)
    pairs = [
        grid(torch.cat([of[i : i + columns] for of in (teacher, student)]), columns) for i in firsts
    ]
    width, height = pairs[0].size
    picture = Image.new(pairs[0].mode, (width, len(pairs) * (height + GAP) - GAP), "white")
    for i, pair in enumerate(pairs):
        picture.paste(pair, (0, i * (height + GAP)))
    return picture


def read_picture(path: Path) -> Image.Image | None:
    """A picture that was saved with a card; None if there is none.

    Raises:
        InputError: if it is damaged.
    """
    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            return opened.copy()
    except (OSError, SyntaxError, Image.DecompressionBombError):  # as Pillow has it
        raise InputError(
            f"The picture {path} is damaged; delete it, or save the model again."
        ) from None
