"""Preconditioning against the definitions of each prediction type, through an exact oracle."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from dsno.diffusion.denoisers import (
    PREDICTION_TYPES,
    TIME_INPUTS,
    Condition,
    CountingDenoiser,
    Denoiser,
    Preconditioning,
)
from dsno.diffusion.schedules import SCHEDULES, BetaSchedule, NoiseSchedule
from dsno.support.errors import InputError

MEAN, STD, SIGMA_DATA = 0.4, 0.7, 0.5
TIMES = torch.tensor([0.03, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
ZERO_SNR = BetaSchedule(zero_terminal_snr=True)


def posterior_mean(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x] for data N(MEAN, STD^2): the textbook product of two Gaussians."""
    precision = 1 / STD**2 + alpha**2 / sigma**2
    return (MEAN / STD**2 + alpha * x / sigma**2) / precision


def edm_target(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """F of arXiv 2206.00364, eq. 7 with Table 1."""
    skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    out = sigma * SIGMA_DATA / (SIGMA_DATA**2 + sigma**2) ** 0.5
    return (x0 - skip * x) / out


# prediction type -> (what F predicts given x, x0, alpha, sigma; whether its input is scaled)
TARGETS = {
    "epsilon": lambda x, x0, a, s: (x - a * x0) / s,
    "v_prediction": lambda x, x0, a, s: a * (x - a * x0) / s - s * x0,
    "sample": lambda x, x0, a, s: x0,
    "edm": lambda x, x0, a, s: edm_target(x, x0, s),
    "flow": lambda x, x0, a, s: (x - a * x0) / s - x0,
    # two predictions that are wrong by the same x0 error stay wrong by sigma^2 + alpha^2 = 1 of it
    "sample_and_epsilon": lambda x, x0, a, s: torch.cat([x0, (x - a * x0) / s], 1),
}
MEANINGFUL = {
    "epsilon": ("cosine", "betas", "edm"),
    "v_prediction": ("cosine", "betas"),
    "sample": tuple(SCHEDULES),
    "edm": ("edm",),
    "flow": ("rectified_flow",),
    "sample_and_epsilon": ("cosine", "betas"),
}


class Oracle(nn.Module):
    """The exact F; it undoes the input scaling it is told to expect."""

    def __init__(self, kind: str, schedule: NoiseSchedule, t: Tensor) -> None:
        super().__init__()
        self.kind, self.alpha, self.sigma = kind, schedule.alpha(t), schedule.sigma(t)
        self.told: Tensor | None = None

    def forward(self, scaled: Tensor, c_noise: Tensor) -> Tensor:
        self.told = c_noise
        alpha, sigma = (c.reshape(-1, 1) for c in (self.alpha, self.sigma))
        x = scaled * (sigma**2 + SIGMA_DATA**2) ** 0.5 if self.kind == "edm" else scaled
        return TARGETS[self.kind](x, posterior_mean(x, alpha, sigma), alpha, sigma)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_an_exact_network_gives_the_exact_denoiser(kind: str, name: str) -> None:
    schedule = SCHEDULES[name]()
    if name not in MEANINGFUL[kind]:
        with pytest.raises(InputError, match="prediction|Prediction"):
            Preconditioning(schedule, kind)
        return
    t = TIMES
    oracle = Oracle(kind, schedule, t)
    denoiser = Denoiser(
        oracle, schedule, prediction_type=kind, sample_shape=(3,), sigma_data=SIGMA_DATA
    )
    alpha, sigma = (f(t).reshape(-1, 1) for f in (schedule.alpha, schedule.sigma))
    x0 = MEAN + STD * torch.randn(5, 3, dtype=torch.float64)
    x = alpha * x0 + sigma * torch.randn(5, 3, dtype=torch.float64)
    expected = posterior_mean(x, alpha, sigma)
    torch.testing.assert_close(denoiser(x, t), expected, atol=1e-9, rtol=1e-9)
    for i, one in enumerate(t):  # the same time for every row, as a scalar
        oracle.alpha, oracle.sigma = alpha[i], sigma[i]
        torch.testing.assert_close(denoiser(x[i : i + 1], one), expected[i : i + 1])


@pytest.mark.parametrize("t", TIMES.tolist())
def test_two_predictions_are_blended_as_the_formula_says(t: float) -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.cat([x.cos(), x.sin()], 1)

    schedule, at = SCHEDULES["cosine"](), torch.tensor(t, dtype=torch.float64)
    denoiser = Denoiser(
        Both(), schedule, prediction_type="sample_and_epsilon", sample_shape=(3,), clip_sample=0.7
    )
    alpha, sigma, z = schedule.alpha(at), schedule.sigma(at), torch.randn(5, 3).double()
    expected = sigma**2 * z.cos() + alpha**2 * (z - sigma * z.sin()) / alpha
    torch.testing.assert_close(denoiser(z, at), expected.clamp(-0.7, 0.7))


def test_learned_variances_are_left_aside() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.cat([x, torch.full_like(x, torch.nan)], 1)

    denoiser = Denoiser(Wide(), ZERO_SNR, prediction_type="v_prediction", sample_shape=(2,))
    assert denoiser(torch.randn(3, 2), torch.tensor(0.5)).isfinite().all()


def test_an_output_of_another_shape_is_refused() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return x[:, :1]

    denoiser = Denoiser(Odd(), ZERO_SNR, prediction_type="v_prediction", sample_shape=(2,))
    with pytest.raises(
        InputError, match=r"the sample's shape \(2,\) or with twice its channels, found \(1,\)"
    ):
        denoiser(torch.randn(3, 2), torch.tensor(0.5))


def test_dynamic_thresholding_rescales_only_what_exceeds_one() -> None:
    class Three(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.tensor([[0.1, -0.2, 0.4, 0.5, 0.3], [4.0, -1.0, 2.0, -8.0, 0.0]])

    denoiser = Denoiser(
        Three(), ZERO_SNR, prediction_type="sample", sample_shape=(5,), dynamic_threshold=(0.75, 9)
    )
    # the second row's magnitudes are 0, 1, 2, 4, 8: three quarters of them are at most 4
    expected = torch.tensor([[0.1, -0.2, 0.4, 0.5, 0.3], [1.0, -0.25, 0.5, -1.0, 0.0]])
    torch.testing.assert_close(denoiser(torch.randn(2, 5), torch.tensor(0.5)), expected)
    denoiser.dynamic_threshold = (0.75, 2.0)
    expected[1] = torch.tensor([1.0, -0.5, 1.0, -1.0, 0.0])
    torch.testing.assert_close(denoiser(torch.randn(2, 5), torch.tensor(0.5)), expected)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_denoised_exactly_at_pure_noise(kind: str) -> None:
    t = torch.ones(4, dtype=torch.float64)
    denoiser = Denoiser(
        Oracle(kind, ZERO_SNR, t), ZERO_SNR, prediction_type=kind, sample_shape=(3,)
    )
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, t), torch.full_like(x, MEAN))


def test_edm_coefficients_are_table_1() -> None:
    c = Preconditioning(SCHEDULES["edm"](), "edm", 0.5).coefficients(TIMES)
    sigma = SCHEDULES["edm"]().sigma(TIMES)
    for got, expected in (
        (c.skip, 0.25 / (sigma**2 + 0.25)),
        (c.out, 0.5 * sigma / (sigma**2 + 0.25).sqrt()),
        (c.into, 1 / (sigma**2 + 0.25).sqrt()),
    ):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", TIME_INPUTS)
def test_the_network_is_told_the_time_in_its_own_terms(kind: str, name: str) -> None:
    schedule = SCHEDULES[name]()
    if kind == "index" and name != "betas":
        with pytest.raises(InputError, match="'index' needs the 'betas' schedule"):
            Preconditioning(schedule, "sample", time_input=kind)
        return
    expected = {
        "angle": 1000 * torch.exp(-schedule.log_snr(TIMES) / 2).atan() / (math.pi / 2),
        "index": TIMES * 999,
        "edm": schedule.sigma(TIMES).log() / 4,
        "time": 1000 * TIMES,
    }[kind]
    oracle = Oracle("sample", schedule, TIMES)
    denoiser = Denoiser(
        oracle, schedule, prediction_type="sample", sample_shape=(3,), time_input=kind
    )
    denoiser(torch.zeros(5, 3, dtype=torch.float64), TIMES)
    torch.testing.assert_close(oracle.told, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("cosine", "angle"), ("betas", "index"), ("edm", "edm"), ("rectified_flow", "time")],
)
def test_each_schedule_has_a_usual_time_input(name: str, kind: str) -> None:
    assert Preconditioning(SCHEDULES[name](), "sample").time_input == kind


def test_epsilon_is_refused_where_the_chain_ends_at_zero_snr() -> None:
    for schedule in (ZERO_SNR, SCHEDULES["rectified_flow"]()):
        with pytest.raises(InputError, match="zero SNR"):
            Preconditioning(schedule, "epsilon")


def test_unknown_names_are_answered_with_the_closest() -> None:
    with pytest.raises(InputError, match="'v_prediction'"):
        Preconditioning(ZERO_SNR, "v_predicton")
    with pytest.raises(InputError, match="'angle'"):
        Preconditioning(ZERO_SNR, "sample", time_input="angel")


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_preconditioning_round_trips_through_json(kind: str) -> None:
    made = Preconditioning(SCHEDULES[MEANINGFUL[kind][0]](), kind, 0.5)
    assert Preconditioning.from_config(json.loads(json.dumps(made.to_config()))) == made


def test_clip_sample_clips_the_denoised_estimate() -> None:
    t = TIMES[:1]
    oracle = Oracle("sample", ZERO_SNR, t)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    made = [
        Denoiser(oracle, ZERO_SNR, prediction_type="sample", sample_shape=(1,), clip_sample=clip)
        for clip in (None, 0.8)
    ]
    free, clipped = (d(x, t[0]) for d in made)
    assert free.abs().max() > 1
    assert torch.equal(clipped, free.clamp(-0.8, 0.8))


def test_a_half_precision_network_runs_in_its_dtype_under_a_float32_state() -> None:
    seen: list[torch.dtype] = []

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            seen.append(x.dtype)
            return self.scale * x

    schedule = SCHEDULES["cosine"]()
    denoiser = Denoiser(Half(), schedule, prediction_type="v_prediction", sample_shape=(2,))
    assert denoiser(torch.randn(3, 2), torch.tensor(0.5)).dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_a_half_precision_network_is_told_the_time_in_single_precision() -> None:
    """Rounded to bfloat16, 777.7 would be 776."""
    told: list[Tensor] = []

    def call(network: nn.Module, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        told.append(c_noise)
        return x

    denoiser = Denoiser(
        nn.Linear(2, 2).bfloat16(),
        SCHEDULES["rectified_flow"](),
        prediction_type="flow",
        sample_shape=(2,),
        call=call,
    )
    denoiser(torch.randn(3, 2), torch.tensor(0.7777, dtype=torch.float64))
    torch.testing.assert_close(told[0], torch.full((3,), 777.7), rtol=1e-6, atol=0)


class Labelled(nn.Module):
    """A network whose output depends on x, the time and the label."""

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor) -> Tensor:
        return x.sin() * (1 + class_labels[:, None]) + c_noise[:, None] / 1000


def test_counting_counts_and_changes_nothing() -> None:
    inner = Denoiser(Labelled(), ZERO_SNR, prediction_type="v_prediction", sample_shape=(2,))
    counting = CountingDenoiser(inner)
    x, t, condition = torch.randn(3, 2), torch.tensor(0.3), {"class_labels": torch.arange(3)}
    for expected in (1, 2, 3):
        assert torch.equal(counting(x, t, condition), inner(x, t, condition))
        assert counting.nfe == expected
