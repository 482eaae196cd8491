"""Kinds of pictures whose pixels are not plainly what the file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.pictures import as_floats, png, random_levels, refused, write

from dsno.data import decode
from dsno.data.load import load_data


def pixel(folder: Path, **options: Any) -> list[int]:
    """The first pixel of the first image, in levels."""
    images = load_data("folder", str(folder), **options).images
    return ((images[0, :, 0, 0] + 1) * 127.5).round().int().tolist()


def half_red(folder: Path, mode: str = "RGBA") -> str:
    """Red of alpha 51 (a fifth) above, opaque green below."""
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 51))
    image.paste((0, 255, 0, 255), (0, 4, 8, 8))
    image.convert(mode).save(folder / "a.png")
    return str(folder)


def test_colours_hidden_under_alpha_are_not_shown(tmp_path: Path) -> None:
    path = half_red(tmp_path)
    options = {"source": "folder", "path": path, "channels": 3}
    refused("a.png is transparent in places", "data.background=white", **options)
    assert pixel(tmp_path, channels=3, background="white") == [255, 204, 204]
    assert pixel(tmp_path, background="rgb(0, 0, 100)") == [51, 0, 80]  # 255 / 5; 100 * 4 / 5
    assert pixel(tmp_path) == [255, 0, 0, 51]


def test_grey_with_alpha_is_laid_on_the_background(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.full((8, 8, 2), (100, 51), np.uint8))
    refused("transparent in places", source="folder", path=str(tmp_path), channels=1)
    assert pixel(tmp_path, background="white") == [224]  # 100 / 5 + 255 * 4 / 5
    assert pixel(tmp_path, channels=3, background="black") == [20, 20, 20]
    assert pixel(tmp_path) == [100, 51]


def test_alpha_that_hides_nothing_is_dropped(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.full((8, 8, 4), (10, 200, 30, 255), np.uint8))
    assert pixel(tmp_path, channels=3) == [10, 200, 30]


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_one_colour_may_be_transparent(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (8, 8), 0)
    if mode == "P":
        image.putpalette([250, 0, 0, 0, 99, 0])
    image.paste(1 if mode == "P" else (0, 99, 0) if mode == "RGB" else 99, (0, 4, 8, 8))
    image.save(tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    refused("transparent in places", source="folder", path=str(tmp_path))
    expected = 1 if mode == "L" else 3
    assert pixel(tmp_path, background="white") == [255] * expected
    assert pixel(tmp_path, channels=4)[3] == 0


def test_transparent_arrays_are_as_pictures(tmp_path: Path) -> None:
    levels = np.full((1, 8, 8, 4), (255, 0, 0, 51), np.uint8)
    np.savez(tmp_path / "a.npz", images=levels)
    path = str(tmp_path / "a.npz")
    refused("transparent in places", source="npz", path=path, channels=3)
    for options in ({"background": "white"}, {"background": "white", "channels": 3}):
        shown = load_data("npz", path, **options).images[0, :, 0, 0]
        assert ((shown + 1) * 127.5).round().tolist() == [255, 204, 204]
    assert load_data("npz", path).sample_shape == (4, 8, 8)


def test_sixteen_bits_are_read_in_the_range_that_is_given(tmp_path: Path) -> None:
    values = np.array([0, 1000, 2000, 4000], np.uint16).repeat(16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a.png")
    refused("mode I;16, here from 0 to 4000", "data.range", source="folder", path=str(tmp_path))
    images = load_data("folder", str(tmp_path), range=[0, 4000]).images
    levels = ((images + 1) * 127.5).round().flatten()[::16]
    assert levels.tolist() == [0, 64, 128, 255]  # 63.75 and 127.5 to even
    words = "from 0 to 4000, beyond data.range = [0, 1000]"
    refused("the image", words, source="folder", path=str(tmp_path), range=[0, 1000])


def test_floats_of_a_tiff_are_read_in_the_range_that_is_given(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.2, np.float32)).save(tmp_path / "a.tif")
    assert pixel(tmp_path, range=[0, 1]) == [51]


def test_class_masks_are_noticed_and_stretched(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.eye(8, dtype=np.uint8)[..., None])
    sentence = refused("level 1 of 255 only", source="folder", path=str(tmp_path))
    assert "data.range=[0, 1]" in sentence
    expected = torch.eye(8) * 2 - 1
    assert load_data("folder", str(tmp_path), range=[0, 1]).images[0, 0].equal(expected)
    assert pixel(tmp_path, range=[0, 255]) == [1]
    refused("8 bits a channel", source="folder", path=str(tmp_path), range=[0, 65535])


def test_a_range_of_levels_leaves_alpha_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.full((8, 8, 4), (50, 100, 0, 7), np.uint8))
    assert pixel(tmp_path, range=[0, 100]) == [128, 255, 0, 7]


def test_sixteen_bit_colours_have_the_range_of_their_type(tmp_path: Path) -> None:
    """Pillow has no mode for them; the file is written by hand."""
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    line = b"\0" + struct.pack(">3H", 65535, 32896, 0) * 8
    content = chunk(b"IHDR", struct.pack(">2I5B", 8, 8, 16, 2, 0, 0, 0))
    content += chunk(b"IDAT", zlib.compress(line * 8)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert pixel(tmp_path) == [255, 128, 0]  # 32896 / 257 = 128


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_several_frames_are_refused_or_the_first_is_taken(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), (level, level, level)) for level in (40, 200)]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    words = (f"{name} has several frames or pages", "data.frames=first")
    refused(*words, source="folder", path=str(tmp_path))
    assert pixel(tmp_path, frames="first") == [40, 40, 40]


def test_the_previews_of_a_camera_are_no_frames(tmp_path: Path) -> None:
    photo, preview = (Image.new("RGB", (8, 8), (level,) * 3) for level in (40, 200))
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    assert pixel(tmp_path) == [40, 40, 40]


def test_colours_of_a_printer_are_pillows(tmp_path: Path) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 51))  # red, a fifth of black on it
    image.save(tmp_path / "a.tif")
    assert pixel(tmp_path) == [204, 0, 0]


def test_damaged_images_are_skipped_if_asked(tmp_path: Path) -> None:
    levels = random_levels(4, 16, 16, 3)
    for i, name in enumerate(("ant/a.png", "ant/b.png", "bee/a.png", "bee/b.png")):
        write(tmp_path / name, levels[i])
    (tmp_path / "ant" / "b.png").write_bytes(png(levels[1])[:200])
    (tmp_path / "bee" / "a.png").write_bytes(b"hello")
    data = load_data("folder", str(tmp_path), unreadable="skip")
    assert data.images.equal(as_floats(levels)[[0, 3]])
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]
    bad = tmp_path / "ant" / "b.png"
    assert f"skipped 2 that cannot be read (such as {bad})" in data.notes
    refused("b.png cannot be read", "data.unreadable=skip", source="folder", path=str(tmp_path))


def test_damaged_images_of_a_large_folder_are_skipped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = random_levels(3, 8, 8, 3)
    for i, image in enumerate(levels):
        write(tmp_path / f"{i}.png", image)
    (tmp_path / "1.png").write_bytes(b"")
    monkeypatch.setattr(decode, "IN_MEMORY", 1)
    data = load_data("folder", str(tmp_path), unreadable="skip")
    assert data.rows(torch.tensor([1, 0])).equal(as_floats(levels)[[2, 0]])
    assert data.notes[0] == "8-bit levels, decoded when needed"


def test_if_all_images_are_damaged_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    words = ("None of the 1 images", "a.png cannot be read")
    refused(*words, source="folder", path=str(tmp_path), unreadable="skip")


def test_opaque_alpha_does_not_hide_that_all_colours_are_dark(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.full((8, 8, 4), (1, 0, 2, 255), np.uint8))
    refused("level 2 of 255 only", source="folder", path=str(tmp_path))
