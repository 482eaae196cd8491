"""Digits, options that a source does not take, and what is remembered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.pictures import random_levels, refused, write

from dsno.data.load import load_data
from dsno.recipes import load_recipe
from dsno.support.errors import InputError


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
        ({"source": "npz", "path": "x", "split": "test"}, ["'npz' takes no split"]),
        ({"source": "folder", "path": "x", "layout": "NHWC"}, ["'folder' takes no layout"]),
        ({"source": "digits", "labels": "none"}, ["'digits' takes no labels"]),
        ({"source": "npz", "path": "x", "labels": "folders"}, ["labels=folders", "none, file"]),
        ({"source": "npz", "path": "x", "range": [1, 0]}, ["[1.0, 0.0]", "the smaller one first"]),
        ({"source": "npz", "path": "x", "background": "wheat0"}, ["'wheat0' is no colour"]),
        ({"source": "npz", "path": "x", "background": "red", "channels": 4}, ["leave one out"]),
        ({"source": "npz", "path": "x", "classes": ["a", "a"]}, ["each only once"]),
        ({"source": "npz", "path": "x", "sizes": 3}, ["did you mean 'size'"]),
        ({"source": "digits", "classes": 9}, ["is 9, but there are 9 classes"]),
        ({"source": "folder"}, ["'folder' needs a path"]),
        ({"source": "digits", "size": 7}, ["'data.size'", "8, not 7"]),
        ({"source": "digits", "size": 257}, ["256, not 257"]),
        ({"source": "digits", "channels": 0}, ["'data.channels'", "1, not 0"]),
        ({"source": "digits", "channels": 5}, ["4, not 5"]),
    ],
)
def test_options_that_cannot_be_are_refused(options: Mapping[str, Any], words: list[str]) -> None:
    refused(*words, **options)


def test_digits_are_sixteenths_as_scikit_learn_has_them() -> None:
    from sklearn.datasets import load_digits

    levels = torch.from_numpy(load_digits().images).float()[:, None]
    assert load_data("digits").images.equal(levels / 8 - 1)


def test_classes_get_the_names_that_are_given() -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    digits = load_data("digits", classes=names)
    assert digits.class_names == tuple(names)
    assert digits.labels is not None
    assert digits.labels[:4].tolist() == [0, 1, 2, 3]


def test_one_line_says_what_was_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, level in (("cat/a.png", 40), ("dog/a.png", 200), ("cat/b.png", 60)):
        write(tmp_path / "pets" / name, np.full((8, 10, 3), level, np.uint8))
    for name in ("notes.txt", ".DS_Store", "cat/c.gif", "dog/d.gif"):
        (tmp_path / "pets" / name).write_text("x")
    load_data("folder", str(tmp_path / "pets"))
    assert capsys.readouterr().err == (
        "data: pets: 3 images of 10x8 pixels, RGB; 2 classes: cat (2), dog (1); 8-bit levels from "
        "40 to 200; labels from the folders; "
        "skipped 1 hidden (such as .DS_Store), 2 .gif, 1 .txt\n"
    )
    load_data("folder", str(tmp_path / "pets"))  # remembered
    assert capsys.readouterr().err == ""


def test_the_line_names_ten_classes_and_counts_those_without_an_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.full((2, 8, 8), 0.5, np.float32)
    np.savez(tmp_path / "a.npz", images=images, labels=[11, 0], names=[1])
    load_data("npz", str(tmp_path / "a.npz"))
    assert capsys.readouterr().err == (
        "data: a: 2 images of 8x8 pixels, grey; 12 classes, 10 of them without an image: 0 (1), "
        "1 (0), 2 (0), 3 (0), 4 (0), 5 (0), 6 (0), 7 (0), 8 (0), 9 (0) and 2 more; "
        "array 'images'; float32 from 0.5 to 0.5, 0 is black and 1 is white; "
        "labels from array 'labels'; left out names\n"
    )


def test_every_key_can_be_given_on_the_command_line() -> None:
    texts = [
        *("data.source=npz", "data.path=a.npz", "data.labels=none", "data.classes=[cat, dog]"),
        *("data.range=[0, 65535]", "data.layout=NCHW", "data.background=white"),
        *("data.frames=first", "data.unreadable=skip"),
    ]
    data = load_recipe("digits", texts).data
    assert data is not None
    assert (data.labels, data.classes, data.range) == ("none", ("cat", "dog"), (0, 65535))
    assert (data.layout, data.background) == ("NCHW", "white")
    assert (data.frames, data.unreadable) == ("first", "skip")
    number = load_recipe("digits", ["data.classes=10"]).data
    assert number is not None
    assert number.classes == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data.classes=0", "'data.classes' should be"),
        ("data.range=[0]", "'data.range"),
        ("data.range=[.inf, 1]", "`data.range`"),
        ("data.labels=folder", "'data.labels' should be 'auto', 'none', 'folders' or 'file'"),
        ("data.background=wheat0", "'wheat0' is no colour; give a name such as white"),
    ],
)
def test_a_key_that_cannot_be_is_refused_with_the_recipe(text: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        load_recipe("digits", [text])
