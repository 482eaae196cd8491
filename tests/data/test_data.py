"""Data sets of every source: exact pixels, classes in order, and a sentence for what is wrong."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsno.data import load as data
from dsno.data.load import Dataset, Encoded, load_data
from dsno.support.errors import InputError


def random_levels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def as_floats(levels: np.ndarray) -> Tensor:
    """(N, H, W, C) bytes as (N, C, H, W) floats."""
    return torch.from_numpy(levels).permute(0, 3, 1, 2) / 127.5 - 1


def picture(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def png(levels: np.ndarray) -> bytes:
    file = io.BytesIO()
    picture(levels).save(file, "PNG")
    return file.getvalue()


def write(path: Path, levels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(levels).save(path)


def refused(*words: str, **options: Any) -> str:
    """The sentence `load_data` refuses with, which must hold the words."""
    with pytest.raises(InputError) as caught:
        load_data(**options)
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert sentence.endswith((".", "?")), sentence
    assert "\n" not in sentence
    return sentence


# -------------------------------------------------------------------------------- Dataset


def test_digits_are_one_of_seventeen_levels_and_keep_their_classes() -> None:
    digits = load_data("digits")
    assert len(digits) == 1797
    assert digits.sample_shape == (1, 8, 8)
    assert digits.num_classes == 10
    assert sorted(((digits.images + 1) * 8).unique().tolist()) == list(range(17))
    assert digits.rows(torch.arange(3)).equal(digits.images[:3])


def test_digits_can_be_resized_and_coloured() -> None:
    digits = load_data("digits", size=16, channels=3)
    assert digits.sample_shape == (3, 16, 16)
    red, green, blue = digits.images[:50].unbind(1)
    assert red.equal(green)
    assert red.equal(blue)
    small = torch.nn.functional.avg_pool2d(digits.images[:50, :1], 2)
    assert (small - load_data("digits").images[:50]).abs().mean() < 0.1


def test_rows_mirror_only_the_flagged_images() -> None:
    levels = random_levels(4, 8, 10, 3)
    pixels = torch.from_numpy(levels).permute(0, 3, 1, 2)
    some = Dataset("some", pixels).rows(torch.tensor([3, 0, 2]), torch.tensor([False, True, False]))
    expected = as_floats(levels)
    assert some.dtype == torch.float32
    assert some[0].equal(expected[3])
    assert some[1].equal(torch.flip(expected[0], [-1]))
    assert some[2].equal(expected[2])


def test_without_labels_there_are_no_classes_and_no_shares() -> None:
    plain = Dataset("plain", torch.zeros(3, 1, 8, 8))
    assert (plain.labels, plain.num_classes, plain.class_names) == (None, None, None)
    assert plain.label_frequencies is None


def test_the_shares_count_classes_without_an_image() -> None:
    images, labels = torch.zeros(4, 1, 8, 8), torch.tensor([0, 2, 2, 2])
    assert Dataset("some", images, labels, 4).label_frequencies == [0.25, 0, 0.75, 0]


def test_a_set_is_decoded_once_a_process(tmp_path: Path) -> None:
    write(tmp_path / "a.png", random_levels(8, 8, 3))
    first = load_data("folder", str(tmp_path))
    assert load_data("folder", path=str(tmp_path), split="train") is first
    assert load_data("folder", str(tmp_path), size=16) is not first


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": "folders"}, ["did you mean 'folder'?"]),
        ({"source": "digits", "path": "x"}, ["'digits' takes no path; leave it out."]),
        ({"source": "folder", "path": "x", "split": "test"}, ["'folder' takes no split"]),
        ({"source": "npz", "path": "x", "label_column": "y"}, ["takes no label_column"]),
        ({"source": "folder"}, ["'folder' needs a path"]),
        ({"source": "digits", "size": 7}, ["8 to 256 pixels", "not size 7"]),
        ({"source": "digits", "size": 257}, ["not size 257"]),
        ({"source": "digits", "channels": 0}, ["1 to 4 channels, not 0"]),
        ({"source": "digits", "channels": 5}, ["1 to 4 channels, not 5"]),
    ],
)
def test_options_that_cannot_be_are_refused(options: Mapping[str, Any], words: list[str]) -> None:
    refused(*words, **options)


# --------------------------------------------------------------------------------- folder


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_gives_its_pixels_over_127_5_less_1(tmp_path: Path, channels: int) -> None:
    levels = random_levels(1, 9, 12, channels)
    write(tmp_path / "a.png", levels[0])
    loaded = load_data("folder", str(tmp_path))
    assert loaded.sample_shape == (channels, 9, 12)
    assert loaded.images.equal(as_floats(levels))
    assert loaded.labels is None
    assert isinstance(loaded.pixels, Tensor)
    assert loaded.pixels.dtype == torch.uint8


def test_every_kind_of_image_is_read_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    names = ["a.png", "b.JPG", "deep/c.jpeg", "deep/er/d.webp", "e.bmp", "f.tif", "g.tiff"]
    for level, name in enumerate(names):
        write(tmp_path / "all" / name, np.full((8, 8, 3), 30 * level, np.uint8))
    (tmp_path / "all" / "notes.txt").write_text("no image")
    write(tmp_path / "all" / ".hidden.png", random_levels(8, 8, 3))
    write(tmp_path / "all" / ".cache" / "z.png", random_levels(8, 8, 3))
    loaded = load_data("folder", str(tmp_path))
    levels = ((loaded.images.mean((1, 2, 3)) + 1) * 127.5).round()
    assert levels.tolist() == pytest.approx([0, 30, 60, 90, 120, 150, 180], abs=2)
    assert loaded.class_names == ("all",)


def test_sub_folders_are_the_classes_in_sorted_order(tmp_path: Path) -> None:
    sizes = {"zebra": 1, "ant": 3, "bee": 2}
    for name, count in sizes.items():
        for i in range(count):
            write(tmp_path / name / f"{i}.png", np.full((8, 8, 1), len(name) * 10 + i, np.uint8))
    (tmp_path / "empty").mkdir()
    write(tmp_path / ".trash" / "0.png", np.zeros((8, 8, 1), np.uint8))
    loaded = load_data("folder", str(tmp_path))
    assert loaded.class_names == ("ant", "bee", "zebra")
    assert loaded.num_classes == 3
    assert loaded.labels is not None
    assert loaded.labels.dtype == torch.int64
    assert loaded.labels.tolist() == [0, 0, 0, 1, 1, 2]
    levels = ((loaded.images[:, 0, 0, 0] + 1) * 127.5).round()
    assert levels.tolist() == [30, 31, 32, 30, 31, 50]
    assert loaded.name == tmp_path.name


def test_a_constant_image_stays_constant_at_any_size(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.full((37, 91, 3), (10, 200, 77), np.uint8))
    for size in (8, 50):
        loaded = load_data("folder", str(tmp_path), size=size)
        expected = (torch.tensor([10.0, 200, 77]) / 127.5 - 1).view(1, 3, 1, 1)
        assert loaded.images.equal(expected.expand(1, 3, size, size))


@pytest.mark.parametrize("shape", [(16, 32), (32, 16)])
def test_resizing_is_of_the_shorter_side_and_the_crop_central(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    levels = random_levels(*shape, 3)
    write(tmp_path / "a.png", levels)
    height, width = shape
    small = picture(levels).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    top, left = (height // 2 - 8) // 2, (width // 2 - 8) // 2
    expected = np.array(small.crop((left, top, left + 8, top + 8)))
    loaded = load_data("folder", str(tmp_path), size=8)
    assert (loaded.images - as_floats(expected[None])).abs().max() < 1.01 / 127.5  # one level


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    write(tmp_path / "a.png", stripes)
    assert load_data("folder", str(tmp_path), size=8).images.abs().max() < 0.1


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    levels = random_levels(8, 12, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by a quarter, clockwise
    picture(levels).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(levels, -1)[None].copy()
    assert load_data("folder", str(tmp_path)).images.equal(as_floats(upright))


def test_channels_are_converted_when_asked(tmp_path: Path) -> None:
    grey = random_levels(1, 8, 8, 1)
    write(tmp_path / "a.png", grey[0])
    coloured = load_data("folder", str(tmp_path), channels=3)
    assert coloured.images.equal(as_floats(grey.repeat(3, -1)))
    clear = load_data("folder", str(tmp_path), channels=4).images
    assert clear[:, :3].equal(coloured.images)
    assert (clear[:, 3] == 1).all()  # nothing shines through


def test_a_palette_counts_as_rgb(tmp_path: Path) -> None:
    levels = np.array([[[250, 0, 0]], [[0, 3, 99]]], np.uint8).repeat(4, 0).repeat(8, 1)
    picture(levels).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    assert load_data("folder", str(tmp_path)).images.equal(as_floats(levels[None]))


def test_a_bilevel_image_is_black_and_white(tmp_path: Path) -> None:
    levels = random_levels(8, 8) // 128 * 255
    Image.fromarray(levels).convert("1", dither=Image.Dither.NONE).save(tmp_path / "a.png")
    loaded = load_data("folder", str(tmp_path))
    assert loaded.images.equal(as_floats(levels[None, ..., None]))


def test_fewer_channels_than_the_first_are_filled_up_and_more_are_refused(tmp_path: Path) -> None:
    grey = random_levels(8, 8, 1)
    write(tmp_path / "up" / "a.png", random_levels(8, 8, 3))
    write(tmp_path / "up" / "b.png", grey)
    loaded = load_data("folder", str(tmp_path / "up"))
    assert loaded.images[1].equal(as_floats(grey[None].repeat(3, -1))[0])
    write(tmp_path / "down" / "a.png", grey)
    write(tmp_path / "down" / "b.png", random_levels(8, 8, 3))
    folder = str(tmp_path / "down")
    refused("b.png has 3 channels", "a.png has 1", source="folder", path=folder)
    assert load_data("folder", folder, channels=1).sample_shape == (1, 8, 8)


def test_the_first_image_of_another_size_is_named_with_its_size(tmp_path: Path) -> None:
    for name, width in (("a", 8), ("b", 8), ("c", 10), ("d", 11)):
        write(tmp_path / f"{name}.png", random_levels(8, width, 3))
    refused(
        "c.png has 10x8 pixels", "a.png has 8x8", "give a size", source="folder", path=str(tmp_path)
    )
    assert len(load_data("folder", str(tmp_path), size=8)) == 4


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_damaged_image_is_named(tmp_path: Path, damage: str) -> None:
    whole = png(random_levels(32, 32, 3))
    (tmp_path / "a.png").write_bytes(whole)
    broken = {"truncated": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[damage]
    (tmp_path / "b.png").write_bytes(broken)
    refused("b.png cannot be read", "damaged or no image", source="folder", path=str(tmp_path))


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png", random_levels(8, 8, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    refused("a.png has too many pixels", source="folder", path=str(tmp_path))


@pytest.mark.parametrize(
    ("height", "complaint"), [(2**13, "cannot be read"), (2**13 + 1, "has too many pixels")]
)
def test_an_image_of_more_than_2_to_the_26_pixels_is_not_decoded(
    tmp_path: Path, height: int, complaint: str
) -> None:
    """The file says its size, of 2^13 columns, and ends."""
    content = bytearray(png(random_levels(8, 8, 1))[:33])  # the signature and the header
    content[16:24] = struct.pack(">II", 2**13, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content + struct.pack(">I", 0) + b"IDAT")
    refused(f"a.png {complaint}", source="folder", path=str(tmp_path))


def test_a_file_that_would_start_a_program_is_not_tried(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EOF\n")
    refused("a.png cannot be read (no format known here)", source="folder", path=str(tmp_path))


def test_sixteen_bit_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(tmp_path / "a.png")
    refused("mode I;16", "8 bits a channel", source="folder", path=str(tmp_path))


@pytest.mark.parametrize("shape", [(7, 8), (8, 257)])
def test_sizes_that_are_not_supported_are_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    write(tmp_path / "a.png", random_levels(*shape, 1))
    refused(
        "8 to 256 pixels",
        f"a.png has {shape[1]}x{shape[0]}",
        "give a size to resize to",
        source="folder",
        path=str(tmp_path),
    )


def test_a_folder_without_images_or_none_at_all_is_refused(tmp_path: Path) -> None:
    refused("no images in", ".png", source="folder", path=str(tmp_path))
    refused("There is no folder", "gone", source="folder", path=str(tmp_path / "gone"))


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "ant" / "a.png", random_levels(8, 8, 3))
    write(tmp_path / "stray.png", random_levels(8, 8, 3))
    refused("images beside them, such as stray.png", source="folder", path=str(tmp_path))


def test_a_large_folder_is_decoded_as_its_rows_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = random_levels(5, 8, 8, 3)
    for i, image in enumerate(levels):
        write(tmp_path / f"{i}.png", image)
    monkeypatch.setattr(data, "IN_MEMORY", levels.size - 1)
    loaded = load_data("folder", str(tmp_path))
    assert isinstance(loaded.pixels, Encoded)
    assert (len(loaded), loaded.sample_shape) == (5, (3, 8, 8))
    flip = torch.tensor([True, False])
    some = loaded.rows(torch.tensor([4, 1]), flip)
    assert some[0].equal(as_floats(levels)[4].flip(-1))
    assert some[1].equal(as_floats(levels)[1])
    assert loaded.images.equal(as_floats(levels))
    assert loaded.rows(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 8, 8)
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"3\.png cannot be read"):
        loaded.rows(torch.tensor([2, 3]))


def test_a_folder_of_exactly_the_limit_is_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = random_levels(8, 8, 3)
    write(tmp_path / "a.png", levels)
    monkeypatch.setattr(data, "IN_MEMORY", levels.size)
    assert isinstance(load_data("folder", str(tmp_path)).pixels, Tensor)


def test_threads_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = random_levels(40, 8, 8, 1)
    for i, image in enumerate(levels):
        write(tmp_path / f"{i:02}.png", image)
    monkeypatch.setattr(data, "THREADS", 3)
    monkeypatch.setattr(data, "THREADED", 1)
    monkeypatch.setattr(data, "CHUNK", 7)
    assert load_data("folder", str(tmp_path)).images.equal(as_floats(levels))


# ------------------------------------------------------------------------------------ npz


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
def test_floats_keep_their_values_and_their_range_is_told_by_the_sign(
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
        ({"images": GOOD, "labels": [0.0, 1.0]}, ["float64", "one whole number an image"]),
        ({"images": GOOD, "labels": np.eye(2, dtype=int)}, ["shape (2, 2)", "one whole number"]),
        ({"images": GOOD[:0]}, ["shape (0, 8, 8, 3)", "N > 0"]),
        ({"images": GOOD[0, 0]}, ["shape (8, 3)", "(N, H, W, C)"]),
        ({"images": np.zeros((2, 8, 8, 5), np.uint8)}, ["(2, 8, 8, 5)", "C in 1 .. 4"]),
        ({"images": GOOD.astype(np.int64)}, ["are int64", "give uint8"]),
        ({"images": GOOD + 255.0}, ["floats from 255 to 255", "[-1, 1] or [0, 1]"]),
        ({"images": GOOD - 1.01}, ["floats from -1.01 to -1.01"]),
        ({"images": GOOD + np.nan}, ["floats from nan"]),
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


# ---------------------------------------------------------------------------- huggingface


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The `datasets` library, with its copies in a folder of the test."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()
    return library


LEVELS = random_levels(6, 8, 10, 3)
LABELS = [2, 0, 1, 1, 0, 2]


def table(
    hub: Any, *, image: str = "img", label: str = "label", rows: slice = slice(None), **more: Any
) -> Any:
    """Rows with an image and a class."""
    levels, labels = LEVELS[rows], LABELS[rows]
    features = {
        image: hub.Image(),
        label: hub.ClassLabel(names=["ant", "bee", "cat"]),
        **{name: kind for name, (kind, _) in more.items()},
    }
    columns = {
        image: [{"bytes": png(x), "path": None} for x in levels],
        label: labels,
        **{name: values for name, (_, values) in more.items()},
    }
    return hub.Dataset.from_dict(columns, hub.Features(features))


def assert_all_rows(loaded: Dataset) -> None:
    assert loaded.images.equal(as_floats(LEVELS))
    assert loaded.labels is not None
    assert loaded.labels.tolist() == LABELS
    assert loaded.num_classes == 3


def test_parquet_shards_are_read_in_order(tmp_path: Path, hub: Any) -> None:
    folder = tmp_path / "insects"
    folder.mkdir()
    (folder / "README.md").write_text("Some insects.\n")
    table(hub, rows=slice(0, 4)).to_parquet(folder / "train-00000-of-00002.parquet")
    table(hub, rows=slice(4, 6)).to_parquet(folder / "train-00001-of-00002.parquet")
    table(hub, rows=slice(2, 3)).to_parquet(folder / "test-00000-of-00001.parquet")
    loaded = load_data("huggingface", str(folder))
    assert_all_rows(loaded)
    assert (loaded.name, loaded.class_names) == ("insects", ("ant", "bee", "cat"))
    test = load_data("huggingface", str(folder), split="test")
    assert test.images.equal(as_floats(LEVELS[2:3]))
    assert test.num_classes == 3  # the names say so, whatever is there
    refused("split 'val'", "Unknown split", source="huggingface", path=str(folder), split="val")


def test_one_parquet_file_is_read(tmp_path: Path, hub: Any) -> None:
    path = tmp_path / "insects.parquet"
    table(hub).to_parquet(path)
    loaded = load_data("huggingface", str(path))
    assert_all_rows(loaded)
    assert loaded.name == "insects"
    assert len(load_data("huggingface", str(path), split="train[1:3]")) == 2
    missing = str(tmp_path / "none.parquet")
    refused("nothing at", "none.parquet", source="huggingface", path=missing)


def test_parquet_that_another_program_wrote_is_read(tmp_path: Path, hub: Any) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = [png(x) for x in LEVELS]
    for name, cells in (("a", files), ("b", [{"bytes": file, "path": "x.png"} for file in files])):
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.table({"image": cells, "labels": LABELS}), path)
        assert_all_rows(load_data("huggingface", str(path)))


@pytest.mark.parametrize("splits", [False, True])
def test_what_save_to_disk_wrote_is_read(tmp_path: Path, hub: Any, splits: bool) -> None:
    rows = table(hub)
    whole = hub.DatasetDict({"train": rows, "test": rows.select([5])}) if splits else rows
    whole.save_to_disk(tmp_path / "insects")
    path = str(tmp_path / "insects")
    assert_all_rows(load_data("huggingface", path))
    if splits:
        assert len(load_data("huggingface", path, split="test")) == 1
    refused("Unknown split", "'tests'", source="huggingface", path=path, split="tests")


def test_a_large_data_set_is_decoded_as_its_rows_are_asked_for(
    tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(hub).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(data, "IN_MEMORY", 10)
    loaded = load_data("huggingface", str(tmp_path / "a.parquet"))
    assert isinstance(loaded.pixels, Encoded)
    assert loaded.rows(torch.tensor([4, 4, 0])).equal(as_floats(LEVELS)[[4, 4, 0]])
    assert_all_rows(loaded)


def test_usual_names_decide_among_columns_of_one_type(tmp_path: Path, hub: Any) -> None:
    coarse = (hub.ClassLabel(names=["x", "y"]), [0] * 6)
    mask = (hub.Image(), [{"bytes": png(LEVELS[0]), "path": None}] * 6)
    path = str(tmp_path / "a.parquet")
    table(hub, label="fine_label", coarse_label=coarse, mask=mask).to_parquet(path)
    assert_all_rows(load_data("huggingface", path))
    given = load_data("huggingface", path, image_column="mask", label_column="coarse_label")
    assert given.images.equal(as_floats(LEVELS[[0] * 6]))
    assert given.class_names == ("x", "y")


def test_columns_that_are_not_clear_are_refused(tmp_path: Path, hub: Any) -> None:
    path = str(tmp_path / "a.parquet")
    kind = (hub.ClassLabel(names=["x"]), [0] * 6)
    other = (hub.Image(), [{"bytes": png(LEVELS[0]), "path": None}] * 6)
    table(hub, image="left", right=other, label="kind", order=kind).to_parquet(path)
    options = {"source": "huggingface", "path": path}
    refused("2 columns of images", "left", "say which is the image column", **options)
    refused("2 columns of labels, kind, order", image_column="left", **options)
    refused("did you mean 'left'?", image_column="lfet", **options)
    refused("'kind'", "holds no images", image_column="kind", **options)
    plain = str(tmp_path / "b.parquet")
    hub.Dataset.from_dict({"text": ["a"]}).to_parquet(plain)
    refused("no columns of images among text", source="huggingface", path=plain)


def test_a_data_set_without_labels_is_read(tmp_path: Path, hub: Any) -> None:
    table(hub).remove_columns("label").to_parquet(tmp_path / "a.parquet")
    loaded = load_data("huggingface", str(tmp_path / "a.parquet"))
    assert loaded.labels is None
    assert loaded.images.equal(as_floats(LEVELS))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a"] * 6, ["column 'label' of", "one whole number"]),
        ([0.5] * 6, ["float64"]),
        ([0, 1, None, 0, 1, 0], ["float64"]),
        ([0, 1, -1, 0, 1, 0], ["is -1", "images without a class"]),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(
    tmp_path: Path, hub: Any, labels: list[Any], words: list[str]
) -> None:
    rows = table(hub).remove_columns("label").add_column("label", labels)
    rows.to_parquet(tmp_path / "a.parquet")
    refused(*words, source="huggingface", path=str(tmp_path / "a.parquet"))


def test_labels_beyond_the_named_classes_are_refused(tmp_path: Path, hub: Any) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "a.parquet")
    table(hub).to_parquet(path)
    stored = parquet.read_table(path)
    column = pyarrow.array([0, 1, 2, 3, 0, 0])
    parquet.write_table(stored.set_column(1, stored.schema.field("label"), column), path)
    refused("is 3, but there are 3 classes", source="huggingface", path=path)


def test_a_damaged_or_empty_row_is_named(tmp_path: Path, hub: Any) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = [png(x) for x in LEVELS[:3]]
    for name, bad, words in (
        ("a", {"bytes": files[1][:100], "path": None}, "cannot be read"),
        ("b", {"bytes": None, "path": None}, "is empty"),
        ("c", None, "is empty"),
    ):
        cells = [{"bytes": files[0], "path": None}, bad, {"bytes": files[2], "path": None}]
        path = str(tmp_path / f"{name}.parquet")
        parquet.write_table(pyarrow.table({"image": cells}), path)
        refused(f"image 1 of {path} {words}", source="huggingface", path=path)


def test_damaged_parquet_and_an_empty_folder_are_refused(tmp_path: Path, hub: Any) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    path = str(tmp_path / "a.parquet")
    refused("cannot be loaded", "a.parquet", source="huggingface", path=path)
    (tmp_path / "nothing").mkdir()
    refused("cannot be loaded", source="huggingface", path=str(tmp_path / "nothing"))


def test_a_split_without_rows_is_refused(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "load_dataset", lambda *_, **__: table(hub).select([]))
    refused("'train' of someone/empty is empty", source="huggingface", path="someone/empty")


def test_a_hub_name_is_asked_for_by_name_and_split(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return table(hub)

    monkeypatch.setattr(hub, "load_dataset", load)
    loaded = load_data("huggingface", "someone/insects-v1.5", split="dev")
    assert asked == [(("someone/insects-v1.5",), {"split": "dev"})]
    assert loaded.name == "insects-v1.5"
    assert_all_rows(loaded)


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach it\nafter many attempts")

    monkeypatch.setattr(hub, "load_dataset", unreachable)
    options = {"source": "huggingface", "path": "someone/unreachable"}
    refused("'someone/unreachable' cannot be reached on the Hub", "local path", **options)


def test_offline_a_name_that_was_never_loaded_is_refused(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.config, "HF_HUB_OFFLINE", True)
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("cannot be reached on the Hub", source="huggingface", path="someone/offline")


def test_what_the_library_refuses_is_passed_on_in_one_sentence(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scripted(*_: Any, **__: Any) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found x.py\nmore")

    monkeypatch.setattr(hub, "load_dataset", scripted)
    words = "cannot be loaded (Dataset scripts are no longer supported, but found x.py);"
    refused(words, source="huggingface", path="someone/scripted")


@pytest.mark.parametrize("path", ["./none", "../none", "a/b/c", "a b", "none.parquet"])
def test_a_path_that_is_neither_here_nor_a_name_is_refused(hub: Any, path: str) -> None:
    refused("nothing at", path, "name on the Hub", source="huggingface", path=path)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    words = "pip install 'dsno[data]'"
    refused(words, source="huggingface", path="someone/not-installed")
