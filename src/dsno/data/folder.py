"""A folder of image files, whose sub-folders are the classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image

from dsno.data.dataset import SUFFIXES, Dataset, Size, opened, read_pixels
from dsno.support.errors import InputError


def folder(top: Path, size: Size | None, channels: int | None) -> Dataset:
    """An image folder."""
    if not top.is_dir():
        raise InputError(f"There is no folder {top}; give the path of a folder of images.")
    subfolders = sorted(p for p in top.iterdir() if p.is_dir() and not p.name.startswith("."))
    classes = {folder.name: files for folder in subfolders if (files := _image_files(folder))}
    loose = sorted(p for p in top.iterdir() if _is_image(p))
    if classes and loose:
        raise InputError(
            f"{top} has class folders and also images beside them, such as {loose[0].name}; move "
            "these into a class or elsewhere."
        )
    files = [file for members in classes.values() for file in members] or loose
    if not files:
        raise InputError(
            f"There are no images in {top}; known are files that end with "
            f"{', '.join(sorted(SUFFIXES))}."
        )

    def read(items: Sequence[int]) -> Iterable[tuple[str, Image.Image]]:
        for i in items:
            yield str(files[i]), opened(str(files[i]), files[i])

    pixels = read_pixels(len(files), read, size, channels)
    if not classes:
        return Dataset(top.name, pixels)
    counts = torch.tensor([len(members) for members in classes.values()])
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    return Dataset(top.name, pixels, labels, len(classes), tuple(classes))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _image_files(folder: Path) -> list[Path]:
    """Every image below a folder, hidden ones left out, in an order that is the same everywhere."""
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(here, name) for name in names if _is_image(Path(here, name))]
    return sorted(found)
