"""Bytes, modes and pixel positions of drawn images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.support.errors import InputError, WorkError
from dsno.support.images import grid, grid_size, save_png, to_pil, to_uint8


def test_range_is_mapped_to_bytes_with_rounding_and_clamping() -> None:
    values = torch.tensor([-7.0, -1.0, -0.999, -0.5, 0.0, 0.5, 1.0, 7.0, float("inf")])
    levels = to_uint8(values.reshape(1, 1, 1, -1)).ravel()
    assert levels.dtype == np.uint8
    assert levels.tolist() == [0, 0, 0, 64, 128, 191, 255, 255, 255]


def test_every_byte_survives_a_round_trip() -> None:
    levels = torch.arange(256)
    again = to_uint8((levels / 127.5 - 1).reshape(1, 1, 16, 16))
    assert again.ravel().tolist() == levels.tolist()


def test_channels_go_last_without_mixing_the_axes() -> None:
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) / 60 - 1
    array = to_uint8(images)
    assert array.shape == (2, 4, 5, 3)
    expected = ((images[1, 2, 3, 4] + 1) * 127.5).round()
    assert array[1, 3, 4, 2] == int(expected)


def test_half_precision_and_gradients_are_accepted() -> None:
    images = torch.full((1, 1, 2, 2), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert to_uint8(images).ravel().tolist() == [191] * 4


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_mode_follows_the_number_of_channels(channels: int, mode: str) -> None:
    images = to_pil(torch.zeros(3, channels, 4, 6))
    assert [(image.mode, image.size) for image in images] == [(mode, (6, 4))] * 3
    assert grid(torch.zeros(3, channels, 4, 6)).mode == mode


@pytest.mark.parametrize("shape", [(1, 0, 4, 4), (1, 5, 4, 4), (3, 4, 4), (1, 1, 1, 4, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    for function in (to_uint8, to_pil, grid):
        with pytest.raises(InputError, match="C in 1 .. 4"):
            function(torch.zeros(shape))


def test_nan_is_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        to_uint8(torch.full((1, 1, 2, 2), float("nan")))


def test_grid_places_every_pixel() -> None:
    levels = torch.tensor([[[0, 10], [20, 30]], [[40, 50], [60, 70]], [[80, 90], [100, 110]]])
    picture = np.asarray(grid((levels / 127.5 - 1).unsqueeze(1), 2, scale=2, gap=1))
    w = 255
    assert picture.tolist() == [
        [0, 0, 10, 10, w, 40, 40, 50, 50],
        [0, 0, 10, 10, w, 40, 40, 50, 50],
        [20, 20, 30, 30, w, 60, 60, 70, 70],
        [20, 20, 30, 30, w, 60, 60, 70, 70],
        [w] * 9,
        [80, 80, 90, 90, w, w, w, w, w],
        [80, 80, 90, 90, w, w, w, w, w],
        [100, 100, 110, 110, w, w, w, w, w],
        [100, 100, 110, 110, w, w, w, w, w],
    ]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((64, 1, 8, 8), (8 * 48 + 7 * 2, 8 * 48 + 7 * 2)),  # scale 6
        ((5, 3, 32, 32), (3 * 64 + 2 * 2, 2 * 64 + 2)),  # scale 2; three columns, two rows
        ((1, 3, 64, 64), (64, 64)),  # already large
    ],
)
def test_default_grid_is_square_with_cells_of_at_least_48_pixels(
    shape: tuple[int, ...], size: tuple[int, int]
) -> None:
    assert grid(torch.zeros(shape)).size == size
    assert grid_size(shape[0], *shape[2:]) == size


@pytest.mark.parametrize(
    "wrong", [{"columns": 0}, {"columns": 2.5}, {"scale": 0}, {"scale": True}, {"gap": -1}]
)
def test_impossible_layouts_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"The {next(iter(wrong))} of a grid must be "):
        grid(torch.zeros(1, 1, 2, 2), **wrong)
    with pytest.raises(InputError, match="at least one"):
        grid(torch.zeros(0, 1, 2, 2))


def test_a_grid_takes_numpys_numbers() -> None:
    images = torch.rand(5, 1, 4, 4) * 2 - 1
    expected = np.asarray(grid(images, 3, scale=2))
    for columns, scale in ((np.int64(3), np.uint8(2)), (3.0, torch.tensor(2))):
        assert np.array_equal(np.asarray(grid(images, columns, scale=scale)), expected)


def test_saved_png_holds_the_same_pixels_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    image = grid(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    save_png(image, tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as again:
        assert again.format == "PNG"
        assert np.array_equal(np.asarray(again), np.asarray(image))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]


def test_a_name_of_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jpg a name that ends in \.png"):
        save_png(Image.new("L", (2, 2)), tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_failed_save_keeps_the_old_file_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")

    def fail(self: Image.Image, target: Path, **options: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(WorkError, match="disk is full"):
        save_png(Image.new("L", (2, 2)), path)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["grid.png"]
