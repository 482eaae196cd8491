"""Arguments of diffusers' other pipelines, by which this one is called too: what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from dsno.support.errors import InputError, closest

_TIMES = (
    "the times of a student were chosen when it was trained: leave it out, or ask for states at "
    "times of your own by return_trajectory=True and times=[...]"
)
_NEGATIVE = (
    "guidance, with its negative prompt, was chosen when the trajectories were collected and is "
    "distilled in: leave it out, or distil again with collect.negative_prompt"
)
_IMAGE = "a sample begins from noise, not from an image: leave it out"
REFUSED: Mapping[str, str] = {
    "timesteps": _TIMES,
    "sigmas": _TIMES,
    "negative_prompt": _NEGATIVE,
    "negative_prompt_embeds": _NEGATIVE,
    "image": _IMAGE,
    "mask_image": _IMAGE,
    "strength": _IMAGE,
    "ip_adapter_image": _IMAGE,
    "ip_adapter_image_embeds": _IMAGE,
    "eta": "sampling adds no noise: leave it out",
    "guidance_rescale": "guidance is distilled in as the teacher had it: leave it out",
    "clip_skip": "the text encoder is used as the teacher used it: leave it out",
    "cross_attention_kwargs": "the operator's layers take no further arguments: leave it out",
    "callback": "it is called callback_on_step_end(pipeline, step, time, tensors) here",
    "callback_steps": "callback_on_step_end is called after each step: leave it out",
}
"""What is not asked of this pipeline, and why."""
WITHOUT_EFFECT: Mapping[str, Any] = {"eta": 0, "guidance_rescale": 0, "callback_steps": 1}
"""Values that say what happens in any case."""
SIZES = ("height", "width")


def check_others(
    others: Mapping[str, Any],
    image_shape: Callable[[], Sequence[int]],
    known: Collection[str],
) -> None:
    """Refuse arguments that this pipeline does not have, unless they ask for what it does anyway.

    Args:
        others: by name. None is what is given where nothing is wanted.
        image_shape: the shape of one decoded sample, (C, H, W) of an image.
        known: the pipeline's own arguments.

    Raises:
        InputError: saying what to do instead.
    """
    for name, value in others.items():
        if name not in REFUSED and name not in SIZES:
            raise InputError(f"Unknown argument {name!r} of the pipeline: {closest(name, known)}")
        if value is None or (name in WITHOUT_EFFECT and value == WITHOUT_EFFECT[name]):
            continue
        if name in REFUSED:
            raise InputError(f"This pipeline takes no {name}: {REFUSED[name]}.")
    asked = {name: others[name] for name in SIZES if others.get(name) is not None}
    if asked:
        shape = tuple(image_shape())
        sizes = dict(zip(SIZES, shape[-2:], strict=True)) if len(shape) == 3 else {}
        if wrong := [name for name in asked if sizes.get(name) != asked[name]]:
            what = f"images of {shape[-2]} x {shape[-1]} (height x width)" if sizes else "no images"
            raise InputError(
                f"This model makes {what}: leave out {wrong[0]}={asked[wrong[0]]!r:.60}."
            )
