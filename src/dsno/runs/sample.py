"""Samples of a trained model's folder, for the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dsno.diffusion.arithmetic import arithmetic, called_in
from dsno.pipeline import DSNOPipeline
from dsno.recipes.choices import Arithmetic
from dsno.runs.export import load_with_teacher
from dsno.sampling.writers import SampleFile, check_target, opened
from dsno.support import distributed, seeds
from dsno.support.console import progress, say
from dsno.support.errors import InputError


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
    raw: bool = False,
    steps: int = 1,
    precision: Arithmetic = "exact",
    compiled: bool = False,
) -> list[Path]:
    """Sample a model folder into each of `files`; see `dsno.sampling.writers` for their layouts.

    Sample i depends on (seed, i) alone, whatever `num` and `batch_size`; labels and prompts are
    used in turn. Samples are written as they are made.

    Args:
        folder: of the model.
        files: .png (a grid) and .npz files, and folders of images.
        num: how many samples.
        seed: of the noise, and of labels that are not given.
        labels: classes.
        prompts: texts.
        guidance_scale: of a model trained at a range.
        batch_size: samples at a time.
        raw: write the states before decoding, as floats.
        steps: 1, the operator's evaluation; each further one is a step of the teacher's solver.
            What a sample then costs is said.
        precision: in which the networks compute.
        compiled: whether they are compiled, for each size of batch anew.

    Raises:
        InputError: for a count below 1, a label out of range, a condition the model does not have,
            a prompt that is missing, steps without a teacher, or a file that cannot hold the
            samples.
        WorkError: if one cannot be written.
    """
    if num < 1:
        raise InputError(
            f"The number of samples must be at least 1, not {num}; give --num 1 or more."
        )
    if batch_size < 1:
        raise InputError(f"The batch size must be at least 1, not {batch_size}.")
    load = load_with_teacher if steps > 1 else DSNOPipeline.from_pretrained
    pipeline = load(folder).to(distributed.device())
    operator = pipeline.model.operator = called_in(
        pipeline.model.operator, precision, compiled=compiled
    )
    if steps > 1:
        teacher = pipeline.teacher
        teacher.denoiser = called_in(teacher.denoiser, precision, compiled=compiled)
    shape = operator.sample_shape
    for path in files:
        check_target(path, num, pipeline.image_shape, raw=raw)
    embeds = _embeds(pipeline, prompts)
    frequencies = pipeline.model.config.class_frequencies
    with (
        contextlib.ExitStack() as stack,
        arithmetic(precision),
        progress("sampling", num, unit="sample") as advance,
    ):
        writers: list[SampleFile] = []
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
                output_type="latent" if raw else "raw",
                num_inference_steps=steps,
            )
            if not writers:  # once the first samples show that the request is sound
                writers = [stack.enter_context(opened(path, num, raw=raw)) for path in files]
            for writer in writers:
                writer.write(made.images, made.class_labels)
            advance(len(items))
    if steps > 1:
        say(f"each sample took {made.nfe:,} network evaluations, the student's one included.")
    return list(files)


def _embeds(pipeline: DSNOPipeline, prompts: Sequence[str] | None) -> Tensor | None:
    """The prompts' embeddings (P, L, D), computed once."""
    if not prompts and not pipeline.model.config.is_textual:
        return None
    if not prompts:
        raise InputError("This model is conditioned on text: give --prompt.")
    return pipeline.embed(prompts)
