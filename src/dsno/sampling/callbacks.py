"""`callback_on_step_end`, as diffusers' pipelines call it: after each step, with the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dsno.diffusion.solvers import OnStep
from dsno.support.errors import InputError

LATENTS = "latents"
StepEnd = Callable[[Any, int, Tensor, dict[str, Any]], Any]
"""(pipeline, index of the step, time at which it evaluated a network, {"latents": x}) -> the same
dictionary, with another state if the sampling shall go on from that; None leaves it as it is."""


def check_callback(
    callback: Any, tensor_inputs: Sequence[str] | None, steps: int
) -> StepEnd | None:
    """The callback, if it can be called as it was asked for.

    Args:
        callback: a function, or one of the objects of `diffusers.callbacks`, or None.
        tensor_inputs: what it wants to see; None for what an object itself says, or the state.
        steps: of the call.

    Raises:
        InputError: if it is no function, wants to see something else than the state, or there is
            one step alone.
    """
    if callback is None:
        return None
    if not callable(callback):
        raise InputError(f"callback_on_step_end must be a function, not {callback!r:.60}.")
    if steps == 1:
        raise InputError(
            "One step is one evaluation with nothing in between: leave out callback_on_step_end, "
            "or give num_inference_steps of 2 or more."
        )
    # PipelineCallback and MultiPipelineCallbacks of diffusers say it themselves
    wanted = getattr(callback, "tensor_inputs", tensor_inputs) or (LATENTS,)
    if other := [name for name in wanted if name != LATENTS]:
        raise InputError(
            f"A callback of this pipeline sees 'latents', not {other[0]!r:.60}: the condition and "
            "the guidance are the same in all steps."
        )
    step_end: StepEnd = callback
    return step_end


def on_step(pipeline: Any, callback: StepEnd | None) -> OnStep | None:
    """What the solver calls after each step so that the callback is called as in diffusers.

    The callback raises an InputError if it returns something else than its dictionary, or a state
    of another shape.
    """
    if callback is None:
        return None
    index = -1

    def after(time: float, state: Tensor) -> Tensor:
        nonlocal index
        index += 1
        returned = callback(pipeline, index, torch.tensor(time), {LATENTS: state})
        if returned is None:
            return state
        found = returned.get(LATENTS, state) if isinstance(returned, dict) else returned
        if not isinstance(found, Tensor) or found.shape != state.shape:
            raise InputError(
                "callback_on_step_end must return its dictionary, with 'latents' a tensor of shape "
                f"{tuple(state.shape)}, not {_what(found)}."
            )
        return found if found is state else found.to(state)

    return after


def _what(value: Any) -> str:
    return (
        f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.60}"
    )
