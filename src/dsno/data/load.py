"""Images and labels in: the real data a teacher learns and an evaluation compares with.

| source        | what it reads                                                                 |
|---------------|-------------------------------------------------------------------------------|
| `digits`      | scikit-learn's 1,797 handwritten digits, 8x8; nothing to download             |
| `folder`      | image files; sub-folders, where there are any, are the classes in sorted order |
| `huggingface` | a data set of the Hub, parquet files, or what `save_to_disk` wrote            |
| `npz`         | the arrays `images` and, if there are any, `labels`                           |

Pixels are 8-bit and become pixel / 127.5 - 1; floats stay as exact as they come. Nothing here runs
code that comes with the data, and nothing is unpickled.
"""

from __future__ import annotations

import functools
import importlib
import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dsno.support.console import Advance, progress
from dsno.support.errors import InputError, one_of
from dsno.support.images import MODES

SOURCES = ("digits", "folder", "huggingface", "npz")
SIZES = range(8, 257)
"""Pixels a side of an image may have."""
IN_MEMORY = 2 * 2**30
"""Bytes of 8-bit pixels up to which a set is decoded once and kept."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
THREADS = min(8, os.cpu_count() or 1)
THREADED = 128 * 128
"""Pixels from which an image is worth a thread: on smaller ones they wait for one another (twice
as slow for 32x32 PNG)."""
MAX_PIXELS = 2**26
"""Of an image before it is resized: a few kilobytes may hold a picture of any size."""
UNPACKED, PACKING = 2**28, 100
"""An array may take so many bytes, or more if it has a hundredth of them in its file."""
MAX_CLASSES = 1_000_000
CHUNK = 256
"""Most images one thread decodes before it takes the next lot."""

# What Pillow may try: some of its other readers start programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Pillow's 8-bit modes: the channels one has by nature, and a mode that converts to all of `MODES`.
_NATURE = {"1": 1, "L": 1, "LA": 2, "P": 3, "PA": 3, "RGB": 3, "RGBA": 4}
_NATURE |= {"RGBX": 3, "CMYK": 3, "YCbCr": 3, "HSV": 3}
_BRIDGE = {"P": "RGBA", "PA": "RGBA"} | dict.fromkeys(("RGBX", "CMYK", "YCbCr", "HSV"), "RGB")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "digits": (),
    "folder": ("path",),
    "huggingface": ("path", "split", "image_column", "label_column"),
    "npz": ("path",),
}
_IMAGE_KEYS = ("images", "samples", "arr_0", "x_train")
_LABEL_KEYS = ("labels", "class_labels", "y_train", "arr_1")
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")

Reader = Callable[[Sequence[int]], Iterable[tuple[str, Image.Image]]]
"""Some items' images, loaded and upright, each with the name an error gives it."""
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Form:
    """What every image of a set must look like.

    Attributes:
        first: name of the image that set it.
        channels: 1 .. 4: L, LA, RGB, RGBA.
        height: in pixels.
        width: in pixels.
        resize: whether other sizes are brought to this one, or refused.
        convert: whether images of more channels are converted, or refused.
    """

    first: str
    channels: int
    height: int
    width: int
    resize: bool
    convert: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class Encoded:
    """Images that are decoded whenever they are asked for.

    Attributes:
        count: how many there are.
        read: gives some of them.
        form: what they must look like.
        threads: that decode.
    """

    count: int
    read: Reader
    form: Form
    threads: int

    def __len__(self) -> int:
        """How many images there are."""
        return self.count

    def decode(self, items: Sequence[int], advance: Advance | None = None) -> Tensor:
        """Decode images: (len(items), C, H, W), uint8.

        Raises:
            InputError: if one is damaged, or its size or channels do not fit; the first is named.
        """
        pixels = torch.empty(len(items), *self.form.shape, dtype=torch.uint8)
        out = pixels.numpy()
        length = max(1, min(CHUNK, -(-len(items) // self.threads)))

        def fill(start: int) -> int:
            part = items[start : start + length]
            for row, (name, image) in enumerate(self.read(part), start):
                out[row] = _fitted(name, image, self.form)
            return len(part)

        with ThreadPoolExecutor(self.threads) as pool:
            for done in pool.map(fill, range(0, len(items), length)):
                if advance is not None:
                    advance(done)
        return pixels


@dataclass(frozen=True, eq=False)
class Dataset:
    """Real data.

    Attributes:
        name: of the source.
        pixels: (N, C, H, W) in memory, uint8 levels or float32 in [-1, 1], or encoded images.
        labels: (N,), int64 in [0, num_classes); None if there are none.
        num_classes: how many classes there are; None without labels.
        class_names: what the classes are called, where that is known.
    """

    name: str
    pixels: Tensor | Encoded
    labels: Tensor | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.pixels)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        if isinstance(self.pixels, Encoded):
            return self.pixels.form.shape
        return tuple(self.pixels.shape[1:])

    @property
    def label_frequencies(self) -> list[float] | None:
        """Share of each class; None without labels."""
        if self.labels is None or self.num_classes is None:
            return None
        counts = torch.bincount(self.labels, minlength=self.num_classes)
        return (counts / counts.sum()).tolist()

    @property
    def images(self) -> Float[Tensor, "count *shape"]:
        """All images, float32 in [-1, 1]: four bytes a value, so for small sets only.

        Raises:
            InputError: as `rows`.
        """
        if isinstance(self.pixels, Encoded):
            return self.rows(torch.arange(len(self)))
        return _to_float(self.pixels)

    def rows(
        self, items: Int64[Tensor, " rows"], flip: Bool[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows *shape"]:
        """Some images, float32 in [-1, 1].

        Args:
            items: which.
            flip: which of them to mirror left to right; none by default.

        Raises:
            InputError: if images are decoded as they are asked for and one cannot be.
        """
        if isinstance(self.pixels, Encoded):
            images = _to_float(self.pixels.decode(items.tolist()))
        else:
            images = _to_float(self.pixels[items])
        if flip is None:
            return images
        return torch.where(flip.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)


def load_data(
    source: str,
    path: str = "",
    *,
    split: str = "train",
    size: int | None = None,
    channels: int | None = None,
    image_column: str = "",
    label_column: str = "",
) -> Dataset:
    """Load a data set.

    A set of at most `IN_MEMORY` bytes is decoded here, a larger one as its rows are asked for.
    What was loaded last is remembered, so files must not change while a process runs.

    Args:
        source: one of `SOURCES`.
        path: of the folder or file; for `huggingface` also a name on the Hub.
        split: of a Hugging Face data set; slices such as `train[:1000]` as that library has them.
        size: resize the shorter side to it (bicubic, antialiased) and crop the centre to a square;
            by default all images must have one size.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; by default as the first image
            (a palette counts as RGB), and an image with more is refused rather than cut down.
        image_column: of a Hugging Face data set; found by its type or usual name by default.
        label_column: likewise.

    Raises:
        InputError: for an unknown source, an option it does not take, or data that are missing,
            damaged or of a kind this package cannot work with.
    """
    one_of(source, SOURCES, "data source")
    given = {
        "path": path != "",
        "split": split != "train",
        "image_column": image_column != "",
        "label_column": label_column != "",
    }
    for option, is_given in given.items():
        if is_given and option not in _OPTIONS[source]:
            raise InputError(f"The data source {source!r} takes no {option}; leave it out.")
    if source != "digits" and not path:
        raise InputError(f"The data source {source!r} needs a path; say where the images are.")
    if size is not None and size not in SIZES:
        raise InputError(
            f"Images of {SIZES[0]} to {SIZES[-1]} pixels a side are supported, not size {size}."
        )
    if channels is not None and channels not in MODES:
        raise InputError(f"Images have 1 to 4 channels, not {channels}.")
    found = Path(path).expanduser()
    if path and (source != "huggingface" or found.exists()):
        path = str(found.absolute())
    return _load(source, path, split, size, channels, image_column, label_column)


@functools.lru_cache(maxsize=2)  # what is trained on, and what is compared with
def _load(
    source: str,
    path: str,
    split: str,
    size: int | None,
    channels: int | None,
    image_column: str,
    label_column: str,
) -> Dataset:
    if source == "digits":
        return _digits(size, channels)
    if source == "folder":
        return _folder(Path(path), size, channels)
    if source == "npz":
        return _npz(Path(path), size, channels)
    return _huggingface(path, split, size, channels, image_column, label_column)


def _digits(size: int | None, channels: int | None) -> Dataset:
    from sklearn.datasets import load_digits  # seconds to import

    digits = load_digits()
    pixels = digits.images[..., None] / 8 - 1  # 0 .. 16 before
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return Dataset("digits", _array_pixels(pixels, "the digits", size, channels), labels, 10)


# ---------------------------------------------------------------------------------- images


def _to_float(pixels: Tensor) -> Tensor:
    """Levels as float32 in [-1, 1]; float32 as it is."""
    if pixels.dtype != torch.uint8:
        return pixels.to(torch.float32)
    return pixels.to(torch.float32).div_(127.5).sub_(1)


def _opened(name: str, file: Path | bytes) -> Image.Image:
    """Load one encoded image and turn it upright.

    Raises:
        InputError: if it is damaged, not an image or too large to decode safely.
    """
    try:
        with Image.open(
            io.BytesIO(file) if isinstance(file, bytes) else file, formats=_FORMATS
        ) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
    except Image.DecompressionBombError:
        raise InputError(
            f"The image {name} has too many pixels to be decoded safely; make it smaller or "
            "remove it."
        ) from None
    except Exception as error:  # Pillow's readers raise whatever the damage leads them to
        unknown = isinstance(error, UnidentifiedImageError)
        cause = "no format known here" if unknown else str(error) or type(error).__name__
        raise InputError(
            f"The image {name} cannot be read ({cause}): it is damaged or no image; replace or "
            "remove it."
        ) from error
    return image


def _form(name: str, image: Image.Image, size: int | None, channels: int | None) -> Form:
    """The form that the options and the first image ask for.

    Raises:
        InputError: if such images are not supported.
    """
    width, height = (size, size) if size is not None else image.size
    _check_size(name, width, height)
    own = channels if channels is not None else _nature(name, image)
    return Form(name, own, height, width, size is not None, channels is not None)


def _check_size(name: str, width: int, height: int) -> None:
    """Refuse sizes that are not supported.

    Raises:
        InputError: naming the image and its size.
    """
    if width not in SIZES or height not in SIZES:
        raise InputError(
            f"Images of {SIZES[0]} to {SIZES[-1]} pixels a side are supported, and {name} has "
            f"{width}x{height}; give a size to resize to, such as 64."
        )


def _nature(name: str, image: Image.Image) -> int:
    """Channels of an image.

    Raises:
        InputError: if its pixels are not 8-bit.
    """
    if image.mode not in _NATURE:
        raise InputError(
            f"The image {name} has pixels of mode {image.mode}, and 8 bits a channel are "
            "supported; convert it."
        )
    return _NATURE[image.mode]


def _fitted(name: str, image: Image.Image, form: Form) -> Bytes:
    """Bring an image to a form: (C, H, W).

    Raises:
        InputError: if its size differs and may not be changed, or channels would get lost.
    """
    nature = _nature(name, image)
    if nature > form.channels and not form.convert:
        raise InputError(
            f"The image {name} has {nature} channels and {form.first} has {form.channels}; say how "
            "many channels all shall have."
        )
    if image.size != (form.width, form.height) and not form.resize:
        raise InputError(
            f"The image {name} has {image.width}x{image.height} pixels and {form.first} has "
            f"{form.width}x{form.height}; give a size to bring all to."
        )
    if image.mode in _BRIDGE:
        image = image.convert(_BRIDGE[image.mode])
    if image.mode != MODES[form.channels]:
        image = image.convert(MODES[form.channels])
    if image.size != (form.width, form.height):
        image = ImageOps.fit(image, (form.width, form.height), Image.Resampling.BICUBIC)
    levels = np.asarray(image)
    return levels[None] if form.channels == 1 else levels.transpose(2, 0, 1)


def _pixels(
    count: int, read: Reader, size: int | None, channels: int | None, *, keep: bool = False
) -> Tensor | Encoded:
    """Images in the form of the first; decoded now if they fit into memory or `keep` says so."""
    name, image = next(iter(read([0])))
    threads = THREADS if image.width * image.height >= THREADED else 1
    encoded = Encoded(count, read, _form(name, image, size, channels), threads)
    if count * int(np.prod(encoded.form.shape)) > IN_MEMORY and not keep:
        return encoded
    with progress("decoding", count, unit="image") as advance:
        return encoded.decode(range(count), advance)


def _checked_labels(
    labels: npt.NDArray[Any], where: str, count: int, classes: int | None
) -> Tensor:
    """Labels as (N,) int64.

    Raises:
        InputError: if they are not one class number an image.
    """
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InputError(
            f"The labels in {where} are {labels.dtype} of shape {labels.shape}; give one whole "
            "number an image."
        )
    if len(labels) != count:
        raise InputError(
            f"There are {len(labels)} labels for {count} images in {where}; give one each."
        )
    if labels.min() < 0:
        raise InputError(
            f"A label in {where} is {labels.min()}; classes are numbered from 0, and images "
            "without a class must be left out."
        )
    if labels.max() >= MAX_CLASSES:
        raise InputError(
            f"A label in {where} is {labels.max()}, and at most {MAX_CLASSES:,} classes are "
            "supported; number them from 0."
        )
    if classes is not None and labels.max() >= classes:
        raise InputError(
            f"A label in {where} is {labels.max()}, but there are {classes} classes, numbered "
            "from 0; correct the labels."
        )
    return torch.from_numpy(labels.astype(np.int64))


# ---------------------------------------------------------------------------------- folder


def _folder(top: Path, size: int | None, channels: int | None) -> Dataset:
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
            yield str(files[i]), _opened(str(files[i]), files[i])

    pixels = _pixels(len(files), read, size, channels)
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


# ------------------------------------------------------------------------------------- npz


def _npz(path: Path, size: int | None, channels: int | None) -> Dataset:
    """Arrays of an npz file."""
    if not path.is_file():
        raise InputError(f"There is no file {path}; give the path of an npz file.")
    images, labels = _npz_arrays(path)
    pixels = _array_pixels(images, str(path), size, channels)
    if labels is None:
        return Dataset(path.stem, pixels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    checked = _checked_labels(labels, str(path), len(images), None)
    return Dataset(path.stem, pixels, checked, int(checked.max()) + 1)


def _npz_arrays(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """The images and labels under their usual names.

    Raises:
        InputError: if it is no npz file, is damaged, holds objects or no images.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            image = next((key for key in _IMAGE_KEYS if key in names), None)
            label = next((key for key in _LABEL_KEYS if key in names), None)
            images = None if image is None else _array(archive, f"{image}.npy")
            labels = None if label is None else _array(archive, f"{label}.npy")
    except Exception as error:  # whatever damage makes of the readers of zip and npy
        raise InputError(
            f"{path} cannot be read as an npz file of plain arrays ({error}); write it again with "
            "numpy.savez."
        ) from error
    if images is None:
        raise InputError(
            f"{path} has no images: it has {', '.join(names) or 'nothing'}; name the array "
            f"{' or '.join(_IMAGE_KEYS)}."
        )
    return images, labels


def _array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """One array of an npz file, allocated once its header is known to be true.

    Raises:
        ValueError: if the header lies, the array holds objects, or it is packed like a bomb.
    """
    entry = archive.getinfo(name)
    if entry.file_size > max(UNPACKED, PACKING * entry.compress_size):
        raise ValueError(f"{name} is packed {entry.file_size // max(entry.compress_size, 1)}:1")
    with archive.open(entry) as file:
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            np.lib.format.read_magic(file), np.lib.format.read_array_header_2_0
        )
        shape, _, kind = read(file)
        if kind.hasobject:
            raise ValueError(f"{name} holds objects")
        if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize > entry.file_size:
            raise ValueError(f"{name} is smaller than its shape {shape} says")
    with archive.open(entry) as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _array_pixels(
    values: npt.NDArray[Any], where: str, size: int | None, channels: int | None
) -> Tensor:
    """An array of images as (N, C, H, W); bytes stay bytes, floats become float32 in [-1, 1].

    Floats are taken as [-1, 1] if one is negative and as [0, 1] if none is. They are rounded to
    bytes only where they have to be resized or converted.

    Raises:
        InputError: if the shape, type or range is another.
    """
    values = _channels_last(values, where)
    _, height, width, own = values.shape
    if values.dtype != np.uint8:
        values = _signed_floats(values, where)
    if (size is None or height == width == size) and channels in (None, own):
        _check_size(where, width, height)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))
    if values.dtype != np.uint8:
        values = np.round((values + 1) * 127.5).astype(np.uint8)

    def read(items: Sequence[int]) -> Iterable[tuple[str, Image.Image]]:
        for i in items:
            row = values[i, ..., 0] if own == 1 else values[i]
            yield f"{i} of {where}", Image.fromarray(np.ascontiguousarray(row))

    pixels = _pixels(len(values), read, size, channels, keep=True)
    assert isinstance(pixels, Tensor)  # kept
    return pixels


def _channels_last(values: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """Any layout of images as (N, H, W, C).

    Raises:
        InputError: if it is none.
    """
    shape = values.shape
    if len(shape) == 3:
        values = values[..., None]
    elif len(shape) == 4 and shape[1] in MODES and shape[3] not in MODES:
        values = values.transpose(0, 2, 3, 1)
    if values.ndim != 4 or values.shape[3] not in MODES or not len(values):
        raise InputError(
            f"The images in {where} have shape {shape}; supported are (N, H, W), (N, H, W, C) and "
            "(N, C, H, W) with C in 1 .. 4 and N > 0."
        )
    return values


def _signed_floats(values: npt.NDArray[Any], where: str) -> npt.NDArray[np.float32]:
    """Floats as float32 in [-1, 1].

    Raises:
        InputError: if they are no floats, or in no range known.
    """
    if values.dtype.kind != "f":
        raise InputError(
            f"The images in {where} are {values.dtype}; give uint8, or floats in [-1, 1] or [0, 1]."
        )
    low, high = float(values.min()), float(values.max())
    if not (low >= -1 and high <= 1):  # also refuses NaN
        raise InputError(
            f"The images in {where} are floats from {low:g} to {high:g}; give uint8, or floats in "
            "[-1, 1] or [0, 1]."
        )
    signed = values.astype(np.float32)
    return signed if low < 0 else signed * 2 - 1


# ----------------------------------------------------------------------------- huggingface


def _huggingface(
    path: str, split: str, size: int | None, channels: int | None, image: str, label: str
) -> Dataset:
    """A Hugging Face data set."""
    rows = _hugging_rows(path, split)
    if not len(rows):
        raise InputError(f"The split {split!r} of {path} is empty; give another.")
    image, label = _image_column(rows, path, image), _label_column(rows, path, label)
    encoded = rows.select_columns([image]).with_format("arrow")

    def read(items: Sequence[int]) -> Iterable[tuple[str, Image.Image]]:
        # a range is a slice of the table, which a list would copy
        part = encoded[items.start : items.stop] if isinstance(items, range) else encoded[items]
        for i, value in zip(items, part.column(0).to_pylist(), strict=True):
            yield f"{i} of {path}", _opened(f"{i} of {path}", _file(value, f"{i} of {path}"))

    pixels, name = (
        _pixels(len(rows), read, size, channels),
        Path(path.removesuffix(".parquet")).name,
    )
    if not label:
        return Dataset(name, pixels)
    column = rows.select_columns([label]).with_format("arrow")[:].column(0)
    names = getattr(rows.features[label], "names", None)
    classes = len(names) if names else None
    labels = _checked_labels(column.to_numpy(), f"column {label!r} of {path}", len(rows), classes)
    return Dataset(
        name, pixels, labels, classes or int(labels.max()) + 1, tuple(names) if names else None
    )


def _file(value: Any, name: str) -> Path | bytes:
    """The file in a cell of an image column: its bytes, or where it lies.

    Raises:
        InputError: if there is neither.
    """
    found = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
    if not found:
        raise InputError(f"The image {name} is empty; leave such rows out.")
    return found if isinstance(found, bytes) else Path(found)


def _hugging_rows(path: str, split: str) -> Any:
    """The rows of a split.

    Raises:
        InputError: if the library is not installed or cannot load them.
    """
    try:
        library = importlib.import_module("datasets")
    except ModuleNotFoundError:
        raise InputError(
            "Hugging Face data sets need the library `datasets`; install it with "
            "pip install 'dsno[data]'."
        ) from None
    place = Path(path)
    local = place.is_absolute()
    if (local and not place.exists()) or not (
        local or re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) and place.suffix != ".parquet"
    ):
        raise InputError(
            f"There is nothing at {path}; give a folder, a parquet file or a name on the Hub."
        )
    try:
        if place.suffix == ".parquet" and place.is_file():
            return library.load_dataset("parquet", data_files=path, split=split)
        if local and any((place / n).exists() for n in ("state.json", "dataset_dict.json")):
            return _saved_rows(library.load_from_disk(path), path, split)
        return library.load_dataset(path, split=split)
    except InputError:
        raise
    except Exception as error:  # the library's errors have no common base
        raise InputError(_refusal(path, split, local, error)) from error


def _saved_rows(saved: Any, path: str, split: str) -> Any:
    """The rows of a split of what `save_to_disk` wrote: one split, or a mapping of them.

    Raises:
        InputError: if the split is not there.
    """
    splits = dict(saved) if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    return splits[one_of(split, splits, f"split of {path}")]


def _refusal(path: str, split: str, local: bool, error: Exception) -> str:
    """The sentence for data the library cannot load."""
    lost = isinstance(error, ConnectionError | TimeoutError)
    if not local and (lost or type(error).__module__.startswith(("httpx", "requests"))):
        return (
            f"The data set {path!r} cannot be reached on the Hub, and it is no folder here; check "
            "the name and the connection, or give a local path."
        )
    # a failure while the tables are made says why in its cause
    cause = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
    return (
        f"The split {split!r} of the data set {path} cannot be loaded ({cause[0].rstrip('.')}); "
        "check the path and the split."
    )


def _image_column(rows: Any, path: str, given: str) -> str:
    """The column of images.

    Raises:
        InputError: if there is none, or more than one.
    """
    types = rows.features
    if given:
        one_of(given, types, f"column of {path}")
        if not _holds_files(types[given]):
            raise InputError(f"The column {given!r} of {path} holds no images; name another.")
        return given
    typed = [name for name in types if type(types[name]).__name__ == "Image"]
    usual = [name for name in _IMAGE_COLUMNS if name in types and _holds_files(types[name])]
    found = _narrowed(typed, usual)
    if len(found) != 1:
        raise InputError(
            f"{path} has {_several(found)} of images among {', '.join(types)}; say which is the "
            "image column."
        )
    return found[0]


def _label_column(rows: Any, path: str, given: str) -> str:
    """The column of labels; empty if there is none.

    Raises:
        InputError: if there is more than one.
    """
    types = rows.features
    if given:
        return one_of(given, types, f"column of {path}")
    typed = [name for name in types if type(types[name]).__name__ == "ClassLabel"]
    found = _narrowed(typed, [name for name in _LABEL_COLUMNS if name in types])
    if len(found) > 1:
        raise InputError(
            f"{path} has {_several(found)} of labels, {', '.join(found)}; say which is the label "
            "column."
        )
    return found[0] if found else ""


def _narrowed(typed: list[str], usual: list[str]) -> list[str]:
    """Columns of the right type, narrowed to the usual names; without a type, names decide."""
    if not typed:
        return usual
    return [name for name in typed if name in usual] or typed


def _several(found: list[str]) -> str:
    return f"{len(found) or 'no'} column{'' if len(found) == 1 else 's'}"


def _holds_files(kind: Any) -> bool:
    """Whether a column's type is that of encoded images: marked so, plain bytes, or both parts."""
    if isinstance(kind, dict):
        return {"bytes", "path"} >= set(kind) and bool(kind)
    return type(kind).__name__ == "Image" or "binary" in str(getattr(kind, "dtype", ""))
