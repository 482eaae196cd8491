"""Durations in words."""

from __future__ import annotations

import math

import pytest

from dsno.support.durations import duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (60 * 90, "90 min"),
        (7200, "2.0 h"),
        (3600 * 1234.5, "1,234.5 h"),
        (math.inf, "unknown"),
        (math.nan, "unknown"),
    ],
)
def test_durations_are_short(seconds: float, words: str) -> None:
    assert duration(seconds) == words
