"""The page itself: Gradio's fields and buttons around `served` and `figures`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import gradio as gr
import torch

from dsno.app import figures
from dsno.app.request import (
    FROM_DATA,
    Fields,
    Limits,
    read_interpolation,
    read_request,
    read_solver,
)
from dsno.app.served import ServedModel
from dsno.evaluation.samplers import SAMPLER_NAMES
from dsno.recipes.choices import Solver
from dsno.support.errors import DsnoError

STYLE = Path(__file__).with_name("page.css")
STEPS, SOLVER, ROWS, POINTS = 16, "dpm++2m", 4, 8
"""What the fields hold at first, where the limits allow it."""
OUT_OF_MEMORY = "The device has too little memory for so many images at a time; ask for fewer."
NETWORK = "network"
"""Name of the queue, which all that runs a network waits in."""

Answer = Iterator[list[Any]]
"""Values for the line of messages and the figures; more than once where parts come first."""


def build(model: ServedModel, limits: Limits) -> gr.Blocks:
    """The page of a model."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # what is outside the blocks asks for it
    offer = model.offer
    with gr.Blocks(title=f"{model.name} - dsno", analytics_enabled=False) as page:
        gr.HTML(figures.header(model))
        with gr.Row(elem_classes="dsno-columns"):
            with gr.Column(scale=1, min_width=250, elem_classes="dsno-fields"):
                shared = _shared_fields(model, limits)
            with gr.Column(scale=4, min_width=320):
                message = gr.HTML("", elem_id="message")
                with gr.Tab("Samples", id="samples"):
                    with gr.Row(elem_classes="dsno-bar"):
                        solver = _solver_fields(limits) if offer.has_teacher else {}
                        draw = gr.Button("Draw", variant="primary", elem_id="draw")
                    with gr.Row():
                        with gr.Column(min_width=280):
                            student = gr.HTML(_before("Student"), elem_id="student")
                        with gr.Column(min_width=280):
                            teacher = gr.HTML(_teacher_before(model), elem_id="teacher")
                with gr.Tab("Trajectory", id="trajectory"):
                    with gr.Row(elem_classes="dsno-bar"):
                        gr.HTML(
                            "<p>The operator's states on the way from noise to sample, all from "
                            "the same evaluation.</p>"
                        )
                        follow = gr.Button("Draw trajectory", variant="primary", elem_id="follow")
                    film = gr.HTML(_before("Trajectory", "Draw trajectory"), elem_id="film")
                with gr.Tab("Interpolation", id="interpolation"):
                    with gr.Row(elem_classes="dsno-bar"):
                        between = _interpolation_fields(limits)
                        mix = gr.Button("Interpolate", variant="primary", elem_id="interpolate")
                    row = gr.HTML(_before("Between two noises", "Interpolate"), elem_id="between")

        def drawn(fields: Fields) -> Answer:
            request = read_request(fields, offer, limits)
            asked = read_solver(fields, limits) if offer.has_teacher else None
            made = model.draw(request)
            first = figures.drawing("Student", made, f"{model.name}-{request.seed}.png")
            if asked is None:
                yield ["", first, gr.skip()]
                return
            name, steps = asked
            title = f"Teacher, {SAMPLER_NAMES[name]}, {steps:,} step{'s' * (steps != 1)}"
            yield ["", first, figures.empty(title, "solving ...")]
            made = model.solve(request, name, steps)
            filename = f"{model.name}-{request.seed}-teacher.png"
            yield ["", first, figures.drawing(title, made, filename)]

        def followed(fields: Fields) -> Answer:
            request = read_request(fields, offer, limits)
            filename = f"{model.name}-{request.seed}-state.png"
            yield ["", figures.film("Trajectory", model.follow(request), filename)]

        def mixed(fields: Fields) -> Answer:
            request, way = read_interpolation(fields, offer, limits)
            filename = f"{model.name}-{request.seed}-to-{way.seed}.png"
            title = f"From seed {request.seed} to seed {way.seed}"
            made = model.interpolate(request, way)
            yield ["", figures.drawing(title, made, filename, columns=way.points)]

        for button, work, fields, outputs in (
            (draw, drawn, {**shared, **solver}, [student, teacher]),
            (follow, followed, shared, [film]),
            (mix, mixed, {**shared, **between}, [row]),
        ):
            button.click(
                _answering(work, list(fields), len(outputs)),
                inputs=list(fields.values()),
                outputs=[message, *outputs],
                concurrency_id=NETWORK,
                concurrency_limit=1,
                show_progress="minimal",
                show_progress_on=outputs,
                api_visibility="private",
            )
    page.queue(max_size=limits.queue)
    return page


def theme() -> gr.themes.Base:
    """Colours, and the fonts of the reader's own system."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_600",
    )


def _answering(
    work: Callable[[Fields], Answer], names: list[str], figure_count: int
) -> Callable[..., Answer]:
    """A handler of Gradio's: what was wrong is answered in the line of messages."""

    def answer(*values: Any) -> Answer:
        fields = dict(zip(names, values, strict=True))
        try:
            yield from work(fields)
        except DsnoError as error:
            yield [figures.alert(str(error)), *[gr.skip()] * figure_count]
        except torch.OutOfMemoryError:
            sentence = (
                "The device has too little memory for so many images at a time; ask for fewer."
            )
            yield [figures.alert(sentence), *[gr.skip()] * figure_count]

    return answer


def _before(title: str, button: str = "Draw") -> str:
    """What a figure shows before it is asked for."""
    return figures.empty(title, f"Press <b>{button}</b>.")


def _teacher_before(model: ServedModel) -> str:
    if model.offer.has_teacher:
        return _before("Teacher")
    return figures.empty("Teacher", figures.NO_TEACHER)


def _shared_fields(model: ServedModel, limits: Limits) -> dict[str, Any]:
    """Which samples: the fields of `read_request`."""
    offer = model.offer
    fields: dict[str, Any] = {"seed": gr.Number(0, label="Seed", elem_id="seed")}
    fields["count"] = gr.Number(
        figures.first_count(model.image_shape[-1], limits.images),
        label="Images",
        info=f"at most {limits.images:,}",
        elem_id="count",
    )
    if offer.classes is not None:
        fields["label"] = gr.Dropdown(offer.labels, value=FROM_DATA, label="Class", elem_id="label")
    if offer.guidance is not None:
        low, high = offer.guidance
        fields["guidance"] = gr.Slider(
            low, high, value=(low + high) / 2, label="Guidance scale", elem_id="guidance"
        )
    if offer.is_textual:
        fields["prompt"] = gr.Textbox(label="Prompt", lines=2, elem_id="prompt")
    return fields


def _solver_fields(limits: Limits) -> dict[str, Any]:
    names = [(SAMPLER_NAMES[name], name) for name in get_args(Solver)]
    return {
        "solver": gr.Dropdown(
            names, value=SOLVER, label="Teacher's solver", elem_id="solver", min_width=220
        ),
        "steps": gr.Number(
            min(STEPS, limits.steps),
            label="Teacher's steps",
            elem_id="steps",
            min_width=130,
        ),
    }


def _interpolation_fields(limits: Limits) -> dict[str, Any]:
    points = max(2, min(POINTS, limits.images))
    return {
        "other_seed": gr.Number(1, label="To seed", elem_id="other_seed", min_width=130),
        "points": gr.Number(points, label="Images in a row", elem_id="points", min_width=130),
        "rows": gr.Number(
            max(1, min(ROWS, limits.images // points)), label="Rows", elem_id="rows", min_width=130
        ),
    }
