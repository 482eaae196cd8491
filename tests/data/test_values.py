"""What the values of arrays mean: the range they are in, and refusal where it might be another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pictures import random_levels, refused

from dsno.data.load import load_data


def saved(folder: Path, values: Any, **arrays: Any) -> str:
    np.savez(folder / "set.npz", images=values, **arrays)
    return str(folder / "set.npz")


def row(*values: float, dtype: type = np.float32) -> np.ndarray:
    """One grey 8x8 image whose first pixels are given; the others are like the last."""
    image = np.full(64, values[-1], dtype)
    image[: len(values)] = values
    return image.reshape(1, 8, 8)


def first(path: str, count: int, **options: Any) -> list[float]:
    return load_data("npz", path, **options).images.flatten()[:count].tolist()


def test_rounding_does_not_change_the_range(tmp_path: Path) -> None:
    path = saved(tmp_path, row(-1e-7, 0.25, 1 + 1e-7, 0.5))
    assert first(path, 4) == [-1, -0.5, 1, 0]
    path = saved(tmp_path, row(-1 - 1e-6, 0.25, 1 + 1e-6, 0.5))
    load_data.__globals__["_load"].cache_clear()  # the same path
    assert first(path, 4) == [-1, 0.25, 1, 0.5]


@pytest.mark.parametrize("low", [-0.2, -0.004])
def test_floats_a_little_below_zero_are_refused(tmp_path: Path, low: float) -> None:
    path = saved(tmp_path, row(low, 0.5, 1))
    sentence = refused(f"from {low:g} to 1", source="npz", path=path)
    assert "data.range=[0, 1] or data.range=[-1, 1]" in sentence
    assert first(path, 3, range=[-1, 1]) == pytest.approx([low, 0.5, 1])


def test_floats_a_little_above_one_are_refused(tmp_path: Path) -> None:
    refused("data.range=[0, 1]", source="npz", path=saved(tmp_path, row(0, 0.5, 1.003)))


@pytest.mark.parametrize(
    ("values", "dtype", "range_", "expected"),
    [
        ((0, 128, 255), np.float64, [0, 255], [-1, 128 / 127.5 - 1, 1]),
        ((0, 13107, 65535), np.uint16, [0, 65535], [-1, -0.6, 1]),
        ((-1000, 0, 3000), np.int16, [-1000, 3000], [-1, -0.5, 1]),
        ((0, 1, 1), np.uint8, [0, 1], [-1, 1, 1]),
        ((0, 1, 1), np.bool_, None, [-1, 1, 1]),
        ((0, 51, 255), np.int64, None, [-1, -0.6, 1]),
        ((0, 51, 255), np.uint16, [0, 255], [-1, -0.6, 1]),
        ((0.0, 0.25, 0.5), np.float16, [0, 0.5], [-1, 0, 1]),
        ((0, 3, 12), np.uint8, [0, 255], [-1, 3 / 127.5 - 1, 12 / 127.5 - 1]),
    ],
)
def test_black_and_white_are_what_the_range_or_the_type_says(
    tmp_path: Path, values: Any, dtype: type, range_: Any, expected: list[float]
) -> None:
    path = saved(tmp_path, row(*values, dtype=dtype))
    assert first(path, 3, range=range_) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "dtype", "words"),
    [
        ((0, 1), np.uint8, ["level 1 of 255 only", "data.range=[0, 1]", "data.range=[0, 255]"]),
        ((0, 16), np.uint8, ["level 16 of 255 only"]),
        ((0, 1), np.int64, ["int64 from 0 to 1", "set data.range"]),
        ((0, 127), np.int32, ["int32 from 0 to 127", "set data.range"]),
        ((0, 256), np.int32, ["int32 from 0 to 256"]),
        ((-1, 255), np.int16, ["int16 from -1 to 255"]),
        ((0, 1 / 255), np.float32, ["nearly black in [0, 1]", "[0, 0.00392157]"]),
        ((0, 16), np.float64, ["float64 from 0 to 16", "set data.range"]),
    ],
)
def test_values_of_several_meanings_are_refused(
    tmp_path: Path, values: Any, dtype: type, words: list[str]
) -> None:
    refused(*words, source="npz", path=saved(tmp_path, row(*values, dtype=dtype)))


def test_values_beyond_the_range_are_refused(tmp_path: Path) -> None:
    words = "from 0 to 1.01, beyond data.range = [0, 1]"
    refused(words, source="npz", path=saved(tmp_path, row(0, 1.01)), range=[0, 1])


def test_the_order_of_axes_is_asked_for_where_both_fit(tmp_path: Path) -> None:
    levels = random_levels(1, 3, 9, 4)
    path = saved(tmp_path, levels)
    refused("(1, 3, 9, 4)", "data.layout=NCHW", source="npz", path=path, size=8)
    assert load_data("npz", path, size=8, layout="NCHW").sample_shape == (3, 8, 8)
    assert load_data("npz", path, size=8, layout="NHWC").sample_shape == (4, 8, 8)
    refused("data.layout = NHW.", source="npz", path=path, layout="NHW")


def test_other_arrays_can_be_named(tmp_path: Path) -> None:
    train, test = random_levels(3, 8, 8), random_levels(2, 8, 8, seed=1)
    arrays = {"x_train": train, "y_train": [0, 1, 2], "x_test": test, "y_test": [1, 0]}
    np.savez(tmp_path / "mnist.npz", **arrays, weights=[5, 6])
    path = str(tmp_path / "mnist.npz")
    assert load_data("npz", path).labels.tolist() == [0, 1, 2]
    tested = load_data("npz", path, image_column="x_test")
    assert tested.labels.tolist() == [1, 0]
    assert ((tested.images[:, 0] + 1) * 127.5).round().numpy().tolist() == test.tolist()
    other = load_data("npz", path, image_column="x_test", label_column="weights")
    assert other.labels.tolist() == [5, 6]
    assert load_data("npz", path, labels="none").labels is None
    refused("did you mean 'x_test'", source="npz", path=path, image_column="x_tset")


def test_labels_of_other_images_are_not_taken(tmp_path: Path) -> None:
    arrays = {"x_train": random_levels(2, 8, 8), "y_train": [0, 1], "mine": random_levels(2, 8, 8)}
    np.savez(tmp_path / "a.npz", **arrays)
    path = str(tmp_path / "a.npz")
    assert load_data("npz", path, image_column="mine").labels is None
    refused("has no labels", source="npz", path=path, image_column="mine", labels="file")
