"""Samples in files: one picture, arrays, or a folder of images; written as they are made.

| written to     | layout                                                                         |
|----------------|--------------------------------------------------------------------------------|
| `.png`         | one picture of all samples, a grid                                             |
| `.npz`         | `arr_0` uint8 (N, H, W, C), `arr_1` labels: ADM's (guided-diffusion) evaluator |
| `.npz`, raw    | `states` float32 (N, *shape), `class_labels`                                   |
| a folder       | 000000.png, ...; `dataset.json` with labels: StyleGAN's and EDM's data sets    |

Sources: openai/guided-diffusion, evaluations/README.md; NVlabs/edm, dataset_tool.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dsno.support.errors import InputError
from dsno.support.files import replacing, replacing_folder
from dsno.support.images import MODES, grid_of_bytes, grid_size, save_png, to_uint8

LABELS_FILE = "dataset.json"
DIGITS = 6
"""Of an image's number in its name; more where there are more images."""
MAX_GRID_PIXELS = 89_478_485
"""Pillow warns of, and then refuses, larger pictures as decompression bombs."""


_OTHER_FILES = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "svg", "pdf"),
        *("npy", "pt", "pth", "safetensors", "zip", "tar", "parquet", "csv", "json"),
    )
)


class SampleFile(ABC):
    """Where samples go, batch by batch."""

    @abstractmethod
    def write(self, samples: Tensor, labels: Tensor | None) -> None:
        """Take the next samples (n, *shape), about [-1, 1], and their classes (n,)."""


def check_target(path: Path, count: int, image_shape: Sequence[int], *, raw: bool) -> None:
    """Refuse what cannot be written, before any sample is made.

    Args:
        path: file or folder.
        count: of samples.
        image_shape: of one decoded sample.
        raw: write states.

    Raises:
        InputError: for another kind of file, samples that are no images, a picture that would be
            too large to open, or a folder that holds something else than samples.
    """
    layout = _layout(path)
    if raw:
        if layout != "npz":
            raise InputError(f"Raw states are written to an .npz file, not to {path.name!r}.")
        return
    if len(image_shape) != 3 or image_shape[0] not in MODES:
        raise InputError(
            f"Samples of shape {tuple(image_shape)} are not images; give an .npz file to --out, "
            "and --raw."
        )
    if layout == "png":
        width, height = grid_size(count, *image_shape[1:])
        if width * height > MAX_GRID_PIXELS:
            raise InputError(
                f"A picture of {count:,} samples would have {width:,} x {height:,} pixels, too "
                "many to open; give a folder or an .npz file to --out."
            )
    if layout == "folder":
        _require_own(path)


def _layout(path: Path) -> Literal["png", "npz", "folder"]:
    """What is written to a path. A name such as `samples-v1.0` is a folder's.

    Raises:
        InputError: if it is called like another kind of file.
    """
    suffix = path.suffix.lower()
    if suffix in _OTHER_FILES:
        raise InputError(
            f"Samples are written to a .png or .npz file or a folder, not to {path.name!r}."
        )
    if suffix == ".png":
        return "png"
    return "npz" if suffix == ".npz" else "folder"


def _require_own(folder: Path) -> None:
    """Refuse a folder that holds anything but samples, which will be replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder, a .png or an .npz file to --out.")
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        if entry.name != LABELS_FILE and not re.fullmatch(r"\d{6,}\.png", entry.name):
            raise InputError(
                f"{folder} holds other files than samples, such as {entry.name}; give a new or "
                "empty folder to --out."
            )


@contextlib.contextmanager
def opened(path: Path, count: int, *, raw: bool = False) -> Iterator[SampleFile]:
    """The file or folder for `count` samples; it appears when the block has succeeded.

    Raises:
        WorkError: if it cannot be written.
    """
    layout = _layout(path)
    if layout == "npz":
        with replacing(path) as temporary, _Npz.writing(temporary, count, raw=raw) as npz:
            yield npz
    elif layout == "png":
        picture = _Grid()
        yield picture
        save_png(grid_of_bytes(picture.tiles()), path)
    else:
        with replacing_folder(path.resolve()) as temporary:
            folder = _Folder(temporary, max(DIGITS, len(str(count - 1))))
            yield folder
            folder.finish()


class _Grid(SampleFile):
    """A picture, which is in memory as a whole in any case."""

    def __init__(self) -> None:
        self._tiles: list[npt.NDArray[np.uint8]] = []

    def write(self, samples: Tensor, labels: Tensor | None) -> None:
        self._tiles.append(to_uint8(samples))

    def tiles(self) -> npt.NDArray[np.uint8]:
        """Every image, (N, H, W, C)."""
        return np.concatenate(self._tiles)


class _Folder(SampleFile):
    """Images by number, and their labels."""

    def __init__(self, folder: Path, digits: int) -> None:
        self._folder, self._digits = folder, digits
        self._labels: list[tuple[str, int]] = []
        self._count = 0

    def write(self, samples: Tensor, labels: Tensor | None) -> None:
        for i, image in enumerate(to_uint8(samples)):
            name = f"{self._count:0{self._digits}d}.png"
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            Image.fromarray(pixels).save(self._folder / name, format="PNG")
            if labels is not None:
                self._labels.append((name, int(labels[i])))
            self._count += 1

    def finish(self) -> None:
        """Write the labels, if there are any."""
        if self._labels:
            text = json.dumps({"labels": self._labels})
            (self._folder / LABELS_FILE).write_text(text, encoding="utf-8")


class _Npz(SampleFile):
    """Arrays, the first written row by row behind a header that says how many there will be."""

    def __init__(self, archive: zipfile.ZipFile, count: int, *, raw: bool) -> None:
        self._archive, self._count, self._raw = archive, count, raw
        self._entry: Any = None
        self._labels: list[npt.NDArray[np.int64]] = []

    @classmethod
    @contextlib.contextmanager
    def writing(cls, path: Path, count: int, *, raw: bool) -> Iterator[_Npz]:
        """Write to `path`."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            npz = cls(archive, count, raw=raw)
            try:
                yield npz
            finally:  # an archive cannot be closed around an open entry
                npz._close()
            npz._write_labels()

    def write(self, samples: Tensor, labels: Tensor | None) -> None:
        rows: npt.NDArray[Any] = (
            samples.to("cpu", torch.float32).numpy() if self._raw else to_uint8(samples)
        )
        if self._entry is None:
            self._entry = self._open("states" if self._raw else "arr_0")
            _write_header(self._entry, (self._count, *rows.shape[1:]), rows.dtype)
        self._entry.write(np.ascontiguousarray(rows).data)
        if labels is not None:
            self._labels.append(labels.to("cpu", torch.int64).numpy())

    def _open(self, name: str) -> Any:
        return self._archive.open(f"{name}.npy", "w", force_zip64=True)

    def _close(self) -> None:
        if self._entry is not None:
            self._entry.close()

    def _write_labels(self) -> None:
        if self._labels:
            labels = np.concatenate(self._labels)
            with self._open("class_labels" if self._raw else "arr_1") as entry:
                np.lib.format.write_array(entry, labels, allow_pickle=False)


def _write_header(entry: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(entry, header)
