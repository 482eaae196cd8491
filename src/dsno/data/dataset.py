"""A data set in memory or encoded, and how images are decoded, fitted and labelled."""

from __future__ import annotations

import io
import os
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
from dsno.support.errors import InputError
from dsno.support.images import MODES

SIZES = range(8, 257)
"""Pixels a side of an image may have."""
Size = int | tuple[int, int]
"""Side of a square, or height and width, in pixels."""
IN_MEMORY = 2 * 2**30
"""Bytes of 8-bit pixels up to which a set is decoded once and kept."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
THREADS = min(8, os.cpu_count() or 1)
THREADED = 128 * 128
"""Pixels from which an image is worth a thread: on smaller ones they wait for one another (twice
as slow for 32x32 PNG)."""
MAX_PIXELS = 2**26
"""Of an image before it is resized: a few kilobytes may hold a picture of any size."""
MAX_CLASSES = 1_000_000
CHUNK = 256
"""Most images one thread decodes before it takes the next lot."""

# What Pillow may try: some of its other readers start programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Pillow's 8-bit modes: the channels one has by nature, and a mode that converts to all of `MODES`.
_NATURE = {"1": 1, "L": 1, "LA": 2, "P": 3, "PA": 3, "RGB": 3, "RGBA": 4}
_NATURE |= {"RGBX": 3, "CMYK": 3, "YCbCr": 3, "HSV": 3}
_BRIDGE = {"P": "RGBA", "PA": "RGBA"} | dict.fromkeys(("RGBX", "CMYK", "YCbCr", "HSV"), "RGB")

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


def _to_float(pixels: Tensor) -> Tensor:
    """Levels as float32 in [-1, 1]; float32 as it is."""
    if pixels.dtype != torch.uint8:
        return pixels.to(torch.float32)
    return pixels.to(torch.float32).div_(127.5).sub_(1)


def opened(name: str, file: Path | bytes) -> Image.Image:
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


def _form(name: str, image: Image.Image, size: Size | None, channels: int | None) -> Form:
    """The form that the options and the first image ask for.

    Raises:
        InputError: if such images are not supported.
    """
    height, width = image.size[::-1] if size is None else sides(size)
    check_size(name, width, height)
    own = channels if channels is not None else _nature(name, image)
    return Form(name, own, height, width, size is not None, channels is not None)


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def check_size(name: str, width: int, height: int) -> None:
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


def read_pixels(
    count: int, read: Reader, size: Size | None, channels: int | None, *, keep: bool = False
) -> Tensor | Encoded:
    """Images in the form of the first; decoded now if they fit into memory or `keep` says so."""
    name, image = next(iter(read([0])))
    threads = THREADS if image.width * image.height >= THREADED else 1
    encoded = Encoded(count, read, _form(name, image, size, channels), threads)
    if count * int(np.prod(encoded.form.shape)) > IN_MEMORY and not keep:
        return encoded
    with progress("decoding", count, unit="image") as advance:
        return encoded.decode(range(count), advance)


def checked_labels(labels: npt.NDArray[Any], where: str, count: int, classes: int | None) -> Tensor:
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
