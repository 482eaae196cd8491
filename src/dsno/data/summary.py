"""One line that says what was understood of a data set."""

from __future__ import annotations

import torch

from dsno.data.dataset import Dataset

SHOWN = 10
"""Classes that are named; of more, the number is said."""
_CHANNELS = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGBA"}


def summary(data: Dataset) -> str:
    """What was understood: images, their form and values, classes with names, what was left out."""
    channels, height, width = data.sample_shape
    count = f"{len(data):,} image{'s' * (len(data) != 1)}"
    words = [f"{count} of {width}x{height} pixels, {_CHANNELS[channels]}"]
    if data.labels is not None and data.num_classes is not None:
        words.append(_classes(data))
    return f"data: {data.name}: {'; '.join([*words, *data.notes])}"


def _classes(data: Dataset) -> str:
    """The classes, with their names and how many images each has."""
    assert data.labels is not None  # the caller looked
    assert data.num_classes is not None
    counts = torch.bincount(data.labels, minlength=data.num_classes).tolist()
    names = data.class_names or [str(i) for i in range(data.num_classes)]
    text = ", ".join(f"{name} ({n:,})" for name, n in zip(names[:SHOWN], counts, strict=False))
    rest = f" and {len(counts) - SHOWN:,} more" if len(counts) > SHOWN else ""
    empty = counts.count(0)
    without = f", {empty:,} of them without an image" if empty else ""
    classes = f"{len(counts):,} class{'es' * (len(counts) != 1)}"
    return f"{classes}{without}: {text}{rest}"
