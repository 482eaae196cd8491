"""Samples in files that the field's tools, and this package's own loaders, read."""

from __future__ import annotations

import json
import weakref
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.data.load import load_data
from dsno.sampling.writers import MAX_GRID_PIXELS, check_target, opened
from dsno.support.errors import InputError, WorkError
from dsno.support.images import grid, to_uint8

LEVELS = torch.arange(5 * 3 * 8 * 8).reshape(5, 3, 8, 8) % 256
SAMPLES = LEVELS / 127.5 - 1
LABELS = torch.tensor([3, 0, 2, 2, 1])


def write(path: Path, *, labels: bool = False, raw: bool = False, samples: Any = SAMPLES) -> Path:
    """Write the samples in batches of 2, 2 and 1."""
    with opened(path, len(samples), raw=raw) as file:
        for first in range(0, len(samples), 2):
            rows = slice(first, first + 2)
            file.write(samples[rows], LABELS[rows] if labels else None)
    return path


def read_as_adm(path: Path) -> np.ndarray:
    """`arr_0`, batch by batch from an open entry, as ADM's evaluator reads it.

    Source: openai/guided-diffusion, evaluations/evaluator.py, open_npz_array.
    """
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as entry:
        assert np.lib.format.read_magic(entry) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(entry)
        assert (fortran, dtype) == (False, np.uint8)
        rows = [entry.read(int(np.prod(shape[1:]))) for _ in range(shape[0])]
        return np.stack([np.frombuffer(row, np.uint8).reshape(shape[1:]) for row in rows])


@pytest.mark.parametrize("labels", [False, True])
def test_an_npz_file_has_adms_layout(labels: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "a.npz", labels=labels)
    pixels = LEVELS.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(read_as_adm(path), pixels)
    with np.load(path, allow_pickle=False) as arrays:
        assert list(arrays) == (["arr_0", "arr_1"] if labels else ["arr_0"])
        np.testing.assert_array_equal(arrays["arr_0"], pixels)
        if labels:
            assert arrays["arr_1"].dtype == np.int64
            assert arrays["arr_1"].tolist() == [3, 0, 2, 2, 1]
    data = load_data("npz", str(path))
    torch.testing.assert_close(data.images, SAMPLES)
    if labels:
        assert data.labels is not None
        assert torch.equal(data.labels, LABELS)


@pytest.mark.parametrize("labels", [False, True])
def test_a_folder_has_numbered_images_and_edms_labels(labels: bool, tmp_path: Path) -> None:
    folder = write(tmp_path / "samples", labels=labels)
    names = [f"00000{i}.png" for i in range(5)]
    listed = sorted(path.name for path in folder.iterdir())
    assert listed == ([*names, "dataset.json"] if labels else names)
    for i, name in enumerate(names):
        with Image.open(folder / name) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            np.testing.assert_array_equal(np.asarray(image), LEVELS[i].permute(1, 2, 0).numpy())
    if labels:  # as EDM's dataset.py reads it: dict(labels)[file name]
        found = dict(json.loads((folder / "dataset.json").read_text())["labels"])
        assert [found[name] for name in names] == [3, 0, 2, 2, 1]
    torch.testing.assert_close(load_data("folder", str(folder)).images, SAMPLES)


def test_a_picture_is_the_grid_of_all(tmp_path: Path) -> None:
    with Image.open(write(tmp_path / "a.png")) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(grid(SAMPLES)))


def test_raw_states_are_floats_of_any_shape_and_range(tmp_path: Path) -> None:
    states = torch.randn(5, 7, 2) * 3
    with np.load(write(tmp_path / "a.npz", raw=True, labels=True, samples=states)) as arrays:
        assert list(arrays) == ["states", "class_labels"]
        np.testing.assert_array_equal(arrays["states"], states.numpy())
        assert arrays["class_labels"].tolist() == [3, 0, 2, 2, 1]


def test_grey_and_transparent_samples_keep_their_channels(tmp_path: Path) -> None:
    for channels, mode in ((1, "L"), (2, "LA"), (4, "RGBA")):
        samples = torch.rand(2, channels, 4, 4) * 2 - 1
        folder = write(tmp_path / mode, samples=samples)
        with Image.open(folder / "000001.png") as image:
            assert image.mode == mode
            pixels = np.asarray(image).reshape(4, 4, channels)
        np.testing.assert_array_equal(pixels, to_uint8(samples)[1])
        array = read_as_adm(write(tmp_path / f"{mode}.npz", samples=samples))
        assert array.shape == (2, 4, 4, channels)


@pytest.mark.parametrize("name", ["a.png", "a.npz", "folder"])
def test_what_fails_half_way_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in _files(write(tmp_path / name))}
    half_bad = torch.cat([-SAMPLES[:2], SAMPLES[2:] * float("nan")])
    with pytest.raises(InputError, match="NaN"):
        write(tmp_path / name, samples=half_bad)
    assert {p: p.read_bytes() for p in _files(tmp_path / name)} == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def _files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def test_nothing_stands_at_its_name_before_it_is_whole(tmp_path: Path) -> None:
    for name in ("a.png", "a.npz", "folder"):
        with opened(tmp_path / name, 5) as file:
            file.write(SAMPLES, None)
            assert not (tmp_path / name).exists()
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["a.npz", "folder"])
def test_batches_are_let_go_as_they_are_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def watched(images: torch.Tensor) -> np.ndarray:
        array = to_uint8(images).copy()
        made.append(weakref.ref(array))
        return array

    monkeypatch.setattr("dsno.sampling.writers.to_uint8", watched)
    with opened(tmp_path / name, 5) as file:
        for first in range(5):
            file.write(SAMPLES[first : first + 1], None)
            assert [ref() for ref in made] == [None] * (first + 1)


def test_earlier_samples_are_replaced_and_leave_no_trace(tmp_path: Path) -> None:
    write(tmp_path / "folder", labels=True)
    write(tmp_path / "folder", samples=SAMPLES[:2])
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["000000.png", "000001.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, target: Path, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(WorkError, match="disk is full"):
        write(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "shape", "raw", "count", "says"),
    [
        ("a.jpg", (3, 4, 4), False, 1, r"a \.png or \.npz file or a folder, not to 'a\.jpg'"),
        ("a.png", (3, 4, 4), True, 1, r"Raw states are written to an \.npz file"),
        ("a.npz", (2,), False, 1, r"shape \(2,\) are not images.*--raw"),
        ("a.npz", (5, 4, 4), False, 1, r"shape \(5, 4, 4\) are not images.*--raw"),
        ("a.png", (3, 64, 64), False, 50_000, r"14,782 x 14,782 pixels, too many"),
    ],
)
def test_what_cannot_be_written_is_refused_first(
    name: str, shape: tuple[int, ...], raw: bool, count: int, says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        check_target(tmp_path / name, count, shape, raw=raw)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("samples-v1.0", ["000000.png", "000001.png"]),
        ("run.2", ["000000.png", "000001.png"]),
        ("GRID.PNG", None),
        ("x.NPZ", None),
    ],
)
def test_a_name_with_a_dot_or_in_capitals_is_what_it_says(
    name: str, files: list[str] | None, tmp_path: Path
) -> None:
    path = tmp_path / name
    check_target(path, 2, (1, 8, 8), raw=False)
    with opened(path, 2) as target:
        target.write(torch.zeros(2, 1, 8, 8), None)
    if files is not None:
        assert sorted(p.name for p in path.iterdir()) == files
    elif name.endswith("PNG"):
        with Image.open(path) as image:
            assert image.format == "PNG"
    else:
        with np.load(path) as arrays:
            assert arrays["arr_0"].shape == (2, 8, 8, 1)


def test_the_largest_picture_is_one_that_pillow_opens() -> None:
    assert MAX_GRID_PIXELS == Image.MAX_IMAGE_PIXELS


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"other files than samples, such as notes\.txt"):
        check_target(tmp_path, 1, (3, 4, 4), raw=False)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        check_target(tmp_path / "file", 1, (3, 4, 4), raw=False)
