"""The operator: noise in, the whole trajectory out, in one evaluation of a lifted backbone.

`DSNO` owns a backbone with time made a dimension of its data (`dsno.operator.lift`): the noise is
fed once per output time, each copy told its own time, spatial layers see B * M rows and temporal
layers mix the M slices of each sample (parallel decoding; arXiv 2211.13449, section 4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dsno.diffusion.conditions import GUIDANCE_SCALE, Condition
from dsno.diffusion.denoisers import (
    Denoiser,
    NetworkCall,
    Preconditioning,
    call_plain,
    first_channels,
)
from dsno.diffusion.schedules import signal_and_noise, state_scale
from dsno.diffusion.time_grids import Spacing, grid_times
from dsno.operator.batch_plan import Rows
from dsno.operator.lift import Lifted, lift
from dsno.operator.probe import trace
from dsno.operator.temporal import SliceLayout, constant_when_compiled
from dsno.support.errors import InputError, one_of

OUTPUTS = ("denoised", "state")


def _last_layer(network: nn.Module, denoiser: Denoiser, condition: Condition | None) -> nn.Module:
    """Of a copy of the teacher's network, the last submodule with its own parameters to run."""
    calls = trace(denoiser, condition)
    owners = [n for n, m in denoiser.network.named_modules() if list(m.parameters(recurse=False))]
    return network.get_submodule(
        max((n for n in owners if n in calls), key=lambda n: calls[n][-1].end)
    )


def _keep_first_half(layer: nn.Module) -> None:
    """Halve the output channels of a convolution or linear layer.

    Raises:
        InputError: if it is another kind of layer.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise InputError(
            f"The network's last layer is a {type(layer).__name__}, whose output cannot be halved "
            "to the prediction of x_0; only convolutions and linear layers can."
        )
    half = layer.weight.shape[0] // 2
    layer.weight = nn.Parameter(layer.weight[:half].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[:half].clone())
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = half
    else:
        layer.out_features = half


class DSNO(nn.Module):
    """The solution operator: `operator(noise, condition, times) -> states (batch, M, *shape)`.

    Args:
        lifted: the lifted backbone.
        preconditioning: what the backbone's input and output mean: the teacher's.
        sample_shape: shape of one sample, without the batch.
        call: how the backbone is called: the teacher's.
        spacing: the map g of the trained times t_m = g(m / M), m = M - 1 .. 0. The last is t = 0.
        output: `denoised`: x(t) = r x_1 + (alpha_t - alpha_1 r) E with r = sigma_t / sigma_1, exact
            at t = 1; `state` (the paper's): x(t) = E sqrt(alpha^2 d^2 + sigma^2) / d with
            d = sigma_data. E is the network's effective clean image.

    E = c_skip(1) x_1 + c_out(1) F, so training starts at the teacher's own one-step guess. For
    epsilon prediction that divides by alpha(1), which is nearly 0, so there E = F, and
    `from_teacher` zeroes the network's last layer. Of a teacher that predicts both x_0 and epsilon
    the student keeps the first half of the last layer, x_0.
    """

    def __init__(
        self,
        lifted: Lifted,
        preconditioning: Preconditioning,
        sample_shape: Sequence[int],
        *,
        call: NetworkCall = call_plain,
        spacing: str = "quadratic",
        output: str = "denoised",
    ) -> None:
        super().__init__()
        self.lifted = lifted
        self.preconditioning = preconditioning
        self.sample_shape = tuple(sample_shape)
        self.call = call
        self.spacing = Spacing(spacing, preconditioning.schedule)
        self.output = one_of(output, OUTPUTS, "output")

    @classmethod
    def from_teacher(
        cls,
        denoiser: Denoiser,
        sites: Sequence[str],
        *,
        slices: int = 4,
        modes: int = 2,
        channel_dim: int = 1,
        spacing: str = "quadratic",
        output: str = "denoised",
        condition: Condition | None = None,
        guidance: bool = False,
        shared: Sequence[str] = (),
    ) -> DSNO:
        """Lift a copy of the teacher's network; see `lift` and the class for the arguments."""
        lifted = lift(
            denoiser,
            sites,
            slices=slices,
            modes=modes,
            channel_dim=channel_dim,
            condition=condition,
            guidance=guidance,
            shared=shared,
        )
        preconditioning = denoiser.preconditioning
        if preconditioning.prediction_type == "epsilon":
            for parameter in _last_layer(lifted.network, denoiser, condition).parameters():
                nn.init.zeros_(parameter)
        if preconditioning.prediction_type == "sample_and_epsilon":
            _keep_first_half(_last_layer(lifted.network, denoiser, condition))
            preconditioning = dataclasses.replace(preconditioning, prediction_type="sample")
        return cls(
            lifted,
            preconditioning,
            denoiser.sample_shape,
            call=denoiser.call,
            spacing=spacing,
            output=output,
        )

    @property
    def slices(self) -> int:
        """M, the number of trained output times."""
        return self.lifted.slices

    @property
    def times(self) -> Tensor:
        """The trained times, falling, (M,), float64; the last is 0."""
        return grid_times(self.spacing, self.slices)

    def forward(
        self,
        noise: Float[Tensor, "batch *shape"],
        condition: Condition | None = None,
        times: Float[Tensor, " queries"] | None = None,
        *,
        last_only: bool = False,
    ) -> Float[Tensor, "batch slices *shape"]:
        """Return the states at the trained times, or at `times` if given, in one evaluation.

        Args:
            noise: unit normal, (batch, *shape).
            condition: tensors with a leading batch dimension; `guidance_scale` (batch,) for a
                student with that input.
            times: (Q,) in [0, 1]; computed beside the trained slices, which they do not change.
            last_only: return the state at t = 0 alone, (batch, 1, *shape), and compute only what it
                depends on; not together with `times`.

        Raises:
            InputError: for noise of another shape, times outside [0, 1] or with `last_only`, or a
                guidance scale that is missing or not an input.
        """
        if last_only and times is not None:
            raise InputError("Ask for the last state alone or for the states at other times.")
        if tuple(noise.shape[1:]) != self.sample_shape:
            raise InputError(
                f"This model makes samples of shape {self.sample_shape}, but the noise has "
                f"{tuple(noise.shape[1:])}."
            )
        layout, dtype, device = SliceLayout(self.slices), noise.dtype, noise.device
        if times is None:
            constants: tuple[Tensor, ...] = self._trained(dtype, device)
        else:
            asked = times.double().cpu()
            if not bool(((asked >= 0) & (asked <= 1)).all()):
                raise InputError("The times to evaluate at must lie in [0, 1].")
            last = (self.slices - 1) / self.slices
            layout = SliceLayout(self.slices, tuple((last - self.spacing.place(asked)).tolist()))
            constants = self._coefficients(torch.cat([self.times, asked]), dtype, device)

        batch, count = noise.shape[0], layout.count
        told, sigma, into, skip, out, of_noise, of_clean = constants
        x = noise * sigma
        rows = (x * into).repeat_interleave(count, 0)
        given = {k: v.repeat_interleave(count, 0) for k, v in (condition or {}).items()}
        embedding = self._embed_guidance(given.pop(GUIDANCE_SCALE, None))
        state = self.lifted.state
        state.set(layout, batch, last_only=last_only, embedding=embedding)
        f = self.call(self.lifted.network, rows, told.repeat(batch), given)
        if last_only:
            f = state.select_rows(f, Rows.LAST)
        f = first_channels(f, x if last_only else rows)
        f = f.to(dtype).reshape(batch, -1, *self.sample_shape)
        if times is not None:
            f = f[:, self.slices :]
        x = x[:, None]
        wanted = slice(len(of_noise) - f.shape[1], None)
        clean = skip * x + out * f
        return _per_slice(of_noise[wanted], f) * x + _per_slice(of_clean[wanted], f) * clean

    def _embed_guidance(self, scale: Tensor | None) -> Tensor | None:
        shifts = self.lifted.shifts
        if scale is None and shifts is not None:
            raise InputError(
                "This model was trained at sampled guidance scales: give guidance_scale, one "
                "number per sample."
            )
        if scale is not None and shifts is None:
            raise InputError("This model has no guidance scale among its inputs: give none.")
        return None if shifts is None or scale is None else shifts.embedding(scale)

    @constant_when_compiled
    @torch.inference_mode(False)
    def _trained(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """`_coefficients` at the trained times.

        Compiled code holds them as constants where it runs: what is made on the CPU in between
        would keep it from becoming a CUDA graph.
        """
        return self._coefficients(self.times, dtype, device)

    def _coefficients(
        self, times: Tensor, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, ...]:
        """What the network is told, sigma, c_in, c_skip and c_out at t = 1, and two factors.

        x(t) is the first factor at t times x_1 plus the second times E = c_skip x_1 + c_out F.
        """
        pre = self.preconditioning
        c = pre.coefficients(_one())
        skip, out = c.skip, c.out
        if pre.prediction_type == "epsilon":
            skip, out = 0 * _one(), _one()
        sigma_1 = pre.schedule.sigma(_one())
        alpha, sigma = signal_and_noise(pre.schedule, times)
        if self.output == "state":
            factors = 0 * sigma, state_scale(alpha, sigma, pre.sigma_data) / pre.sigma_data
        else:
            ratio = sigma / sigma_1
            factors = ratio, alpha - pre.schedule.alpha(_one()) * ratio
        told = pre.c_noise(times).to(device, torch.promote_types(dtype, torch.float32))
        return (told, *(v.to(device, dtype) for v in (sigma_1, c.into, skip, out, *factors)))

    def sample(self, noise: Tensor, condition: Condition | None = None) -> Tensor:
        """The state at t = 0, (batch, *shape): `forward(...)[:, -1]`, for less computation."""
        states: Tensor = self(noise, condition, last_only=True)
        return states[:, 0]


def sampling_cost(operator: DSNO, denoiser: Denoiser, condition: Condition | None = None) -> float:
    """Multiply-adds of one sample, in evaluations of the teacher's network.

    Convolutions, matrix products and attention are counted; what is done per element is not.

    Args:
        operator: the student.
        denoiser: its teacher.
        condition: one row of conditioning for networks that need it to run.
    """
    weight = next(operator.parameters())
    noise = torch.zeros(1, *operator.sample_shape, dtype=weight.dtype, device=weight.device)
    told = {k: v for k, v in (condition or {}).items() if k != GUIDANCE_SCALE}
    with torch.no_grad(), FlopCounterMode(display=False) as sample:
        operator.sample(noise, condition)
    with torch.no_grad(), FlopCounterMode(display=False) as evaluation:
        denoiser(noise, _one(), told)
    return float(sample.get_total_flops() / evaluation.get_total_flops())


def _one() -> Tensor:
    return torch.ones((), dtype=torch.float64)


def _per_slice(factor: Tensor, like: Tensor) -> Tensor:
    """Shape (slices,) to multiply (batch, slices, *shape)."""
    return factor.reshape(1, -1, *[1] * (like.ndim - 2))
