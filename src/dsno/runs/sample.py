"""Samples of a trained model's folder, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsno.pipeline import DSNOPipeline
from dsno.support import distributed, seeds
from dsno.support.console import progress
from dsno.support.errors import InputError
from dsno.support.files import replacing
from dsno.support.images import grid, save_png


def sample_model(
    folder: Path,
    files: Sequence[Path],
    *,
    num: int,
    seed: int,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 256,
) -> list[Path]:
    """Sample a model folder and write each of `files`: a .png grid or an .npz of arrays.

    Sample i depends on (seed, i) alone, whatever `num` and `batch_size`; labels and prompts are
    used in turn.

    Raises:
        InputError: for a count below 1, a label out of range, a condition the model does not have,
            a prompt that is missing, or another kind of file.
    """
    if num < 1:
        raise InputError(
            f"The number of samples must be at least 1, not {num}; give --num 1 or more."
        )
    if batch_size < 1:
        raise InputError(f"The batch size must be at least 1, not {batch_size}.")
    for path in files:
        if path.suffix not in (".png", ".npz"):
            raise InputError(f"Samples are written to a .png or .npz file, not {path.name!r}.")
    pipeline = DSNOPipeline.from_pretrained(folder).to(distributed.device())
    shape = pipeline.model.operator.sample_shape
    embeds = _embeds(pipeline, prompts)
    if len(shape) != 3 and any(path.suffix == ".png" for path in files):
        raise InputError(f"Samples of shape {shape} are not images; give an .npz file to --out.")
    frequencies = pipeline.model.config.class_frequencies
    parts: list[Tensor] = []
    kinds: list[Tensor] = []
    with progress("sampling", num, unit="sample") as advance:
        for first in range(0, num, batch_size):
            items = range(first, min(first + batch_size, num))
            noise = seeds.item_noise(seed, items, shape, stream=seeds.SAMPLE)
            given = None if not labels else [labels[i % len(labels)] for i in items]
            if given is None and frequencies is not None:
                given = seeds.item_labels(
                    seed, items, frequencies, stream=seeds.SAMPLE_LABEL
                ).tolist()
            made = pipeline(
                noise=noise,
                class_labels=given,
                prompt_embeds=None if embeds is None else embeds[[i % len(embeds) for i in items]],
                guidance_scale=guidance_scale,
                output_type="pt",
            )
            assert isinstance(made.images, Tensor)  # output_type is pt
            parts.append(made.images.cpu())
            if made.class_labels is not None:
                kinds.append(made.class_labels.cpu())
            advance(len(items))
    samples = torch.cat(parts)
    for path in files:
        if path.suffix == ".png":
            save_png(grid(samples), path)
        else:
            arrays = {"samples": samples.numpy()}
            if kinds:
                arrays["class_labels"] = torch.cat(kinds).numpy()
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
    return list(files)


def _embeds(pipeline: DSNOPipeline, prompts: Sequence[str] | None) -> Tensor | None:
    """The prompts' embeddings (P, L, D), computed once."""
    if not prompts and not pipeline.model.config.is_textual:
        return None
    if not prompts:
        raise InputError("This model is conditioned on text: give --prompt.")
    return pipeline.embed(prompts)
