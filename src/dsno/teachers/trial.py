"""A trial of a teacher: what its files only claim, one forward pass shows."""

from __future__ import annotations

import torch
from torch import Tensor

from dsno.backbones.safe_loading import first_line
from dsno.diffusion.conditions import CLASS_LABELS
from dsno.support import seeds
from dsno.support.errors import InputError
from dsno.teachers.store import Teacher

CROP = 8
"""Latents a side that are decoded: an autoencoder takes any size, and a small one is quick."""
WRONG_SIZE = "check its configuration, or give the size of its samples with image_size=N"


def try_out(teacher: Teacher, source: str, remedy: str = WRONG_SIZE) -> Teacher:
    """Denoise pure noise once, with every condition the teacher takes, and decode it.

    Args:
        teacher: any; what it computes is thrown away.
        source: where it came from, for errors.
        remedy: what the user can do about a network that fails.

    Returns:
        The same teacher.

    Raises:
        InputError: if its network or autoencoder fails on samples of its shape, or gives an output
            of another shape or that is not finite.
    """
    denoiser, condition = teacher.denoiser, _every_condition(teacher)
    count = 1 if condition is None else len(next(iter(condition.values())))
    noise = seeds.item_noise(0, range(count), denoiser.sample_shape)
    one = torch.ones((), dtype=torch.float64)
    size = "x".join(map(str, denoiser.sample_shape))
    try:
        with torch.no_grad():
            denoised = denoiser(noise * denoiser.schedule.sigma(one).float(), one, condition)
    except Exception as error:  # whatever a network makes of a shape that is not its own
        raise InputError(
            f"The network of {source} fails on a sample of {size} ({_reason(error)}); {remedy}."
        ) from None
    if not denoised.isfinite().all():
        raise InputError(
            f"The network of {source} gives numbers that are not finite for a sample of {size}; "
            "check its weights."
        )
    if teacher.latents is not None:
        try:
            teacher.latents.decode(denoised[:1, :, :CROP, :CROP])
        except Exception as error:  # as above
            raise InputError(
                f"The autoencoder of {source} cannot decode the network's latents of {size} "
                f"({_reason(error)}); check that they belong together."
            ) from None
    return teacher


def _every_condition(teacher: Teacher) -> dict[str, Tensor] | None:
    """Conditions of a batch: the last class and the null class, or an empty prompt."""
    if teacher.num_classes is None or teacher.text is not None:
        return teacher.example_condition()
    labels = [teacher.num_classes - 1]
    if teacher.null_class is not None:
        labels.append(teacher.null_class)
    return {CLASS_LABELS: torch.tensor(labels)}


def _reason(error: Exception) -> str:
    if isinstance(error, InputError):
        return first_line(error)
    return f"{type(error).__name__}: {first_line(error)}"
