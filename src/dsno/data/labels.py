"""Class numbers out of whatever a source calls labels: numbers, one-hot rows, texts, booleans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dsno.recipes.schema import Data
from dsno.support.errors import InputError

MAX_CLASSES = 1_000_000

_IGNORE = "set data.labels=none to ignore them"


@dataclass(frozen=True, eq=False)
class Labels:
    """The classes of all images of a source.

    Attributes:
        values: (N,), int64 in [0, num_classes).
        num_classes: how many classes there are, those without an image included.
        names: what they are called, where that is known.
        origin: where they come from, for people.
    """

    values: Tensor
    num_classes: int
    names: tuple[str, ...] | None
    origin: str


def labels_of(
    raw: npt.NDArray[Any] | Sequence[Any],
    origin: str,
    count: int,
    data: Data,
    *,
    names: Sequence[str] | None = None,
    is_asked_for: bool = False,
) -> Labels | None:
    """Labels of any type as class numbers; None if every image lacks one.

    Whole numbers, also as floats, are class numbers; rows of one 1 and else 0 are one-hot; texts
    are classes in the order of `data.classes` or of their names; false is class 0, true class 1.

    Args:
        raw: one for each image; None and NaN mean that there is none.
        origin: where they come from, for people.
        count: of the images.
        data: the options.
        names: of the classes that numbers stand for, where the source says so.
        is_asked_for: whether the user named this source, so that it must be one of classes.

    Raises:
        InputError: if some images have a label and others do not, or they are no classes.
    """
    if len(raw) != count:
        raise InputError(
            f"There are {len(raw)} labels for {count} images in {origin}; give one each, or "
            f"{_IGNORE}."
        )
    array = raw if isinstance(raw, np.ndarray) else None
    if array is None or array.dtype.kind in "OSUf":
        listed = _listed(raw)
        missing = sum(label is None for label in listed)
        if missing == count:
            return None
        if missing:
            raise InputError(
                f"{missing:,} of {count:,} images have no label in {origin}; leave these out, or "
                f"{_IGNORE}."
            )
        if all(isinstance(label, str) for label in listed):
            return _of_texts(listed, origin, data, is_asked_for=is_asked_for)
        array = _array(listed, origin)
    return _of_numbers(array, origin, data, names)


def origin_of(labels: Labels | None, path: Path | str) -> str:
    """Where labels come from, in words that leave out the path that was given."""
    if labels is None:
        return "no labels"
    text = labels.origin.replace(f" of {path}/", " of ").replace(f" of {path}", "")
    return f"labels from {text}"


def _listed(raw: npt.NDArray[Any] | Sequence[Any]) -> list[Any]:
    """Labels as plain values: NaN as None, bytes as text, lists of one as what is in them."""

    def plain(label: Any) -> Any:
        if isinstance(label, list | tuple) and len(label) == 1:
            label = label[0]
        if isinstance(label, bytes):
            return label.decode("utf-8", "replace")
        return None if isinstance(label, float) and math.isnan(label) else label

    return [plain(x) for x in (raw.tolist() if isinstance(raw, np.ndarray) else raw)]


def _array(listed: list[Any], origin: str) -> npt.NDArray[Any]:
    """Numbers, or rows of numbers of one length.

    Raises:
        InputError: if they are something else.
    """
    try:
        array = np.array(listed)
    except (ValueError, OverflowError):  # rows of several lengths
        array = np.array([None])
    if array.dtype.kind not in "biuf":
        types = ", ".join(sorted({type(label).__name__ for label in listed}))
        raise InputError(
            f"The labels in {origin} are {types}, such as {_shown(listed[0])}, and one class an "
            f"image is expected; {_IGNORE}."
        )
    return array


def _shown(label: Any) -> str:
    text = repr(label)
    return text if len(text) < 40 else text[:37] + "..."


def _of_texts(listed: list[str], origin: str, data: Data, *, is_asked_for: bool) -> Labels:
    """Texts: in the order given, or numbers where their count is given, or sorted.

    Raises:
        InputError: if that order is not known, or they are as many as captions.
    """
    found = sorted(set(listed))
    if isinstance(data.classes, int) and all(name.isdecimal() for name in found):
        return _of_numbers(np.array([int(x) for x in listed]), origin, data, None)
    if data.classes is None and has_two_orders(found):
        raise InputError(
            f"The labels in {origin} are numbers written as text, such as {_shown(found[0])} and "
            f"{_shown(found[-1])}; set data.classes={max(map(int, found)) + 1} if these are the "
            "class numbers, or data.classes to a list of them in order."
        )
    if data.classes is None and not is_asked_for and 2 * len(found) > len(listed):
        raise InputError(
            f"{len(found):,} of {len(listed):,} labels in {origin} differ, such as "
            f"{_shown(found[0])}, which are hardly classes; {_IGNORE}, or name the source of the "
            "labels."
        )
    return classes_in_order(listed, found, origin, data)


def has_two_orders(names: Sequence[str]) -> bool:
    """Whether names are numbers that differ from their places in the order of text."""
    return all(name.isdecimal() for name in names) and [int(name) for name in sorted(names)] != [
        *range(len(names))
    ]


def classes_in_order(
    listed: Sequence[str], found: Sequence[str], origin: str, data: Data
) -> Labels:
    """The classes of texts: in the order of `data.classes`, or of those found.

    Raises:
        InputError: if one is not among `data.classes`, or another number of them is asked for.
    """
    order = tuple(found) if not isinstance(data.classes, tuple) else data.classes
    if isinstance(data.classes, int) and data.classes != len(order):
        raise InputError(
            f"data.classes is {data.classes}, and {origin} has {len(order)} classes, such as "
            f"{_shown(order[0])}; correct it, or give the list of their names."
        )
    stray = next((name for name in found if name not in order), None)
    if stray is not None:
        raise InputError(
            f"The class {_shown(stray)} in {origin} is not among data.classes; add it, or leave "
            "its images out."
        )
    numbers = {name: number for number, name in enumerate(order)}
    values = torch.tensor([numbers[name] for name in listed], dtype=torch.int64)
    return Labels(values, len(order), order, origin)


def _of_numbers(
    array: npt.NDArray[Any], origin: str, data: Data, names: Sequence[str] | None
) -> Labels:
    """Class numbers, one-hot rows or booleans.

    Raises:
        InputError: if they are none of these, or beyond the classes there are.
    """
    least = 0
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and _is_one_hot(array):
        least, array, origin = array.shape[1], array.argmax(1), f"{origin} (one-hot)"
    if array.dtype.kind == "b" and array.ndim == 1:
        array, least, names = array.astype(np.int64), 2, names or ("false", "true")
    if array.dtype.kind == "f" and array.ndim == 1 and bool((array == np.floor(array)).all()):
        array = array.clip(-(2**31), MAX_CLASSES).astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise InputError(
            f"The labels in {origin} are {array.dtype} of shape {array.shape}, and one whole "
            f"number or one-hot row an image is expected; {_IGNORE}."
        )
    return _numbered(array, origin, data, names, least)


def _is_one_hot(rows: npt.NDArray[Any]) -> bool:
    return (
        rows.dtype.kind in "biuf"
        and bool(((rows == 0) | (rows == 1)).all())
        and bool((rows.astype(np.int64).sum(1) == 1).all())
    )


def _numbered(
    numbers: npt.NDArray[Any], origin: str, data: Data, names: Sequence[str] | None, least: int
) -> Labels:
    """Class numbers within the classes that there are.

    Raises:
        InputError: if one is not.
    """
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0:
        raise InputError(
            f"A label in {origin} is {low}; classes are numbered from 0, so leave images without a "
            f"class out, or {_IGNORE}."
        )
    known = len(names) if names else least or None
    if isinstance(data.classes, tuple) and names:  # they give the names another order
        if high < len(names):
            return classes_in_order([names[i] for i in numbers], sorted(names), origin, data)
    elif data.classes is not None:
        asked = data.classes if isinstance(data.classes, int) else len(data.classes)
        if known is not None and asked != known:
            raise InputError(
                f"data.classes asks for {asked} classes, and {origin} has {known}; correct it."
            )
        known = asked
        names = data.classes if isinstance(data.classes, tuple) else names
    if known is not None and high >= known:
        raise InputError(
            f"A label in {origin} is {high}, but there are {known} classes, numbered from 0; "
            "correct the labels or data.classes."
        )
    if high >= MAX_CLASSES:
        raise InputError(
            f"A label in {origin} is {high}, and at most {MAX_CLASSES:,} classes are supported; "
            f"number them from 0, or {_IGNORE}."
        )
    values = torch.from_numpy(numbers.astype(np.int64))
    return Labels(values, known or high + 1, tuple(names) if names else None, origin)
