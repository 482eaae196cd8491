"""The temporal convolution against the FFT it stands for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dsno.operator.temporal import FourierTemporalConv, SliceLayout, TemporalLayer, modes_kept
from dsno.support.errors import InputError

BATCH, CHANNELS = 2, 3
SIZES = [(m, modes) for m in range(1, 10) for modes in range(1, m // 2 + 2)]
LAYOUTS = {
    "images": (1, (CHANNELS, 4, 5)),
    "points": (1, (CHANNELS,)),
    "tokens": (-1, (6, CHANNELS)),
    "few tokens": (-1, (2, CHANNELS)),
}


def conv(slices: int, modes: int, kind: torch.dtype = torch.float64, dim: int = 1):
    """A convolution with weights of order one, so that errors show."""
    made = FourierTemporalConv(CHANNELS, modes, slices, channel_dim=dim).to(kind)
    for part in (made.real, made.imag):
        torch.nn.init.normal_(part)
    return made


def by_fft(u: Tensor, real: Tensor, imag: Tensor, slices: int, dim: int = 1) -> Tensor:
    """irfft(R . truncate(rfft u)), written with torch.fft."""
    rows = u.reshape(-1, slices, *u.shape[1:]).movedim(1 + dim if dim > 0 else dim, 2)
    kept = min(len(real), slices // 2 + 1)
    spectrum = torch.fft.rfft(rows, dim=1)[:, :kept]
    mixed = torch.einsum("bkc...,kcd->bkd...", spectrum, torch.complex(real, imag)[:kept])
    out = torch.fft.irfft(mixed, n=slices, dim=1)  # the modes cut off are zeros
    return out.movedim(2, 1 + dim if dim > 0 else dim).reshape(u.shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize(("slices", "modes"), SIZES)
def test_it_equals_the_fft_forward_and_backward(
    slices: int, modes: int, kind: torch.dtype, layout: str
) -> None:
    dim, shape = LAYOUTS[layout]
    layer = conv(slices, modes, kind, dim)
    assert layer.modes == modes
    u = torch.randn(BATCH * slices, *shape, dtype=kind, requires_grad=True)
    expected = by_fft(u, layer.real, layer.imag, slices, dim)
    got = layer(u)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    towards = torch.randn_like(u)
    inputs = (u, layer.real, layer.imag)
    references = torch.autograd.grad((expected * towards).sum(), inputs)
    for grad, reference in zip(
        torch.autograd.grad((got * towards).sum(), inputs, materialize_grads=True),
        references,
        strict=True,
    ):
        torch.testing.assert_close(grad, reference, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("slices", "asked", "kept"), [(4, 2, 2), (4, 9, 3), (5, 9, 3), (1, 4, 1)])
def test_no_more_modes_are_kept_than_the_slices_carry(slices: int, asked: int, kept: int) -> None:
    assert modes_kept(asked, slices) == kept
    assert FourierTemporalConv(2, asked, slices).real.shape == (kept, 2, 2)


@pytest.mark.parametrize("other", [3, 4, 5, 12])
def test_another_number_of_slices_is_the_fft_there(other: int) -> None:
    layer, u = conv(8, 3), torch.randn(BATCH * other, CHANNELS, 2, dtype=torch.float64)
    expected = by_fft(u, layer.real, layer.imag, other)
    torch.testing.assert_close(layer(u, SliceLayout(other)), expected)


def test_a_trained_nyquist_mode_refuses_another_number_of_slices() -> None:
    with pytest.raises(InputError, match="Nyquist mode of 4 slices"):
        conv(4, 3)(torch.randn(6, CHANNELS).double(), SliceLayout(6))
    conv(5, 3)(torch.randn(6, CHANNELS).double(), SliceLayout(6))  # an odd number has none


@pytest.mark.parametrize(("slices", "modes"), [(4, 2), (5, 3), (6, 4)])
def test_queries_leave_the_carriers_alone_and_agree_with_them(slices: int, modes: int) -> None:
    layer = conv(slices, modes)
    u = torch.randn(BATCH, slices, CHANNELS, 2, dtype=torch.float64)
    carriers = layer(u.flatten(0, 1)).reshape(u.shape)
    phases = (0.37, *(j / slices for j in range(slices)), -1 / slices)
    noise = 100 * torch.randn(BATCH, len(phases), CHANNELS, 2, dtype=torch.float64)
    both = torch.cat([u, noise], 1)
    out = layer(both.flatten(0, 1), SliceLayout(slices, phases)).reshape(both.shape)
    torch.testing.assert_close(out[:, :slices], carriers)
    torch.testing.assert_close(out[:, slices + 1 : 2 * slices + 1], carriers)
    torch.testing.assert_close(out[:, -1], carriers[:, -1])  # phases are periodic


@pytest.mark.parametrize("slices", [5, 6, 8])
def test_band_limited_functions_are_exact_at_every_phase(slices: int) -> None:
    """R = 1 reproduces the function, R_k = 2 pi i k differentiates it, at any phase asked."""
    queries = (0.0, 0.123, 0.5, 0.77, 1.4)
    phases = torch.tensor([*(j / slices for j in range(slices)), *queries], dtype=torch.float64)
    rate = 2 * math.pi * torch.arange(3, dtype=torch.float64)  # harmonics 0, 1, 2
    turn = rate * phases[:, None]
    a, b = torch.randn(3, CHANNELS).double(), torch.randn(3, CHANNELS).double()
    value = turn.cos() @ a + turn.sin() @ b
    slope = turn.cos() @ (rate[:, None] * b) - turn.sin() @ (rate[:, None] * a)
    u = torch.cat([value[:slices], torch.full((len(queries), CHANNELS), 7.0)])
    layer, eye = conv(slices, 3), torch.eye(CHANNELS).double()
    for real, imag, expected in (
        (eye.expand(3, -1, -1), 0 * layer.imag, value),
        (0 * layer.real, rate[:, None, None] * eye, slope),
    ):
        layer.real.data, layer.imag.data = real.clone(), imag.clone()
        torch.testing.assert_close(layer(u, SliceLayout(slices, queries)), expected)


def test_shifting_a_trajectory_in_time_shifts_the_output() -> None:
    layer, u = conv(7, 3), torch.randn(7, CHANNELS, 4).double()
    torch.testing.assert_close(layer(u.roll(2, 0)), layer(u).roll(2, 0))


def test_samples_of_a_batch_do_not_mix() -> None:
    layer, u = conv(4, 2), torch.randn(3, 4, CHANNELS, 2).double()
    together = layer(u.flatten(0, 1)).reshape(u.shape)
    for i in range(3):
        torch.testing.assert_close(layer(u[i]), together[i])


def test_bfloat16_runs_and_is_close() -> None:
    layer, u = conv(4, 2, torch.float32), torch.randn(8, CHANNELS, 4, 4)
    exact = layer(u)
    for weights in (layer, conv(4, 2).bfloat16()):  # weights in float32, then in bfloat16
        weights.load_state_dict(layer.state_dict())
        rough = weights(u.bfloat16())
        assert rough.dtype == torch.bfloat16
        assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_gradients_are_right_with_queries() -> None:
    layer = conv(4, 2)
    u = torch.randn(6, CHANNELS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, SliceLayout(4, (0.1, 0.6))), (u,))


def test_weights_start_uniform_in_the_papers_range() -> None:
    layer = FourierTemporalConv(64, 2, 4)
    for part in (layer.real, layer.imag):
        assert 0 <= part.min() < 1e-3 / 64**2
        assert 0.999 / 64**2 < part.max() < 1 / 64**2
        assert part.mean().item() == pytest.approx(0.5 / 64**2, rel=0.02)


def test_weights_drawn_from_a_generator_repeat() -> None:
    layers = [FourierTemporalConv(3, 2, 4) for _ in range(2)]
    for layer in layers:
        layer.reset_parameters(torch.Generator().manual_seed(5))
    assert torch.equal(layers[0].real, layers[1].real)
    assert not torch.equal(layers[0].real, layers[0].imag)


def test_the_papers_network_has_its_temporal_parameters() -> None:
    """22 layers, 2 modes, real and imaginary part, 256 x 256: 5.77M."""
    layer = TemporalLayer(256, 2, 4)
    assert 22 * sum(p.numel() for p in layer.parameters()) == 22 * 2 * 2 * 256**2 == 5_767_168


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_layer_with_zero_weights_is_the_identity_to_the_last_bit(kind: torch.dtype) -> None:
    layer, u = TemporalLayer(CHANNELS, 2, 4).to(kind), torch.randn(8, CHANNELS, 3, dtype=kind)
    for part in layer.parameters():
        torch.nn.init.zeros_(part)
    assert torch.equal(layer(u, SliceLayout(4)), u)


def test_a_layer_adds_the_leaky_convolution() -> None:
    layer, u = TemporalLayer(CHANNELS, 2, 4).double(), torch.randn(8, CHANNELS, 3).double()
    mixed = by_fft(u, layer.conv.real, layer.conv.imag, 4)
    expected = u + mixed.clamp(min=0) + 0.01 * mixed.clamp(max=0)
    torch.testing.assert_close(layer(u, SliceLayout(4)), expected)


def test_inference_mode_first_does_not_spoil_training_later() -> None:
    layer, u = conv(4, 2, torch.float32), torch.randn(12, CHANNELS)
    with torch.inference_mode():
        layer(u, SliceLayout(4, (0.111, 0.222)))
    layer(u.requires_grad_(), SliceLayout(4, (0.111, 0.222))).sum().backward()
    assert u.grad is not None


def test_exporting_first_does_not_spoil_running_later() -> None:
    layer, u = conv(11, 2, torch.float32), torch.randn(11, CHANNELS)
    exported = torch.export.export(layer, (u,)).module()
    expected = by_fft(u, layer.real, layer.imag, 11)
    torch.testing.assert_close(layer(u), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exported(u), expected, atol=1e-5, rtol=1e-5)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="at least one channel, mode and slice"):
        FourierTemporalConv(4, 0, 4)
    with pytest.raises(InputError, match="7 rows are not a whole number of samples of 4 slices"):
        conv(4, 2)(torch.randn(7, CHANNELS).double())
