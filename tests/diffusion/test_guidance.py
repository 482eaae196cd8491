"""Classifier-free guidance against its formula, and clipped after it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dsno.diffusion.denoisers import CountingDenoiser, Denoiser, to_device
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.diffusion.schedules import SCHEDULES, BetaSchedule
from dsno.support.errors import InputError

ZERO_SNR = BetaSchedule(zero_terminal_snr=True)


class Labelled(nn.Module):
    """A network whose output depends on x, the time and the label."""

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor) -> Tensor:
        return x.sin() * (1 + class_labels[:, None]) + c_noise[:, None] / 1000


@pytest.mark.parametrize("t", [torch.tensor(0.4), torch.tensor([0.2, 0.5, 0.9])])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_is_null_plus_scaled_difference(scale: float, t: Tensor) -> None:
    schedule = SCHEDULES["cosine"]()
    inner = Denoiser(Labelled(), schedule, prediction_type="v_prediction", sample_shape=(2,))
    x, labels, null = torch.randn(3, 2), torch.tensor([2, 0, 1]), torch.tensor(3)
    guided = GuidedDenoiser(inner, scale, {"class_labels": null})
    conditional = inner(x, t, {"class_labels": labels})
    unconditional = inner(x, t, {"class_labels": null.expand(3)})
    expected = (1 - scale) * unconditional + scale * conditional
    torch.testing.assert_close(guided(x, t, {"class_labels": labels}), expected)
    assert (guided.schedule, guided.sample_shape) == (schedule, (2,))


def test_guidance_reads_a_scale_for_each_sample_and_costs_two_evaluations() -> None:
    inner = Denoiser(Labelled(), ZERO_SNR, prediction_type="v_prediction", sample_shape=(2,))
    null = {"class_labels": torch.tensor(3)}
    sampled = GuidedDenoiser(inner, None, null)
    x, t, labels = torch.randn(3, 2), torch.tensor(0.4), torch.tensor([0, 1, 2])
    scales = torch.tensor([0.0, 1.0, 4.5])
    together = sampled(x, t, {"class_labels": labels, "guidance_scale": scales})
    for i, scale in enumerate(scales.tolist()):
        alone = GuidedDenoiser(inner, scale, null)
        torch.testing.assert_close(
            together[i : i + 1], alone(x[i : i + 1], t, {"class_labels": labels[i : i + 1]})
        )
    counting = CountingDenoiser(sampled)
    counting(x, t, {"class_labels": labels, "guidance_scale": scales})
    assert counting.nfe == 2
    with pytest.raises(InputError, match="guidance_scale"):
        sampled(x, t, {"class_labels": labels})


def test_guidance_refuses_another_condition_than_it_was_set_up_for() -> None:
    inner = Denoiser(Labelled(), ZERO_SNR, prediction_type="v_prediction", sample_shape=(2,))
    guided = GuidedDenoiser(inner, 2.0, {"class_labels": torch.tensor(3)})
    with pytest.raises(InputError, match=r"\['class_labels'\], but the call gives \[\]"):
        guided(torch.randn(1, 2), torch.tensor(0.5))


class PlusOrMinusOne(nn.Module):
    """Predicts x_0 = 1 for class 0 and -1 for the null class 1."""

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor) -> Tensor:
        return torch.ones_like(x) * (1 - 2 * class_labels[:, None])


@pytest.mark.parametrize("scale", [2.0, 4.0, 8.0, None])
@pytest.mark.parametrize(
    ("options", "largest"),
    [
        ({}, 15.0),  # 2 scale - 1 at the scale 8
        ({"clip_sample": 1.0}, 1.0),
        ({"clip_sample": 1.5}, 1.5),
        ({"dynamic_threshold": (0.9, 3.0)}, 1.0),
        ({"dynamic_threshold": (0.9, 100.0)}, 1.0),
    ],
)
def test_the_guided_estimate_keeps_to_the_limit(
    scale: float | None, options: dict[str, object], largest: float
) -> None:
    inner = Denoiser(
        PlusOrMinusOne(), ZERO_SNR, prediction_type="sample", sample_shape=(2,), **options
    )
    guided = GuidedDenoiser(inner, scale, {"class_labels": torch.tensor(1)})
    condition = {"class_labels": torch.zeros(3, dtype=torch.int64)}
    if scale is None:
        condition["guidance_scale"] = torch.tensor([8.0, 2.0, 4.0])
    got = guided(torch.randn(3, 2), torch.tensor(0.5), condition)
    expected = {2.0: 3.0, 4.0: 7.0}.get(scale, 15.0) if largest == 15.0 else largest
    assert float(got.max()) == expected


def test_two_predictions_are_guided_before_they_are_clipped() -> None:
    """Networks that predict x_0 and epsilon: written out at alpha = 0.6, sigma = 0.8."""

    class Both(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor) -> Tensor:
            clean = torch.where(class_labels[:, None] == 0, 0.9, -0.5)
            return torch.cat([clean.expand_as(x), torch.zeros_like(x)], 1)

    schedule = SCHEDULES["cosine"]()
    t = schedule.time_of(2 * torch.tensor(0.6 / 0.8, dtype=torch.float64).log())
    inner = Denoiser(
        Both(), schedule, prediction_type="sample_and_epsilon", sample_shape=(2,), clip_sample=1.0
    )
    guided = GuidedDenoiser(inner, 2.0, {"class_labels": torch.tensor(1)})
    x = torch.tensor([[0.0, -0.5]], dtype=torch.float64)
    # D = 0.64 x_0 + 0.6 x: 0.576 and 0.276 with the class, -0.32 and -0.62 without
    expected = torch.tensor([[1.0, 1.0]], dtype=torch.float64)  # of 1.472 and 1.172
    torch.testing.assert_close(guided(x, t, {"class_labels": torch.tensor([0])}), expected)
    guided.scale = 1.5
    expected = torch.tensor([[1.0, 0.724]], dtype=torch.float64)  # of 1.024
    torch.testing.assert_close(guided(x, t, {"class_labels": torch.tensor([0])}), expected)


def test_a_guided_denoiser_moves_with_its_null_condition() -> None:
    inner = Denoiser(
        nn.Linear(2, 2), ZERO_SNR, prediction_type="sample", sample_shape=(2,), clip_sample=1.0
    )
    guided = GuidedDenoiser(inner, 2.0, {"class_labels": torch.tensor(1)})
    moved = to_device(guided, torch.device("meta"))
    assert isinstance(moved, GuidedDenoiser)
    assert {p.device.type for p in moved.inner.parameters()} == {"meta"}
    assert moved.null_condition["class_labels"].device.type == "meta"
    assert (moved.scale, moved.inner.clip_sample) == (2.0, 1.0)
