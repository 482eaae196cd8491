"""The network in another precision, and what else is computed as before."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tests.devices import DEVICE, Crossings
from torch import Tensor, nn

from dsno.diffusion.analytic import Gaussian
from dsno.diffusion.arithmetic import arithmetic, network_in
from dsno.diffusion.denoisers import Denoiser
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.diffusion.schedules import CosineSchedule
from dsno.diffusion.solvers import solve
from dsno.recipes.choices import Arithmetic
from dsno.support.errors import InputError

HALF = torch.tensor(0.5, dtype=torch.float64)


class Times(nn.Module):
    """F = weight x, and so much for the class, without rounding; notes how it computed."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.linear.weight, weight)
        self.types: set[torch.dtype] = set()

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        product: Tensor = self.linear(x)
        self.types.add(product.dtype)
        return product if class_labels is None else product + class_labels[:, None]


def times(weight: float) -> Denoiser:
    return Denoiser(Times(weight), CosineSchedule(), prediction_type="sample", sample_shape=(1,))


def test_in_bf16_the_network_multiplies_numbers_of_eight_bits() -> None:
    # 1.0078125 = 1 + 2^-7 is the closest to 1.01; times 3 it is 3.0234375, and 3.03125 with 8 bits
    denoiser, x = times(1.01), torch.tensor([[3.0]])
    exact = denoiser(x, HALF).detach()
    rough = network_in(denoiser, "bf16")(x, HALF).detach()
    assert float(exact) == pytest.approx(3.03, abs=1e-6)
    assert float(rough) in (3.015625, 3.03125)  # both are as near
    assert rough.dtype == torch.float32
    assert torch.equal(denoiser(x, HALF), exact)  # it is left as it was


def test_guidance_combines_in_float32_what_the_network_gave_in_bf16() -> None:
    guided = GuidedDenoiser(times(1.01), 1.5, {"class_labels": torch.tensor(0)})
    given = {"class_labels": torch.tensor([1])}
    x = torch.tensor([[3.0]])
    rough = network_in(guided, "bf16")(x, HALF, given).item()
    none = {"class_labels": torch.tensor([0])}
    product = network_in(guided.inner, "bf16")(x, HALF, none).item()
    network = guided.inner.network
    assert isinstance(network, Times)
    assert network.types == {torch.bfloat16}
    assert rough == pytest.approx(product + 1.5, abs=2**-6)
    assert guided(x, HALF, given).item() == pytest.approx(3.03 + 1.5, abs=1e-6)


@pytest.mark.parametrize("precision", ["exact", "tf32"])
def test_in_float32_the_denoiser_is_itself(precision: Arithmetic) -> None:
    denoiser = times(1.01)
    assert network_in(denoiser, precision) is denoiser


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("exact", ("highest", True, False, False)),
        ("tf32", ("high", False, True, True)),
        ("bf16", ("high", False, True, True)),
    ],
)
def test_the_libraries_are_set_and_set_back(
    precision: Arithmetic, expected: tuple[Any, ...]
) -> None:
    def now() -> tuple[Any, ...]:
        flags = torch.backends.cudnn
        matmul = torch.get_float32_matmul_precision()
        return matmul, flags.deterministic, flags.benchmark, flags.allow_tf32

    before = now()
    with arithmetic(precision):
        assert now() == expected
    assert now() == before


def test_a_denoiser_without_a_known_network_computes_exactly_or_not_at_all() -> None:
    gaussian = Gaussian(torch.zeros(1), torch.ones(1), CosineSchedule())
    assert network_in(gaussian, "exact") is gaussian
    with pytest.raises(InputError, match="The network of a Gaussian is not known"):
        network_in(gaussian, "bf16")
    with pytest.raises(InputError, match="nor be compiled"):
        network_in(gaussian, "exact", compiled=True)


def test_the_network_is_compiled_within_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def compile_(call: Any, **options: Any) -> Any:
        def compiled(*given: Any) -> Any:
            found.append((options, torch.is_autocast_enabled("cpu")))
            return call(*given)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    denoiser, x = times(1.01), torch.tensor([[3.0]])
    precisions: tuple[Arithmetic, ...] = ("exact", "bf16")
    for precision in precisions:
        quick = network_in(denoiser, precision, compiled=True)
        assert torch.equal(quick(x, HALF), network_in(denoiser, precision)(x, HALF))
    assert found == [({"dynamic": False}, False), ({"dynamic": False}, True)]


@pytest.mark.parametrize("method", ["ddim", "heun", "dpm++2m"])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample_and_epsilon"])
def test_solving_copies_nothing_to_the_device_and_reads_nothing_from_it(
    method: str, prediction: str
) -> None:
    """A copy makes the host wait for all that the device was asked for, at every step."""
    channels = 2 if prediction == "sample_and_epsilon" else 1
    denoiser = Denoiser(
        nn.Linear(1, 1),
        CosineSchedule(),
        prediction_type=prediction,
        sample_shape=(1, 4, 4),
        call=lambda network, x, c_noise, condition: (
            x * network.weight + c_noise.reshape(-1, 1, 1, 1)
        ).repeat(1, channels, 1, 1),
        clip_sample=1.0,
    ).to(DEVICE)
    noise = torch.zeros(2, 1, 4, 4, device=DEVICE)
    run = functools.partial(solve, method=method, steps=3)
    with Crossings() as crossings:
        states = run(denoiser, noise, torch.tensor([0.5, 0.0])).states
    assert states.device == DEVICE
    assert (crossings.up, crossings.down, crossings.reads) == ([], [], 0)
