"""What the user says of a source of a teacher, beside what it says itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsno.diffusion.schedules import NoiseSchedule


@dataclass(frozen=True)
class TeacherOptions:
    """What the user says of a source; None for "as it says".

    Attributes:
        prediction_type, schedule, sigma_data: see `Preconditioning`.
        clip_sample: clip D to [-1, 1].
        null_class: the label that means "no class".
        image_size: of the samples, in the network's own pixels or latents: of a square, or height
            and width.
        scheduler: fields in place of those of a diffusers scheduler, see `frozen_fields`.
    """

    prediction_type: str | None = None
    schedule: NoiseSchedule | None = None
    sigma_data: float | None = None
    clip_sample: bool | None = None
    null_class: int | None = None
    image_size: int | tuple[int, int] | None = None
    scheduler: tuple[tuple[str, Any], ...] = ()


def frozen_fields(fields: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    """A scheduler's fields as `TeacherOptions` holds them: hashable, with tuples for lists."""
    return tuple((name, _frozen(value)) for name, value in (fields or {}).items())


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return frozen_fields(value)
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
