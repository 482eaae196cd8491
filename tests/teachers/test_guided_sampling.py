"""Guided sampling of imported teachers, against diffusers' own scheduler on guided predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tests import makers
from tests.makers import seeded
from torch import Tensor

from dsno.diffusion.conditions import CLASS_LABELS, EMBEDDINGS, GUIDANCE_SCALE
from dsno.diffusion.solvers import solve
from dsno.teachers.options import TeacherOptions
from dsno.teachers.pipelines import diffusers_teacher

STEPS, STRIDE = 10, 10
CHAIN = STEPS * STRIDE + 1
"""Steps of the training chain, so that the sampler's lie on whole ones: 100, 90, ... 10."""
SCALE = 4.0

Predict = Callable[[Tensor, int], Tensor]


def guided(conditional: Predict, null: Predict, scale: float | Tensor) -> Predict:
    """Guidance as diffusers' pipelines write it, on what the network predicts."""

    def predict(x: Tensor, step: int) -> Tensor:
        without = null(x, step)
        return without + scale * (conditional(x, step) - without)

    return predict


def sampled(scheduler: Any, predict: Predict, x: Tensor) -> Tensor:
    """DDIM by diffusers' scheduler, to its last estimate of x_0."""
    scheduler.set_timesteps(STEPS)
    for step in range(CHAIN - 1, 0, -STRIDE):
        with torch.no_grad():
            made = scheduler.step(predict(x, step), step, x, use_clipped_model_output=True)
        x = made.prev_sample
    return made.pred_original_sample


def compare(
    teacher: Any, scale: float | None, condition: Any, expected: Tensor, **text: Any
) -> None:
    """Our trajectory's end from the same noise."""
    x = seeded(tuple(expected.shape))
    start = teacher.denoiser.schedule.sigma(torch.ones(1, dtype=torch.float64))
    denoiser = teacher.guided(scale, **text)
    got = solve(denoiser, x.double() / start, method="ddim", steps=STEPS, condition=condition)
    torch.testing.assert_close(got.states[:, 0].float(), expected, rtol=1e-3, atol=1e-3)


SCHEDULERS: dict[str, dict[str, Any]] = {
    "clipped": {},
    "clipped elsewhere": {"clip_sample_range": 1.5},
    "thresholds": {
        "thresholding": True,
        "dynamic_thresholding_ratio": 0.8,
        "sample_max_value": 3.0,
    },
    "v": {"prediction_type": "v_prediction"},
    "sample": {"prediction_type": "sample"},
    "unclipped": {"clip_sample": False, "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("scale", [SCALE, None])
def test_a_guided_trajectory_is_the_schedulers(
    name: str, scale: float | None, tmp_path: Path
) -> None:
    """At one scale for all, and with the scale as an input of every sample."""
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=CHAIN, **SCHEDULERS[name])
    teacher = diffusers_teacher(
        makers.ddpm_folder(tmp_path / "saved", scheduler, num_class_embeds=5),
        TeacherOptions(null_class=4),
    )
    network: Any = teacher.denoiser.network
    labels, null = torch.tensor([2, 0]), torch.tensor([4, 4])
    condition, scales = {CLASS_LABELS: labels}, torch.tensor([SCALE, SCALE])
    if scale is None:
        scales = condition[GUIDANCE_SCALE] = torch.tensor([1.5, 6.0])
    predict = guided(
        lambda x, step: network(x, step, class_labels=labels).sample,
        lambda x, step: network(x, step, class_labels=null).sample,
        scales.reshape(-1, 1, 1, 1),
    )
    expected = sampled(scheduler, predict, seeded((2, 3, 8, 8)))
    compare(teacher, scale, condition, expected)


def test_text_is_guided_away_from_the_negative_prompt_before_it_is_limited(tmp_path: Path) -> None:
    folder = makers.stable_diffusion_folder(tmp_path / "saved")
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=CHAIN, **SCHEDULERS["thresholds"])
    scheduler.save_pretrained(folder / "scheduler")
    teacher = diffusers_teacher(folder)
    network: Any = teacher.denoiser.network
    assert teacher.text is not None
    words, without = teacher.text.encode(["a cat", "a dog"]), teacher.text.encode(["blurred"] * 2)
    predict = guided(
        lambda x, step: network(x, step, words).sample,
        lambda x, step: network(x, step, without).sample,
        SCALE,
    )
    expected = sampled(scheduler, predict, seeded((2, 4, 8, 8)))
    compare(teacher, SCALE, {EMBEDDINGS: words}, expected, negative_prompt="blurred")
