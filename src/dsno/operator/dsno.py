"""The operator: noise in, the whole trajectory out, in one evaluation of a lifted backbone.

`DSNO` owns a backbone with time made a dimension of its data (`dsno.operator.lift`): its input is
one copy of the noise per output time, each with its own time; spatial layers see B * M rows and
temporal layers mix the M slices of each sample (parallel decoding; arXiv 2211.13449, section 4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import get_args

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
from dsno.diffusion.time_grids import Spacing, grid_times
from dsno.operator.batch_plan import Rows
from dsno.operator.coefficients import Coefficients, TrainedCoefficients, coefficients_at
from dsno.operator.lift import LiftConfig, Lifted, lift
from dsno.operator.probe import trace
from dsno.operator.readout import Readout
from dsno.operator.temporal import SliceLayout
from dsno.recipes.choices import OperatorOutput
from dsno.support.errors import InputError, one_of

OUTPUTS: tuple[OperatorOutput, ...] = get_args(OperatorOutput)


def _last_layer(network: nn.Module, denoiser: Denoiser, condition: Condition | None) -> nn.Module:
    """Of a copy of the teacher's network, the last submodule with its own parameters to run."""
    calls = trace(denoiser, condition)
    owners = [n for n, m in denoiser.network.named_modules() if list(m.parameters(recurse=False))]
    return network.get_submodule(
        max((n for n in owners if n in calls), key=lambda n: calls[n][-1].end)
    )


def _keep_first_half(layer: nn.Module) -> None:
    """Halve the output channels of a convolution, linear layer or readout.

    Raises:
        InputError: if it is another kind of layer.
    """
    if isinstance(layer, Readout):
        layer.keep_channels(layer.out_channels // 2)
        return
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
        with torch.device("cpu"):  # they need numbers also where the weights are on `meta`
            exact = self._coefficients_at(self.times)
        self.coefficients = TrainedCoefficients(exact, next(lifted.network.parameters()))

    @classmethod
    def from_teacher(
        cls,
        denoiser: Denoiser,
        config: LiftConfig,
        *,
        spacing: str = "quadratic",
        output: str = "denoised",
        condition: Condition | None = None,
    ) -> DSNO:
        """Lift a copy of the teacher's network; see `lift` and the class for the arguments."""
        lifted = lift(denoiser, config, condition=condition)
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
        return self.lifted.config.slices

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
            c: Coefficients = self.coefficients(dtype, device)
        else:
            asked = times.double().cpu()
            if not bool(((asked >= 0) & (asked <= 1)).all()):
                raise InputError("The times to evaluate at must lie in [0, 1].")
            last = (self.slices - 1) / self.slices
            layout = SliceLayout(self.slices, tuple((last - self.spacing.position(asked)).tolist()))
            c = self._coefficients_at(torch.cat([self.times, asked])).to(dtype, device)

        batch, count = noise.shape[0], self.lifted.rows_given(layout)
        x = noise * c.sigma
        rows = (x * c.c_in).repeat_interleave(count, 0)
        given = {k: v.repeat_interleave(count, 0) for k, v in (condition or {}).items()}
        embedding = self._embed_guidance(given.pop(GUIDANCE_SCALE, None))
        state = self.lifted.state
        state.set(layout, batch, last_only=last_only, embedding=embedding)
        f = self.call(self.lifted.network, rows, c.c_noise[:count].repeat(batch), given)
        if last_only:
            f = state.select_rows(f, Rows.LAST)
        f = first_channels(f, x[:1].expand(f.shape[0], *self.sample_shape))
        f = f.to(dtype).reshape(batch, -1, *self.sample_shape)
        if times is not None:
            f = f[:, self.slices :]
        x = x[:, None]
        wanted = slice(len(c.of_noise) - f.shape[1], None)
        clean = c.c_skip * x + c.c_out * f
        return _per_slice(c.of_noise[wanted], f) * x + _per_slice(c.of_clean[wanted], f) * clean

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

    def _coefficients_at(self, times: Tensor) -> Coefficients:
        # the rest of a network with a readout runs once, at the time of its input
        told = torch.ones_like(times) if self.lifted.config.readout else None
        return coefficients_at(times, self.preconditioning, self.output, told=told)

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
    given = {k: v for k, v in (condition or {}).items() if k != GUIDANCE_SCALE}
    with torch.no_grad(), FlopCounterMode(display=False) as sample:
        operator.sample(noise, condition)
    with torch.no_grad(), FlopCounterMode(display=False) as evaluation:
        denoiser(noise, torch.ones((), dtype=torch.float64), given)
    return float(sample.get_total_flops() / evaluation.get_total_flops())


def _per_slice(factor: Tensor, like: Tensor) -> Tensor:
    """Shape (slices,) to multiply (batch, slices, *shape)."""
    return factor.reshape(1, -1, *[1] * (like.ndim - 2))
