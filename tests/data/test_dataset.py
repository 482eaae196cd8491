"""Rows, mirroring and class shares of a data set."""

from __future__ import annotations

import torch
from tests.pictures import as_floats, random_levels

from dsno.data.dataset import Dataset


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
