"""What a browser sends is read, or answered with one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from dsno.app.request import (
    Interpolation,
    Limits,
    Offer,
    Request,
    read_interpolation,
    read_request,
    read_solver,
)
from dsno.support.errors import InputError

PLAIN = Offer(classes=None, guidance=None, is_textual=False, has_teacher=False)
CLASSES = Offer(classes=3, guidance=None, is_textual=False, has_teacher=True)
GUIDED = Offer(classes=3, guidance=(1.0, 5.0), is_textual=False, has_teacher=True)
TEXT = Offer(classes=None, guidance=None, is_textual=True, has_teacher=False)
LIMITS = Limits(images=12, steps=20, queue=3)
FIELDS = {"seed": 7, "count": 12, "label": "2", "guidance": 1, "prompt": " a cat "}


@pytest.mark.parametrize(
    ("offer", "expected"),
    [
        (PLAIN, Request(7, 12)),
        (CLASSES, Request(7, 12, label="2")),
        (GUIDED, Request(7, 12, label="2", guidance=1.0)),
        (TEXT, Request(7, 12, prompt="a cat")),
    ],
)
def test_a_request_has_what_the_model_can_be_asked_for(offer: Offer, expected: Request) -> None:
    assert read_request(FIELDS, offer, LIMITS) == expected


def test_numbers_may_come_as_floats() -> None:
    assert read_request({**FIELDS, "seed": 7.0}, PLAIN, LIMITS).seed == 7


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("seed", None, "The seed is missing; give a whole number from 0 to 9,007,199,254,740,991."),
        ("seed", "", "The seed is missing"),
        ("seed", 1.5, "must be a whole number from 0 to 9,007,199,254,740,991, not 1.5."),
        ("seed", -1, "not -1."),
        ("seed", 2**53, "not 9007199254740992."),
        ("seed", True, "not True."),
        ("seed", [1], "not [1]."),
        ("seed", float("nan"), "not nan."),
        ("count", 13, "The number of images must be a whole number from 1 to 12, not 13."),
        ("count", 0, "from 1 to 12, not 0."),
        (
            "label",
            "3",
            "The class must be 'as in the data', 'each in turn' or a number from 0 to 2",
        ),
        ("label", 2, "The class must be"),
        ("label", ["0"], "The class must be"),
        ("guidance", 5.5, "must be a number from 1 to 5, the range this model was trained at, not"),
        ("guidance", float("nan"), "not nan."),
        ("guidance", None, "not None."),
    ],
)
def test_a_wrong_field_is_named_with_what_it_may_be(field: str, value: Any, says: str) -> None:
    with pytest.raises(InputError) as error:
        read_request({**FIELDS, field: value}, GUIDED, LIMITS)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (" ", "This model draws what a prompt says: write one."),
        (None, "write one."),
        ("a" * 1001, "The prompt has 1,001 characters; 1,000 are the most."),
    ],
)
def test_a_prompt_is_text_of_some_length(prompt: Any, says: str) -> None:
    with pytest.raises(InputError) as error:
        read_request({**FIELDS, "prompt": prompt}, TEXT, LIMITS)
    assert says in str(error.value)


def test_the_solver_and_its_steps_are_known_ones() -> None:
    assert read_solver({"solver": "heun", "steps": 20}, LIMITS) == ("heun", 20)
    with pytest.raises(InputError, match="Unknown solver 'euler'"):
        read_solver({"solver": "euler", "steps": 20}, LIMITS)
    with pytest.raises(InputError, match="teacher's steps must be a whole number from 1 to 20, n"):
        read_solver({"solver": "heun", "steps": 21}, LIMITS)


def test_an_interpolation_has_rows_and_points_within_the_limit() -> None:
    fields = {**FIELDS, "other_seed": 8, "rows": 3, "points": 4, "count": 99}
    expected = Request(7, 3, label="2"), Interpolation(8, 4)
    assert read_interpolation(fields, CLASSES, LIMITS) == expected
    with pytest.raises(InputError, match="3 rows of 5 images are 15, but .* at most 12 at a time"):
        read_interpolation({**fields, "points": 5}, CLASSES, LIMITS)
    with pytest.raises(InputError, match="images in a row must be a whole number from 2 to 12"):
        read_interpolation({**fields, "points": 1}, CLASSES, LIMITS)
    with pytest.raises(InputError, match="The second seed is missing"):
        read_interpolation({**fields, "other_seed": None}, CLASSES, LIMITS)


@pytest.mark.parametrize("name", ["images", "steps", "queue"])
def test_limits_are_at_least_one(name: str) -> None:
    with pytest.raises(InputError, match="at least 1, not 0"):
        Limits(**{name: 0})
