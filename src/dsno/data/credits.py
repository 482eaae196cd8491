"""Whom the data that come with a package are from, and under which licence."""

from __future__ import annotations

from collections.abc import Mapping

CREDITS: Mapping[str, str] = {
    "digits": (
        "Optical Recognition of Handwritten Digits (UCI Machine Learning Repository, CC BY 4.0), "
        "as scikit-learn has it"
    ),
    "emoji": (
        "Twemoji (copyright Twitter, Inc and other contributors, graphics licensed under CC BY "
        "4.0: https://creativecommons.org/licenses/by/4.0/), resized"
    ),
}
"""By `data.source`, of those that need no path."""
