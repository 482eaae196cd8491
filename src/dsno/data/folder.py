"""A folder or zip file of images: which of its folders are splits, classes or mere shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dsno.data.dataset import Dataset
from dsno.data.decode import SUFFIXES, opened, read_pixels
from dsno.data.label_file import NAMES, LabelFile, find_label_file
from dsno.data.labels import Labels, classes_in_order, has_two_orders, labels_of, origin_of
from dsno.data.listing import Listing, list_files
from dsno.recipes.schema import Data
from dsno.support.errors import InputError, closest

# Names of splits, as Hugging Face's ImageFolder knows them.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {name: split for split, names in _SPLITS.items() for name in names}
_SHARD = re.compile(r"\d{5}")
"""Folders of a thousand images each, as StyleGAN's and EDM's tools make them."""


@dataclass(frozen=True)
class Found:
    """The images of a folder and what is known of their classes.

    Attributes:
        files: the folder looked at.
        labels: of its images, in their order.
        notes: what was understood.
    """

    files: Listing
    labels: Labels | None
    notes: tuple[str, ...]


def folder(path: Path, data: Data) -> Dataset:
    """The images of a folder or zip file.

    Raises:
        InputError: if there are none, one cannot be used, or what the folders mean is not clear.
    """
    found = understood(list_files(path), data)
    files = found.files
    names = [files.prefix + name for name in files.images]

    def read(items: Sequence[int]) -> Iterable[tuple[str, Image.Image]]:
        for i in items:
            shown = str(files.path / names[i])
            yield shown, opened(shown, files.file(names[i]), data.frames)

    pixels = read_pixels(len(names), read, data)
    name, notes = path.name.removesuffix(".zip"), (*pixels.notes, *found.notes)
    if found.labels is None:
        return Dataset(name, pixels.kept, notes=notes)
    labels = found.labels
    values = pixels.of(labels.values)
    return Dataset(name, pixels.kept, values, labels.num_classes, labels.names, notes)


def understood(files: Listing, data: Data) -> Found:
    """Which images are meant, and their classes.

    Raises:
        InputError: if there are none, or the folders could mean several things.
    """
    files, notes = _chosen(files, data)
    if not files.images:
        raise InputError(
            f"There are no images in {files.shown}; known are files that end with "
            f"{', '.join(sorted(SUFFIXES))}."
        )
    file = None
    if data.labels in ("auto", "file"):
        file = find_label_file(files, data)
    if data.labels == "file" and (file is None or file.labels is None):
        raise InputError(
            f"There are no labels in a {', '.join(NAMES[:-1])} or {NAMES[-1]} of {files.shown}; "
            "set data.labels=none or data.labels=folders."
        )
    if data.label_column and (file is None or file.name.endswith(".json")):
        raise InputError(
            "data.label_column names a column of metadata.csv or metadata.jsonl, and there is none "
            f"in {files.shown}; leave it out."
        )
    if data.labels == "none" or (file is None and not files.folders):
        labels = None
    elif file is None:
        labels = _folder_labels(files, data)
    else:
        labels = _file_labels(files, file, data)
    read = set() if file is None else {file.name}
    return Found(files, labels, (origin_of(labels, files.path), *notes, *files.skipped(read)))


def _chosen(files: Listing, data: Data) -> tuple[Listing, list[str]]:
    """The folder whose images are meant: that of the split, and the only one where there is one.

    Raises:
        InputError: if the split is not there, or some folders are called like splits.
    """
    notes, has_split = [], False
    named = data.classes if isinstance(data.classes, tuple) else ()
    while not files.loose:
        splits = [n for n in files.folders if n.lower() in _SPLIT_OF and n not in named]
        others = [n for n in files.folders if n not in splits]
        if splits and not others and not has_split:
            split, left = _split(files, splits, data.split)
            files, has_split = files.under(split), True
            notes.append(f"split {split}" + (f" ({', '.join(left)} left out)" if left else ""))
        elif len(splits) > 1 and data.labels != "none":
            raise InputError(
                f"{files.shown} has the folders {' and '.join(splits)}, which are splits by "
                f"their names, beside {others[0]}; give the path of one of them, or name all "
                "classes in data.classes."
            )
        elif len(files.folders) == 1 and data.labels != "folders" and not _ends(files):
            notes.append(f"in its only folder {files.folders[0]}")
            files = files.under(files.folders[0])
        else:
            break
    if data.split != "train" and not has_split:
        raise InputError(
            f"There is no folder of the split {data.split!r} in {files.shown}; leave data.split "
            "out, or correct the path."
        )
    return files, notes


def _ends(files: Listing) -> bool:
    """Whether the only folder has images of its own, so that it is one class."""
    inside = files.under(files.folders[0])
    return bool(inside.loose) and not any(inside.prefix + name in files.names for name in NAMES)


def _split(files: Listing, splits: list[str], wanted: str) -> tuple[str, list[str]]:
    """The folder of a split, and the others.

    Raises:
        InputError: if it is not there, or twice.
    """
    meant = [name for name in splits if name.lower() == wanted.lower()] or [
        name for name in splits if _SPLIT_OF[name.lower()] == _SPLIT_OF.get(wanted.lower(), wanted)
    ]
    if not meant:
        raise InputError(
            f"There is no split {wanted!r} in {files.shown}: {closest(wanted, splits)} Set "
            f"data.split={splits[0]}, for example."
        )
    if len(meant) > 1:
        raise InputError(
            f"{files.shown} has the splits {' and '.join(meant)}; say which, such as "
            f"data.split={meant[0]}."
        )
    return meant[0], [name for name in splits if name != meant[0]]


def _folder_labels(files: Listing, data: Data) -> Labels:
    """The folders as classes.

    Raises:
        InputError: if there are none, images lie beside them, or they are numbers of several
            meanings.
    """
    where = f"the folders of {files.shown}"
    if not files.folders:
        raise InputError(f"There are no sub-folders with images in {files.shown}.")
    if files.loose:
        raise InputError(
            f"{files.shown} has class folders and also images beside them, such as "
            f"{files.loose[0]}; move these into a class or elsewhere, or set data.labels=none."
        )
    of_images = [name.partition("/")[0] for name in files.images]
    if data.classes is None and data.labels == "auto":
        if all(map(_SHARD.fullmatch, files.folders)):
            raise InputError(
                f"The folders of {files.shown}, {files.folders[0]} and so on, may be shards of "
                "one set or classes; set data.labels=none or data.labels=folders."
            )
        if has_two_orders(files.folders):
            count = max(map(int, files.folders)) + 1
            raise InputError(
                f"The folders of {files.shown} are numbers, such as {files.folders[-1]}; set "
                f"data.classes={count} if these are the class numbers, or data.labels=folders to "
                "number the folders in the order of text, as torchvision does."
            )
    if isinstance(data.classes, int) and all(name.isdecimal() for name in files.folders):
        labels = labels_of(of_images, where, len(of_images), data)
        assert labels is not None  # every image has one
        return labels
    if any(name.count("/") > 1 for name in files.images):
        where += ", deeper ones included"
    return classes_in_order(of_images, files.folders, where, data)


def _file_labels(files: Listing, file: LabelFile, data: Data) -> Labels | None:
    """The classes in a label file.

    Raises:
        InputError: if an image has none, or the folders contradict it.
    """
    is_sharded = len(files.folders) < 2 or all(map(_SHARD.fullmatch, files.folders))
    classes = [] if is_sharded else files.folders
    if file.labels is None:
        if classes and data.labels == "auto":
            raise InputError(
                f"{file.name} says that there are no labels, and there are folders, such as "
                f"{classes[0]}, in {files.shown}; set data.labels=none or data.labels=folders."
            )
        return None
    names = [files.prefix + name for name in files.images]
    lost = [name for name in names if file.labels.get(name) is None]
    if lost:
        raise InputError(
            f"{len(lost):,} of {len(names):,} images have no label in {file.name} of {files.path}, "
            f"such as {lost[0]}; set data.labels=none or data.labels=folders, or complete it."
        )
    raw = [file.labels[name] for name in names]
    labels = labels_of(
        raw,
        f"{file.name} of {files.path}",
        len(names),
        data,
        is_asked_for=data.labels == "file" or bool(data.label_column),
    )
    if labels is not None and data.labels == "auto" and classes and not files.loose:
        _check_agreement(files, file, labels)
    return labels


def _check_agreement(files: Listing, file: LabelFile, labels: Labels) -> None:
    """Refuse folders that cut across the classes of a label file.

    Raises:
        InputError: naming two images.
    """
    of_folder: dict[str, tuple[int, str]] = {}
    of_class: dict[int, tuple[str, str]] = {}
    for name, label in zip(files.images, labels.values.tolist(), strict=True):
        here = name.partition("/")[0]
        other_label, other = of_folder.setdefault(here, (label, name))
        other_folder, another = of_class.setdefault(label, (here, name))
        if other_label != label or other_folder != here:
            other = other if other_label != label else another
            raise InputError(
                f"{file.name} and the folders of {files.path} disagree on {other} and {name}: one "
                "has them in the same class and the other does not; set data.labels=file or "
                "data.labels=folders."
            )
