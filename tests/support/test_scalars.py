"""Numbers of every library are numbers; bools and fractions are no counts."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from dsno.support.errors import InputError
from dsno.support.scalars import as_real, as_whole, whole

EIGHTS = (8, np.int64(8), np.uint8(8), np.array(8), torch.tensor(8), 8.0, np.float32(8))


@pytest.mark.parametrize("value", [*EIGHTS, torch.tensor(8.0), Fraction(8)], ids=repr)
def test_eight_is_eight_in_every_type(value: Any) -> None:
    assert type(whole(value, "count")) is int
    assert whole(value, "count") == 8
    assert type(as_real(value)) is float
    assert as_real(value) == 8.0


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), torch.tensor(True), "8", None, [8], torch.tensor([8]), 8j],
    ids=repr,
)
def test_what_is_no_number_is_refused(value: Any) -> None:
    assert as_whole(value) is None
    assert as_real(value) is None
    with pytest.raises(InputError, match="The count must be a whole number, not "):
        whole(value, "count")


@pytest.mark.parametrize("value", [8.5, float("nan"), float("inf"), Fraction(1, 2)], ids=repr)
def test_a_fraction_is_real_and_not_whole(value: Any) -> None:
    assert as_whole(value) is None
    assert isinstance(as_real(value), float)


def test_a_whole_number_keeps_digits_that_a_float_has_not() -> None:
    assert as_whole(np.int64(2**53 + 1)) == 9007199254740993


def test_the_least_is_allowed_and_less_is_not() -> None:
    assert whole(0, "count", least=0) == 0
    with pytest.raises(InputError, match="The count must be at least 1, not 0"):
        whole(np.int64(0), "count")
