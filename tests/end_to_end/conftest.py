"""Runs of the whole, whose reports are not what is tested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.light_reports import make_light


@pytest.fixture(autouse=True, scope="module")
def _light_reports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make_light(patch)
        yield
