"""Checks of values against types are made once."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dsno.support.adapters import adapter


def test_a_check_is_made_once_for_each_type() -> None:
    assert adapter(dict[str, int]) is adapter(dict[str, int])
    assert adapter(dict[str, int]) is not adapter(dict[str, str])
    assert adapter(dict[str, int]).validate_python({"a": 1}) == {"a": 1}
    with pytest.raises(ValidationError):
        adapter(dict[str, str]).validate_python({"a": 1})
