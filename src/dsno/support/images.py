"""Batches of images as bytes, as Pillow images and as one grid."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dsno.support.errors import InputError
from dsno.support.files import replacing
from dsno.support.scalars import whole

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
CELL = 48
"""Pixels a side of a grid's cell reaches by default."""


def to_uint8(images: Tensor) -> npt.NDArray[np.uint8]:
    """Round images to bytes: -1 becomes 0 and 1 becomes 255; values outside are clamped.

    That is done where the images are, so that bytes are copied from a device, once.

    Args:
        images: (n, C, H, W), C in 1 .. 4.

    Returns:
        (n, H, W, C).

    Raises:
        InputError: if the shape is another or a value is not a number.
    """
    if images.ndim != 4 or images.shape[1] not in MODES:
        raise InputError(
            f"Expected images (n, C, H, W) with C in 1 .. 4, found {tuple(images.shape)}."
        )
    values = images.detach().float()
    levels = ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    found = levels.new_empty(levels.numel() + 1)
    found[:-1].view(levels.shape).copy_(levels)
    found[-1] = values.isnan().any()
    array: npt.NDArray[np.uint8] = found.cpu().numpy()
    if array[-1]:
        raise InputError("The images hold NaN; they cannot be drawn.")
    return array[:-1].reshape(levels.shape)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Images (n, C, H, W) in [-1, 1] as L, LA, RGB or RGBA for C = 1, 2, 3, 4.

    Raises:
        InputError: as `to_uint8`.
    """
    array = to_uint8(images)
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in array]


def grid(
    images: Tensor, columns: int | None = None, *, scale: int | None = None, gap: int = 2
) -> Image.Image:
    """One picture of a batch, row by row, each pixel a square of `scale` pixels, on white.

    Args:
        images: (n, C, H, W) in [-1, 1], n > 0.
        columns: images per row; by default the smallest whole number of at least sqrt(n).
        scale: enlargement; by default the smallest that makes the longer side `CELL` pixels.
        gap: white pixels between neighbours; there is no border.

    Returns:
        (columns (scale W + gap) - gap) x (rows (scale H + gap) - gap) pixels.

    Raises:
        InputError: as `to_uint8`, or if there is no image or a number is too small.
    """
    return grid_of_bytes(to_uint8(images), columns, scale=scale, gap=gap)


def grid_of_bytes(
    tiles: npt.NDArray[np.uint8],
    columns: int | None = None,
    *,
    scale: int | None = None,
    gap: int = 2,
) -> Image.Image:
    """The `grid` of images (n, H, W, C) that are bytes already.

    Raises:
        InputError: if there is no image or a number is too small.
    """
    count, height, width, channels = tiles.shape
    if 0 in tiles.shape:
        raise InputError(
            "A grid needs at least one pixel, not images of shape "
            f"{(count, channels, height, width)}."
        )
    columns = _columns(count) if columns is None else whole(columns, "columns of a grid")
    scale = _scale(height, width) if scale is None else whole(scale, "scale of a grid")
    gap = whole(gap, "gap of a grid", least=0)
    down, across, rows = scale * height + gap, scale * width + gap, math.ceil(count / columns)
    canvas = np.full((rows * down - gap, columns * across - gap, channels), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * down, i % columns * across
        large = tile.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + scale * height, left : left + scale * width] = large
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def grid_size(count: int, height: int, width: int, *, gap: int = 2) -> tuple[int, int]:
    """Width and height in pixels of the default grid of `count` images."""
    columns, scale = _columns(count), _scale(height, width)
    rows = math.ceil(count / columns)
    return columns * (scale * width + gap) - gap, rows * (scale * height + gap) - gap


def _columns(count: int) -> int:
    return math.isqrt(count - 1) + 1


def _scale(height: int, width: int) -> int:
    return math.ceil(CELL / max(height, width))


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a PNG file; it is whole or not there.

    Raises:
        InputError: if its name is that of another kind of file.
        WorkError: if it cannot be written.
    """
    if Path(path).suffix.lower() not in ("", ".png"):
        raise InputError(f"Images are written as PNG: give {path} a name that ends in .png.")
    with replacing(Path(path)) as temporary:
        image.save(temporary, format="PNG", optimize=True)
