"""Digits, options that a source does not take, and what is remembered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pictures import random_levels, refused, write

from dsno.data.load import load_data


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
