"""What the page draws is what the command line and the networks themselves give."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsno.app.figures import facts_of
from dsno.app.request import FROM_DATA, IN_TURN, Interpolation, Offer, Request
from dsno.app.served import ServedModel
from dsno.diffusion.solvers import evaluations
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.pipeline import DSNOModel, DSNOPipeline
from dsno.runs.sample import sample_model
from dsno.sampling.outputs import DSNOPipelineOutput
from dsno.support.errors import InputError

ASKED = Request(seed=5, count=3, label=FROM_DATA, guidance=2.0)


def test_samples_are_those_of_the_command(
    served: ServedModel, folder: Path, tmp_path: Path
) -> None:
    written = sample_model(
        folder, [tmp_path / "a.npz"], num=3, seed=5, guidance_scale=2.0, raw=True
    )
    with np.load(written[0]) as arrays:
        expected = arrays["states"]
    made = served.draw(ASKED)
    assert made.nfe == 1
    np.testing.assert_allclose(made.images.numpy(), expected, atol=1e-6)


def test_one_step_of_ddim_is_the_teachers_guess_for_the_same_noise(served: ServedModel) -> None:
    one = Request(seed=5, count=3, label="1", guidance=2.0)
    made = served.solve(one, "ddim", 1)
    teacher = served.pipeline.teacher
    noise = served.follow(one).frames[0]
    given = {"class_labels": torch.tensor([1] * 3), "guidance_scale": torch.tensor([2.0] * 3)}
    with torch.no_grad():
        expected = teacher(noise, torch.ones((), dtype=torch.float64), given)
    torch.testing.assert_close(made.images, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("solver", "steps", "expected"), [("ddim", 3, 6), ("heun", 3, 10)])
def test_evaluations_of_a_guided_teacher_are_counted_twice(
    served: ServedModel, solver: Any, steps: int, expected: int
) -> None:
    assert served.solve(ASKED, solver, steps).nfe == expected == 2 * evaluations(solver, steps)


def test_a_film_goes_from_noise_to_the_samples_in_one_evaluation(served: ServedModel) -> None:
    operator, calls = served.pipeline.model.operator, 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = operator.lifted.network.register_forward_pre_hook(count)
    try:
        film = served.follow(ASKED)
    finally:
        hook.remove()
    assert (calls, film.nfe) == (1, 1)
    assert film.times == [1.0, 0.25, 0.0]  # two trained times, quadratic
    assert film.frames[0].std() == pytest.approx(1, abs=0.2)
    torch.testing.assert_close(film.frames[-1], served.draw(ASKED).images, atol=1e-5, rtol=0)


def test_an_interpolation_begins_and_ends_with_the_samples_of_its_seeds(
    served: ServedModel,
) -> None:
    one = Request(seed=5, count=2, label="0", guidance=2.0)
    other = Request(seed=9, count=2, label="0", guidance=2.0)
    made = served.interpolate(one, Interpolation(9, 4)).images.unflatten(0, (2, 4))
    torch.testing.assert_close(made[:, 0], served.draw(one).images, atol=1e-5, rtol=0)
    torch.testing.assert_close(made[:, -1], served.draw(other).images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("label", "expected"), [("2", [2, 2, 2, 2]), (IN_TURN, [0, 1, 2, 0])])
def test_classes_are_those_asked_for(served: ServedModel, label: str, expected: list[int]) -> None:
    asked = Request(seed=1, count=4, label=label, guidance=2.0)
    noise = served.follow(asked).frames[0]  # sigma(1) is 1
    made = served.pipeline(
        noise=noise, class_labels=expected, guidance_scale=2.0, output_type="raw"
    )
    torch.testing.assert_close(served.draw(asked).images, made.images, atol=1e-4, rtol=0)


def test_a_prompt_is_embedded_once_for_all_images(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, given = [], {}

    def embed(_: DSNOPipeline, words: list[str]) -> torch.Tensor:
        prompts.append(words)
        return torch.arange(6.0).reshape(1, 2, 3)

    def call(_: DSNOPipeline, **arguments: Any) -> DSNOPipelineOutput:
        given.update(arguments)
        return DSNOPipelineOutput(torch.zeros(4, 1, 8, 8))

    monkeypatch.setattr(DSNOPipeline, "embed", embed)
    monkeypatch.setattr(DSNOPipeline, "__call__", call)
    served.draw(Request(seed=1, count=4, prompt="a cat"))
    assert prompts == [["a cat"]]
    assert given["prompt_embeds"].tolist() == [[[0, 1, 2], [3, 4, 5]]] * 4


def test_a_model_without_classes_and_with_one_scale_is_asked_for_neither(unet_teacher: Any) -> None:
    operator = DSNO.from_teacher(unet_teacher(), LiftConfig(["mid_block.resnets.*"]))
    model = DSNOModel.from_operator(operator, guidance_scale=2.5)
    plain = ServedModel(DSNOPipeline(model), "plain")
    assert plain.offer == Offer(None, None, is_textual=False, has_teacher=False)
    assert plain.offer.labels == []
    assert "guidance 2.5 distilled in" in facts_of(plain)
    plain.warm_up()
    assert plain.draw(Request(seed=0, count=2)).images.shape == (2, 1, 8, 8)


def test_times_are_those_of_the_clock(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: 3.0 * next(clock))
    assert served.draw(ASKED).seconds == 3


def test_requests_wait_for_each_other(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator keeps the layout of its slices while it runs."""
    inside, most = 0, 0
    call = DSNOPipeline.__call__

    def counted(self: DSNOPipeline, **given: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        made = call(self, **given)
        inside -= 1
        return made

    monkeypatch.setattr(DSNOPipeline, "__call__", counted)
    threads = [threading.Thread(target=served.draw, args=(ASKED,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_model_is_warmed_up_in_every_way(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(served, "draw", lambda request: asked.append(request.count))
    monkeypatch.setattr(served, "solve", lambda request, *way: asked.append(way))
    served.warm_up()
    assert asked == [1, ("ddim", 1)]


def test_without_its_teacher_a_model_is_served_all_the_same(pipeline: DSNOPipeline) -> None:
    alone = ServedModel(DSNOPipeline(pipeline.model), "alone")
    assert not alone.offer.has_teacher
    assert len(alone.draw(ASKED).images) == 3
    with pytest.raises(InputError, match="saved without its teacher"):
        alone.solve(ASKED, "ddim", 1)


def test_what_is_no_image_is_not_served(
    pipeline: DSNOPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DSNOPipeline, "image_shape", property(lambda _: (2,)))
    with pytest.raises(InputError, match=r"shows images, but .* have shape \(2,\)"):
        ServedModel(pipeline, "points")
