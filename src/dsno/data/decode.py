"""Encoded images: safely opened, upright, flattened on a background, fitted to one form."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from dsno.data.values import check_not_dark, scaled
from dsno.recipes.schema import Data
from dsno.support.console import Advance, progress
from dsno.support.errors import InputError
from dsno.support.images import MODES

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
CHUNK = 256
"""Most images one thread decodes before it takes the next lot."""

# What Pillow may try: some of its other readers start programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Pillow's 8-bit modes: the channels one has by nature, and a mode that converts to all of `MODES`.
_NATURE = {"1": 1, "L": 1, "LA": 2, "P": 3, "PA": 3, "RGB": 3, "RGBA": 4}
_NATURE |= {"RGBX": 3, "CMYK": 3, "YCbCr": 3, "HSV": 3}
_BRIDGE = {"P": "RGBA", "PA": "RGBA"} | dict.fromkeys(("RGBX", "CMYK", "YCbCr", "HSV"), "RGB")
# Its grey modes of more bits, whose white is not known from the file.
_DEEP = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})

Reader = Callable[[Sequence[int]], Iterable[tuple[str, Image.Image]]]
"""Some items' images, loaded and upright, each with the name an error gives it."""
Bytes = npt.NDArray[np.uint8]


class UnreadableError(InputError):
    """An image is damaged, missing or in no format known."""

    name = ""
    """Of the image."""


def unreadable(name: str, cause: str) -> UnreadableError:
    """The error for an image that cannot be read."""
    error = UnreadableError(
        f"The image {name} {cause}; replace or remove it, or set data.unreadable=skip."
    )
    error.name = name
    return error


@dataclass(frozen=True)
class Form:
    """What every image of a set must look like.

    Attributes:
        first: name of the image that set it.
        channels: 1 .. 4: L, LA, RGB, RGBA.
        height: in pixels.
        width: in pixels.
        data: the options: whether other sizes and channels are converted, and how.
    """

    first: str
    channels: int
    height: int
    width: int
    data: Data

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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each."""
        return self.form.shape

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
                out[row] = fitted(name, image, self.form)
            return len(part)

        with ThreadPoolExecutor(self.threads) as pool:
            for done in pool.map(fill, range(0, len(items), length)):
                if advance is not None:
                    advance(done)
        return pixels


@dataclass(frozen=True)
class Pixels:
    """What came of the images of a source.

    Attributes:
        kept: decoded or encoded images.
        items: which of the source's images these are; None for all.
        notes: what was understood, and what was left out and why.
    """

    kept: Tensor | Encoded
    items: list[int] | None
    notes: tuple[str, ...]

    def of(self, labels: Tensor) -> Tensor:
        """The labels of the images that were kept, of those of all images."""
        return labels if self.items is None else labels[self.items]


def opened(name: str, file: Path | bytes, frames: str = "one") -> Image.Image:
    """Load one encoded image and turn it upright.

    Args:
        name: what an error calls it.
        file: where it is, or its bytes.
        frames: `first` takes the first of several frames; `one` refuses such an image.

    Raises:
        UnreadableError: if it is damaged, not an image or too large to decode safely.
        InputError: if it has several frames.
    """
    try:
        with Image.open(
            io.BytesIO(file) if isinstance(file, bytes) else file, formats=_FORMATS
        ) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            # the others of a camera's MPO are previews
            several = getattr(image, "is_animated", False) and image.format != "MPO"
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
    except Image.DecompressionBombError:
        raise unreadable(name, "has too many pixels to be decoded safely") from None
    except Exception as error:  # Pillow's readers raise whatever the damage leads them to
        unknown = isinstance(error, UnidentifiedImageError)
        cause = "no format known here" if unknown else str(error) or type(error).__name__
        raise unreadable(
            name, f"cannot be read ({cause}): it is damaged or not an image"
        ) from error
    if several and frames == "one":
        raise InputError(
            f"The image {name} has several frames or pages; set data.frames=first to take the "
            "first of each, or save them as images of their own."
        )
    return image


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of `data.size`."""
    return (size, size) if isinstance(size, int) else size


def check_size(name: str, width: int, height: int) -> None:
    """Refuse sizes that are not supported.

    Raises:
        InputError: naming the image and its size.
    """
    if width not in SIZES or height not in SIZES:
        raise InputError(
            f"Images of {SIZES[0]} to {SIZES[-1]} pixels a side are supported, and {name} has "
            f"{width}x{height}; give a size to resize to, such as data.size=64."
        )


def read_pixels(count: int, read: Reader, data: Data, *, keep: bool = False) -> Pixels:
    """Images in the form of the first; decoded now if they fit into memory or `keep` says so.

    Raises:
        InputError: if an image cannot be used. Of a set that does not fit into memory, only the
            first is looked at here.
    """
    items, notes = None, []
    if data.unreadable == "skip":
        items, lost = _readable(count, read)
        if lost:
            notes.append(f"skipped {len(lost):,} that cannot be read (such as {lost[0]})")
            count, read = len(items), _only(items, read)
    name, image = next(iter(read([0])))
    threads = THREADS if image.width * image.height >= THREADED else 1
    encoded = Encoded(count, read, _form(name, image, data), threads)
    size = count * int(np.prod(encoded.form.shape))
    if size > IN_MEMORY and not keep:
        return Pixels(encoded, items, ("8-bit levels, decoded when needed", *notes))
    with progress("decoding", count, unit="image") as advance:
        pixels = encoded.decode(range(count), advance)
    if data.range is None:
        colours = pixels[:, : encoded.form.channels - 1 | 1]  # without alpha
        low, high = int(colours.min()), int(colours.max())
        check_not_dark(high, f"{name} and the others" if count > 1 else name)
        return Pixels(pixels, items, (f"8-bit levels from {low} to {high}", *notes))
    black, white = data.range
    return Pixels(pixels, items, (f"values from {black:g} (black) to {white:g} (white)", *notes))


def _readable(count: int, read: Reader) -> tuple[list[int], list[str]]:
    """The items whose images can be read, and the names of the others.

    Raises:
        InputError: if there is none.
    """

    def fault(item: int) -> UnreadableError | None:
        try:
            next(iter(read([item])))
        except UnreadableError as error:
            return error
        return None

    with ThreadPoolExecutor(THREADS) as pool, progress("checking", count, unit="image") as advance:
        faults = []
        for found in pool.map(fault, range(count)):
            faults.append(found)
            advance(1)
    good = [i for i, found in enumerate(faults) if found is None]
    bad = [found for found in faults if found is not None]
    if not good:
        raise InputError(f"None of the {count:,} images can be read; the first: {bad[0]}")
    return good, [error.name for error in bad]


def _only(items: list[int], read: Reader) -> Reader:
    """A reader of some of the items, numbered anew."""
    return lambda some: read([items[i] for i in some])


def _form(name: str, image: Image.Image, data: Data) -> Form:
    """The form that the options and the first image ask for.

    Raises:
        InputError: if such images are not supported.
    """
    height, width = image.size[::-1] if data.size is None else sides(data.size)
    check_size(name, width, height)
    own = data.channels if data.channels is not None else _nature(name, image, data)
    return Form(name, own, height, width, data)


def _nature(name: str, image: Image.Image, data: Data) -> int:
    """Channels of an image once it is flattened on the background, if one is given.

    Raises:
        InputError: if how bright its pixels are is not known.
    """
    if image.mode in _DEEP:
        if data.range is None:
            low, high = image.getextrema()
            raise InputError(
                f"The image {name} has pixels of mode {image.mode}, here from {low:g} to {high:g}, "
                "and 8 bits a channel have a known white; say which values are black and white, "
                "such as data.range=[0, 65535]."
            )
        return 1
    if image.mode not in _NATURE:
        raise InputError(
            f"The image {name} has pixels of mode {image.mode}, and 8 bits a channel are "
            "supported; convert it."
        )
    nature = _NATURE[image.mode]
    return nature - 1 if data.background and nature in (2, 4) else nature


def fitted(name: str, image: Image.Image, form: Form) -> Bytes:
    """Convert an image to a form: (C, H, W).

    Raises:
        InputError: if its size differs and may not be changed, or channels would get lost.
    """
    data, nature = form.data, _nature(name, image, form.data)
    if nature > form.channels and data.channels is None:
        raise InputError(
            f"The image {name} has {nature} channels and {form.first} has {form.channels}; "
            "convert all to one number of channels, such as data.channels=3."
        )
    if image.size != (form.width, form.height) and data.size is None:
        raise InputError(
            f"The image {name} has {image.width}x{image.height} pixels and {form.first} has "
            f"{form.width}x{form.height}; give a size to resize all to, such as data.size=64."
        )
    if image.mode in _DEEP:
        assert data.range is not None  # or its nature is not known
        signed = scaled(np.asarray(image), f"the image {name}", data.range)
        image = Image.fromarray(np.round((signed + 1) * 127.5).astype(np.uint8))
    elif data.range is not None:
        image = _stretched(name, image, data.range)
    if form.channels in (1, 3):
        image = _opaque(name, image, data.background)
    if image.mode in _BRIDGE:
        image = image.convert(_BRIDGE[image.mode])
    if image.mode != MODES[form.channels]:
        image = image.convert(MODES[form.channels])
    if image.size != (form.width, form.height):
        image = ImageOps.fit(image, (form.width, form.height), Image.Resampling.BICUBIC)
    levels = np.asarray(image)
    return levels[None] if form.channels == 1 else levels.transpose(2, 0, 1)


def _opaque(name: str, image: Image.Image, background: str) -> Image.Image:
    """An image without transparency: flattened on the background, or as it is if all is opaque.

    Raises:
        InputError: if something shines through and no background is given.
    """
    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return image
    clear = image.convert("RGBA")
    least, _ = clear.getchannel("A").getextrema()
    if least == 255:
        return image
    if not background:
        raise InputError(
            f"The image {name} is transparent in places and what lies behind is not known; set "
            "data.background=white or another colour, or data.channels=4 to keep alpha."
        )
    colour = ImageColor.getrgb(background)[:3]
    behind = Image.new("RGBA", clear.size, (*colour, 255))
    return Image.alpha_composite(behind, clear).convert("RGB")


def _stretched(name: str, image: Image.Image, range_: tuple[float, float]) -> Image.Image:
    """An 8-bit image whose levels from black to white are stretched to 0 .. 255; alpha stays.

    Raises:
        InputError: if the range is not one of 8-bit pixels, or a level lies outside.
    """
    black, white = range_
    if (black, white) == (0, 255) or image.mode == "1":  # two levels have no other meaning
        return image
    if black < 0 or white > 255:
        raise InputError(
            f"The image {name} has 8 bits a channel, which cannot reach from {black:g} to "
            f"{white:g}; leave data.range out or correct it."
        )
    if image.mode in _BRIDGE:
        image = image.convert(_BRIDGE[image.mode])
    values = np.asarray(image)
    depth = 1 if values.ndim == 2 else values.shape[2]
    colours = values.reshape(*values.shape[:2], depth)[..., : depth if depth % 2 else depth - 1]
    signed = scaled(colours, f"the image {name}", range_)
    levels = values.reshape(*values.shape[:2], depth).copy()
    levels[..., : colours.shape[2]] = np.round((signed + 1) * 127.5)
    return Image.fromarray(levels.reshape(values.shape))
