"""A model as a file that other programs run, compared with the model before it is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dsno.graphs.formats import Format, format_of
from dsno.graphs.graph import Asked, Evaluation, Graph, capture
from dsno.operator.dsno import DSNO
from dsno.support.errors import InputError, WorkError
from dsno.support.files import replacing
from dsno.support.version import __version__

if TYPE_CHECKING:
    from dsno.pipeline import DSNOPipeline

TOLERANCE = 1e-4
"""Largest difference of a written file's samples, about [-1, 1], from the operator's."""


def export_graph(pipeline: DSNOPipeline, path: Path, *, to: str, trajectory: bool = False) -> str:
    """Write one evaluation of a model as a graph; return what was done.

    Args:
        pipeline: with the model, which is moved to the CPU and to float32.
        path: of the file; one that is there is replaced when the new one is whole and checked.
        to: name of the format, see `FORMATS`.
        trajectory: give the states at all trained times instead of the sample.

    Raises:
        InputError: for another format, a model of latents or conditioned on text, a network that
            cannot be captured, or a library that is missing.
        WorkError: if the file's samples are not the model's, or it cannot be written.
    """
    form = format_of(to)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give --out a file, such as model.onnx.")
    config = pipeline.model.config
    if config.is_textual:
        raise InputError(
            "This model is conditioned on text, and a graph has no text encoder; export it without "
            "--to."
        )
    if pipeline.vae is not None:
        raise InputError(
            "This model makes latents, and a graph has no autoencoder to decode them; export it "
            "without --to."
        )
    frequencies = config.class_frequencies
    asked = Asked(
        None if frequencies is None else len(frequencies), pipeline.model.guidance_range, trajectory
    )
    operator = pipeline.model.operator.float().cpu().eval()
    graph = capture(operator, asked)
    with replacing(path) as temporary:
        form.write(graph, temporary, _about(operator, pipeline, graph))
        difference = _difference(form, temporary, operator, asked, graph)
    sizes = ", ".join(map(str, graph.checked))
    return (
        f"Wrote {path}, from {', '.join(graph.inputs)} to {graph.output}, for any batch size; with "
        f"batches of {sizes} it differs from PyTorch by at most {difference:.1e}."
    )


def _about(operator: DSNO, pipeline: DSNOPipeline, graph: Graph) -> dict[str, Any]:
    """What a file says of itself, for whoever has nothing else."""
    config = pipeline.model.config
    return {
        "version": __version__,
        "sample_shape": list(operator.sample_shape),
        "output": graph.output,
        "times": operator.times.tolist(),
        "class_frequencies": config.class_frequencies,
        "guidance_scale": config.guidance_scale,
    }


@torch.no_grad()
def _difference(form: Format, path: Path, operator: DSNO, asked: Asked, graph: Graph) -> float:
    """Largest difference of a written file from the operator, if it is small."""
    evaluation, run = Evaluation(operator, trajectory=asked.trajectory), form.read(path)
    worst = 0.0
    for batch in graph.checked:
        inputs = asked.example(operator, batch)
        expected, found = evaluation(**inputs), run(inputs)
        if expected.shape != found.shape:
            raise WorkError(
                f"The exported graph gives {tuple(found.shape)} for a batch of {batch}, and "
                f"PyTorch {tuple(expected.shape)}; nothing was written."
            )
        difference = float((expected - found).abs().max())
        if not difference <= TOLERANCE:
            raise WorkError(
                f"The exported graph differs from PyTorch by {difference:.1e} for a batch of "
                f"{batch}, more than {TOLERANCE:g}; nothing was written."
            )
        worst = max(worst, difference)
    return worst
