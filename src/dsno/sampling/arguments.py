"""The arguments of a pipeline's call: how many samples, from which noise, under which condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dsno.diffusion.time_grids import MOST_STEPS
from dsno.support.errors import InputError
from dsno.support.scalars import as_real, whole

Generators = Sequence[torch.Generator | None]
"""One for all samples, or one for each."""


def count_samples(
    batch_size: Any,
    prompt_count: int | None,
    drawn: Mapping[str, Any],
    conditions: Mapping[str, Any],
) -> int:
    """The number of samples that all arguments agree on.

    Args:
        batch_size: asked for, or None.
        prompt_count: images of all prompts together, or None if the prompts do not decide.
        drawn: arguments of which every sample has its own, such as its noise.
        conditions: arguments of which one, alone or in a list, is for all samples.

    Raises:
        InputError: if they disagree, or it is no whole number of at least 1.
    """
    sizes = {
        name: n for name, value in conditions.items() if (n := _length(value)) not in (None, 1)
    }
    sizes |= {name: n for name, value in drawn.items() if (n := _length(value)) is not None}
    if prompt_count is not None:
        sizes["prompts"] = prompt_count
    if batch_size is not None:
        sizes["batch_size"] = whole(batch_size, "number of samples")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"The numbers of samples disagree: {listed}.")
    return whole(next(iter(sizes.values()), 1), "number of samples")


def _length(value: Any) -> int | None:
    """Rows of a list, array or tensor; None for one value."""
    if value is None or isinstance(value, str) or getattr(value, "ndim", 1) == 0:
        return None
    return len(value) if hasattr(value, "__len__") else None


def prompt_list(prompt: Any) -> list[str] | None:
    """One prompt or several as a list.

    Raises:
        InputError: if they are not text.
    """
    if prompt is None:
        return None
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    for text in prompts:
        if not isinstance(text, str):
            raise InputError(f"A prompt must be text, not {text!r:.60}.")
    return [str(text) for text in prompts]


def check_prompts(
    prompts: list[str] | None, embeds: Any, *, is_textual: bool
) -> list[str] | Tensor | None:
    """What the samples are conditioned on: prompts, or their embeddings (n, L, D).

    Returns:
        None if the model is not conditioned on text.

    Raises:
        InputError: if it is and none or both are given, if it is not and one is, or for embeddings
            of another shape.
    """
    if not is_textual:
        if prompts is not None or embeds is not None:
            raise InputError("This model is not conditioned on text: it takes no prompt.")
        return None
    if (prompts is None) == (embeds is None):
        raise InputError("This model is conditioned on text: give either prompt or prompt_embeds.")
    if prompts is not None:
        return prompts
    embedded = torch.as_tensor(embeds)
    if embedded.ndim != 3:
        raise InputError(
            "Embeddings of prompts have shape (batch, tokens, channels), not "
            f"{tuple(embedded.shape)}."
        )
    return embedded


def check_repeats(num_images_per_prompt: Any, *, is_textual: bool) -> int:
    """The number of samples of each prompt; None is one.

    Raises:
        InputError: if it is no whole number of at least 1, or not 1 where there are no prompts.
    """
    repeats = 1
    if num_images_per_prompt is not None:
        repeats = whole(num_images_per_prompt, "number of images per prompt")
    if repeats > 1 and not is_textual:
        raise InputError(
            "This model is not conditioned on text: give batch_size, not num_images_per_prompt."
        )
    return repeats


def generator_list(generator: Any) -> Generators:
    """None, one generator or a list of them, as a list.

    Raises:
        InputError: for anything else, such as a seed.
    """
    generators = list(generator) if isinstance(generator, list | tuple) else [generator]
    for one in generators:
        is_none = one is None and generator is None
        if not is_none and not isinstance(one, torch.Generator):
            raise InputError(
                "A generator must be a torch.Generator, such as "
                f"torch.Generator().manual_seed(0), not {one!r:.60}."
            )
    if not generators:
        raise InputError("The list of generators is empty; leave it out or give one per sample.")
    return generators


def draw_noise(
    count: int, shape: Sequence[int], generators: Generators, device: torch.device
) -> Tensor:
    """Unit normal noise (count, *shape), float32, on the generators' device; on `device` without.

    With a generator for each sample, sample i is what it would be alone with generator i, as in
    diffusers' `randn_tensor`.
    """
    rows = count // len(generators)
    drawn = [
        torch.randn(
            rows, *shape, generator=g, device=device if g is None else g.device, dtype=torch.float32
        )
        for g in generators
    ]
    return torch.cat([part.to(drawn[0].device) for part in drawn])


def draw_labels(count: int, frequencies: Sequence[float], generators: Generators) -> Tensor:
    """Class labels (count,), int64, with the frequencies of the training data."""
    rows = count // len(generators)
    drawn = []
    for g in generators:
        device = torch.device("cpu") if g is None else g.device
        weights = torch.tensor(frequencies, dtype=torch.float32, device=device)
        drawn.append(torch.multinomial(weights, rows, replacement=True, generator=g))
    return torch.cat([part.to(drawn[0].device) for part in drawn])


def labels(
    given: Any, count: int, frequencies: Sequence[float] | None, generators: Generators
) -> Tensor | None:
    """The class labels of the samples, (count,), int64: those asked for, or drawn.

    Args:
        given: one for all, one per sample, or None.
        count: of samples.
        frequencies: of each class in the training data; None if the model is unconditional.
        generators: one for all samples, or one for each.

    Returns:
        None if the model is unconditional.

    Raises:
        InputError: as `check_labels`.
    """
    if given is not None:
        return check_labels(given, count, None if frequencies is None else len(frequencies))
    return None if frequencies is None else draw_labels(count, frequencies, generators)


def check_labels(given: Any, count: int, classes: int | None) -> Tensor:
    """The class labels asked for, (count,), int64.

    Args:
        given: one for all, or one per sample.
        count: of samples.
        classes: how many the model knows; None if it is unconditional.

    Raises:
        InputError: if they are not whole numbers, or no classes of the model.
    """
    if classes is None:
        raise InputError("This model is unconditional: it takes no class labels.")
    labels = _numbers(given, "Class labels must be whole numbers", count)
    whole_labels = labels.to(torch.int64)
    if labels.dtype == torch.bool or not torch.equal(whole_labels.to(labels.dtype), labels):
        raise InputError(f"Class labels must be whole numbers, not {given!r:.60}.")
    wrong = whole_labels[(whole_labels < 0) | (whole_labels >= classes)]
    if len(wrong):
        raise InputError(
            f"Class {int(wrong[0])} is out of range: the model knows classes 0 to {classes - 1}."
        )
    return whole_labels.expand(count)


def check_guidance(
    given: Any, count: int, trained: float | Sequence[float] | None
) -> Tensor | None:
    """The guidance scale of every sample, (count,), float32; None if it is no input.

    Args:
        given: one for all, or one per sample; the middle of the range if None.
        count: of samples.
        trained: the scale distilled in, the range trained at, or None for no guidance.

    Raises:
        InputError: for a scale that is no input, no number or outside the range.
    """
    if trained is None or isinstance(trained, float | int):
        if given is not None:
            fixed = (
                "has no guidance" if trained is None else f"has guidance {trained:g} distilled in"
            )
            raise InputError(f"This model {fixed}: it takes no guidance_scale.")
        return None
    low, high = trained
    middle = (low + high) / 2
    must = "The guidance scale must be a number, or one per sample"
    scales = _numbers(middle if given is None else given, must, count).to(torch.float32)
    wrong = scales[~((scales >= low) & (scales <= high))]  # NaN too
    if len(wrong):
        raise InputError(
            f"The guidance scale {float(wrong[0]):g} is outside the range this model was trained "
            f"at, {low:g} to {high:g}."
        )
    return scales.expand(count)


def _numbers(given: Any, must: str, count: int) -> Tensor:
    """Numbers as a tensor of one, or of `count`.

    Raises:
        InputError: `must`, and what was given instead.
    """
    try:
        values = torch.as_tensor(given).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{must}, not {given!r:.60}.") from None
    if len(values) not in (1, count) or values.is_complex():
        raise InputError(f"{must}, not of shape {tuple(torch.as_tensor(given).shape)}.")
    return values


def check_times(times: Any) -> Tensor:
    """Times of a trajectory, (n,), float64.

    Raises:
        InputError: if they are no numbers, or none.
    """
    try:
        asked = torch.as_tensor(times, dtype=torch.float64).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"Times must be numbers in [0, 1], not {times!r:.60}.") from None
    if not len(asked):
        raise InputError("The list of times is empty; give at least one, or leave it out.")
    return asked


def trained_guidance(given: Any) -> float | list[float] | None:
    """The guidance of a model: None, the scale distilled in, or the range trained at.

    Raises:
        InputError: if it is neither a number nor two.
    """
    if given is None:
        return None
    one = as_real(given)
    if one is not None:
        return one
    ends = [as_real(end) for end in given] if hasattr(given, "__iter__") else []
    if len(ends) != 2 or None in ends:
        raise InputError(
            f"The guidance scale of a model is a number or a range of two, not {given!r:.60}."
        )
    return [end for end in ends if end is not None]


def check_steps(num_inference_steps: Any) -> int:
    """The number of steps; None is the operator's one.

    Raises:
        InputError: if it is no whole number of at least 1, or too large.
    """
    if num_inference_steps is None:
        return 1
    return whole(num_inference_steps, "number of inference steps", most=MOST_STEPS)
