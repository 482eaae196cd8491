"""Image folders: exact pixels, classes in order, and a sentence for what is wrong."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.pictures import as_floats, picture, png, random_levels, refused, write
from torch import Tensor

from dsno.data import decode
from dsno.data.decode import Encoded
from dsno.data.load import load_data
from dsno.support.errors import InputError


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
    refused("b.png cannot be read", "damaged or not an image", source="folder", path=str(tmp_path))


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
    monkeypatch.setattr(decode, "IN_MEMORY", levels.size - 1)
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
    monkeypatch.setattr(decode, "IN_MEMORY", levels.size)
    assert isinstance(load_data("folder", str(tmp_path)).pixels, Tensor)


def test_threads_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = random_levels(40, 8, 8, 1)
    for i, image in enumerate(levels):
        write(tmp_path / f"{i:02}.png", image)
    monkeypatch.setattr(decode, "THREADS", 3)
    monkeypatch.setattr(decode, "THREADED", 1)
    monkeypatch.setattr(decode, "CHUNK", 7)
    assert load_data("folder", str(tmp_path)).images.equal(as_floats(levels))
