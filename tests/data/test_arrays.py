"""Arrays of npz files: every layout and type, and a sentence for what is wrong."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.pictures import as_floats, random_levels, refused, write

from dsno.data.load import load_data


def saved(folder: Path, **arrays: Any) -> str:
    path = folder / "set.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("key", ["images", "samples", "arr_0", "x_train"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_bytes_are_read_in_every_layout(tmp_path: Path, key: str, layout: str) -> None:
    levels = random_levels(3, 9, 8, 1 if layout == "NHW" else 3)
    array = {"NHWC": levels, "NCHW": levels.transpose(0, 3, 1, 2), "NHW": levels[..., 0]}[layout]
    loaded = load_data("npz", saved(tmp_path, **{key: array}))
    assert loaded.images.equal(as_floats(levels))
    assert (loaded.name, loaded.labels) == ("set", None)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_keep_their_values_and_negative_ones_mean_a_range_from_minus_1(
    tmp_path: Path, dtype: type
) -> None:
    values = (random_levels(2, 1, 8, 8) / 127.5 - 1).astype(dtype)
    assert values.min() < 0
    (tmp_path / "unit").mkdir()
    signed = load_data("npz", saved(tmp_path, images=values)).images
    assert signed.equal(torch.from_numpy(values.astype(np.float32)))
    positive = np.abs(values)
    unit = load_data("npz", saved(tmp_path / "unit", images=positive)).images
    assert unit.equal(torch.from_numpy(positive.astype(np.float32)) * 2 - 1)


def test_floats_are_rounded_to_levels_only_to_be_converted(tmp_path: Path) -> None:
    values = np.full((1, 8, 8, 1), 0.3, np.float32)
    values[0, 0, 0] = -0.5
    path = saved(tmp_path, images=values)
    assert load_data("npz", path, size=8, channels=1).images[0, 0, 1, 1] == np.float32(0.3)
    coloured = load_data("npz", path, channels=3).images[0, :, 1, 1]
    assert coloured.tolist() == pytest.approx([166 / 127.5 - 1] * 3)  # (0.3 + 1) 127.5 = 165.75


@pytest.mark.parametrize("key", ["labels", "class_labels", "y_train", "arr_1"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_labels_are_read_under_their_usual_names(tmp_path: Path, key: str, dtype: type) -> None:
    path = saved(tmp_path, images=random_levels(3, 8, 8), **{key: np.array([[2], [0], [2]], dtype)})
    loaded = load_data("npz", path)
    assert loaded.labels is not None
    assert (loaded.labels.tolist(), loaded.labels.dtype) == ([2, 0, 2], torch.int64)
    assert loaded.num_classes == 3


def test_arrays_are_resized_like_images(tmp_path: Path) -> None:
    levels = random_levels(2, 16, 16, 3)
    write(tmp_path / "all" / "0.png", levels[0])
    write(tmp_path / "all" / "1.png", levels[1])
    arrays = load_data("npz", saved(tmp_path, images=levels), size=8)
    assert arrays.images.equal(load_data("folder", str(tmp_path / "all"), size=8).images)


GOOD = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": GOOD}, ["has no images: it has mu", "name the array images or"]),
        ({}, ["it has nothing"]),
        ({"images": GOOD, "labels": [0, 1, 1]}, ["3 labels for 2 images"]),
        ({"images": GOOD, "labels": [0, -1]}, ["A label in", "is -1", "numbered from 0"]),
        ({"images": GOOD, "labels": [0.0, 1.5]}, ["float64", "one whole number or one-hot row"]),
        ({"images": GOOD, "labels": np.ones((2, 2))}, ["shape (2, 2)", "data.labels=none"]),
        ({"images": GOOD, "labels": np.zeros((2, 3))}, ["shape (2, 3)", "one-hot"]),
        (
            {"images": GOOD, "labels": [0, np.nan]},
            ["1 of 2 images have no label in array"],
        ),
        ({"images": GOOD, "labels": [0, 1_000_000]}, ["is 1000000", "at most 1,000,000 classes"]),
        ({"images": GOOD, "samples": GOOD}, ["images and samples", "data.image_column=images"]),
        (
            {"images": GOOD, "y_train": [0, 1], "arr_1": [0, 1]},
            ["arr_1 and y_train"],
        ),
        ({"images": GOOD[:0]}, ["shape (0, 8, 8, 3)", "N > 0"]),
        ({"images": GOOD[0, 0]}, ["shape (8, 3)", "(N, H, W, C)"]),
        ({"images": np.zeros((2, 8, 8, 5), np.uint8)}, ["(2, 8, 8, 5)", "C in 1 .. 4"]),
        ({"images": GOOD + 255.0}, ["are float64 from 255 to 255", "such as [0, 255]"]),
        ({"images": GOOD - 1.01}, ["float64 from -1.01 to -1.01"]),
        ({"images": GOOD + np.nan}, ["float64 from nan"]),
        ({"images": GOOD.astype(str)}, ["are <U", "give uint8"]),
        ({"images": GOOD[:, :7]}, ["8 to 256 pixels", "has 8x7"]),
        ({"images": np.zeros((1, 8, 300, 3))}, ["has 300x8"]),
        ({"images": np.array([None, 1])}, ["npz file of plain arrays"]),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(
    tmp_path: Path, arrays: Mapping[str, Any], words: list[str]
) -> None:
    refused(*words, source="npz", path=saved(tmp_path, **arrays))


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    refused("There is no file", "a.npz", source="npz", path=str(path))
    whole = Path(saved(tmp_path, images=random_levels(2, 32, 32, 3))).read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255  # the archive is whole, its checksum is not
    array = io.BytesIO()
    np.save(array, GOOD)
    cases = (b"hello", b"", whole[:500], bytes(damaged), array.getvalue())
    for number, content in enumerate(cases):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(content)
        refused(f"{number}.npz cannot be read", "numpy.savez", source="npz", path=str(path))
