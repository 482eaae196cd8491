"""What the page is asked for: read from a browser, so nothing of it is taken for granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from dsno.recipes.choices import Solver
from dsno.support.errors import InputError, one_of
from dsno.support.scalars import as_real, as_whole, whole

LARGEST_SEED = 2**53 - 1
"""Whole numbers beyond it are rounded by a browser."""
LONGEST_PROMPT = 1000
"""Characters of a prompt; encoders cut it off earlier."""
FROM_DATA, IN_TURN = "as in the data", "each in turn"
"""Choices of the class beside the classes themselves."""

Fields = Mapping[str, Any]
"""Values of the page's fields by name."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for at most, and how many may wait.

    Attributes:
        images: of a request, all of which are made in one batch.
        steps: of the teacher's solver.
        queue: requests that wait while one is worked on.

    Raises:
        InputError: if one is smaller than 1.
    """

    images: int = 64
    steps: int = 100
    queue: int = 16

    def __post_init__(self) -> None:
        whole(self.images, "limit of images (--max-images)")
        whole(self.steps, "limit of steps (--max-steps)")
        whole(self.queue, "number of requests that may wait (--max-queue)")


@dataclass(frozen=True)
class Offer:
    """What a model can be asked for.

    Attributes:
        classes: how many it knows; None if it is unconditional.
        guidance: the range of scales it was trained at; None if the scale is no input.
        is_textual: whether it takes a prompt.
        has_teacher: whether its teacher is there.
    """

    classes: int | None
    guidance: tuple[float, float] | None
    is_textual: bool
    has_teacher: bool

    @property
    def labels(self) -> list[str]:
        """The choices of the class, none of an unconditional model."""
        if self.classes is None:
            return []
        return [FROM_DATA, IN_TURN, *map(str, range(self.classes))]


@dataclass(frozen=True)
class Request:
    """Which samples are wanted.

    Attributes:
        seed: of the noise, and of classes that are drawn as in the data.
        count: how many.
        label: one of `Offer.labels`; None of an unconditional model.
        guidance: the scale; None if it is no input.
        prompt: text; None if the model takes none.
    """

    seed: int
    count: int
    label: str | None = None
    guidance: float | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Interpolation:
    """From the noises of a request to those of another seed.

    Attributes:
        seed: the other one.
        points: noises of a row, both ends included.
    """

    seed: int
    points: int


def read_request(fields: Fields, offer: Offer, limits: Limits) -> Request:
    """Which samples the fields `seed`, `count`, `label`, `guidance` and `prompt` ask for.

    Raises:
        InputError: if a field is missing or wrong, saying which and what it may be.
    """
    return Request(
        seed=_number(fields, "seed", "seed", 0, LARGEST_SEED),
        count=_number(fields, "count", "number of images", 1, limits.images),
        label=None if offer.classes is None else _label(fields.get("label"), offer),
        guidance=_guidance(fields, offer.guidance),
        prompt=_prompt(fields) if offer.is_textual else None,
    )


def read_solver(fields: Fields, limits: Limits) -> tuple[Solver, int]:
    """The teacher's solver and its number of steps, from the fields `solver` and `steps`.

    Raises:
        InputError: as `read_request`.
    """
    steps = _number(fields, "steps", "number of the teacher's steps", 1, limits.steps)
    return one_of(str(fields.get("solver")), get_args(Solver), "solver"), steps


def read_interpolation(
    fields: Fields, offer: Offer, limits: Limits
) -> tuple[Request, Interpolation]:
    """What to interpolate: `rows` samples of the seed, towards `other_seed` at `points` points.

    Raises:
        InputError: as `read_request`, or if it is more images than a request may ask for.
    """
    rows = _number(fields, "rows", "number of rows", 1, limits.images)
    points = _number(fields, "points", "number of images in a row", 2, limits.images)
    if rows * points > limits.images:
        raise InputError(
            f"{rows:,} rows of {points:,} images are {rows * points:,}, but this page makes at "
            f"most {limits.images:,} at a time; ask for fewer."
        )
    request = read_request({**fields, "count": rows}, offer, limits)
    return request, Interpolation(
        _number(fields, "other_seed", "second seed", 0, LARGEST_SEED), points
    )


def _number(fields: Fields, name: str, what: str, least: int, most: int) -> int:
    value = fields.get(name)
    allowed = f"a whole number from {least} to {most:,}"
    if value is None or value == "":
        raise InputError(f"The {what} is missing; give {allowed}.")
    number = as_whole(value)
    if number is None or not least <= number <= most:
        raise InputError(f"The {what} must be {allowed}, not {value!r:.60}.")
    return number


def _label(value: Any, offer: Offer) -> str:
    if value not in offer.labels:
        raise InputError(
            f"The class must be {FROM_DATA!r}, {IN_TURN!r} or a number from 0 to "
            f"{len(offer.labels) - 3}, not {value!r:.60}."
        )
    return str(value)


def _guidance(fields: Fields, trained: tuple[float, float] | None) -> float | None:
    if trained is None:
        return None
    low, high = trained
    scale = as_real(fields.get("guidance"))
    if scale is None or not low <= scale <= high:
        raise InputError(
            f"The guidance scale must be a number from {low:g} to {high:g}, the range this model "
            f"was trained at, not {fields.get('guidance')!r:.60}."
        )
    return scale


def _prompt(fields: Fields) -> str:
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError("This model draws what a prompt says: write one.")
    if len(prompt) > LONGEST_PROMPT:
        raise InputError(
            f"The prompt has {len(prompt):,} characters; {LONGEST_PROMPT:,} are the most."
        )
    return prompt.strip()
