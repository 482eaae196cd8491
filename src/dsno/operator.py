"""The operator: a teacher's backbone with time made a dimension of the data.

`lift` attaches temporal layers behind named submodules of any network without touching its code.
`DSNO` owns a lifted backbone and maps noise to the whole trajectory in one forward pass: the noise
is fed once per output time, each copy told its own time, spatial layers see B * M rows and temporal
layers mix the M slices of each sample (parallel decoding; arXiv 2211.13449, section 4).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsno.backbones.registry import call_plain
from dsno.backbones.sites import match_sites
from dsno.denoisers import (
    GUIDANCE_SCALE,
    Condition,
    Denoiser,
    NetworkCall,
    Preconditioning,
    first_channels,
)
from dsno.errors import InputError, closest, one_of
from dsno.grids import Spacing, grid_times
from dsno.modulation import SiteShifts
from dsno.schedules import signal_and_noise
from dsno.temporal import Slices, TemporalLayer

OUTPUTS = ("denoised", "state")


class _Layout:
    """What the layers of one lifted network share: the batch in flight and the guidance input.

    Attributes:
        slices: of the batch.
        shifts: turns the guidance's embedding into a bias per site; None without that input.
        embedding: of the guidance scale, a row per row of the batch; None without that input.
    """

    def __init__(self, slices: Slices, shifts: SiteShifts | None) -> None:
        self.slices = slices
        self.shifts = shifts
        self.embedding: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Layout:
        """Copy all but the embedding, which belongs to a forward pass of the original."""
        return _Layout(copy.deepcopy(self.slices, memo), copy.deepcopy(self.shifts, memo))


class _TemporalHook:
    """A forward hook that owns its layer, so that `deepcopy` (EMA) copies both together."""

    def __init__(self, index: int, layer: TemporalLayer, layout: _Layout) -> None:
        self.index = index
        self.layer = layer
        self.layout = layout

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._mix(output[0]), *output[1:])
        return self._mix(output)

    def _mix(self, u: Tensor) -> Tensor:
        mixed: Tensor = self.layer(u, self.layout.slices)
        if self.layout.shifts is None or self.layout.embedding is None:
            return mixed
        dim = self.layer.conv.channel_dim
        return mixed + self.layout.shifts.at(self.index, self.layout.embedding, mixed, dim)


class Lifted(nn.Module):
    """A network with temporal layers behind its sites; built by `lift`.

    `network` keeps its own parameter names; the temporal layers are `temporal.0`, `temporal.1`, ...
    in the order of `sites`. With `guidance`, the guidance scale is one more input: `shifts` turns
    it into a bias behind every site.
    """

    def __init__(
        self,
        network: nn.Module,
        sites: Sequence[str],
        channels: Sequence[int],
        *,
        slices: int,
        modes: int,
        channel_dim: int = 1,
        guidance: bool = False,
    ) -> None:
        super().__init__()
        if guidance and not sites:
            raise InputError(
                "The guidance scale enters where time is mixed, so a student with that input needs "
                "at least one site; name some in `student.sites`."
            )
        self.network = network
        self.sites = tuple(sites)
        self.channels = tuple(channels)
        self.slices, self.modes, self.channel_dim = slices, modes, channel_dim
        self.shifts = SiteShifts(channels) if guidance else None
        self.layout = _Layout(Slices(slices), self.shifts)
        self.temporal = nn.ModuleList(
            TemporalLayer(c, modes, slices, channel_dim=channel_dim) for c in channels
        )
        modules = dict(network.named_modules())
        for index, (site, layer) in enumerate(zip(self.sites, self.temporal, strict=True)):
            if site not in modules:
                raise InputError(f"The network has no submodule {site!r}: {closest(site, modules)}")
            assert isinstance(layer, TemporalLayer)
            modules[site].register_forward_hook(_TemporalHook(index, layer, self.layout))

    def zero_temporal(self) -> None:
        """Set every temporal kernel to zero: the network is then the original one."""
        for parameter in self.temporal.parameters():
            nn.init.zeros_(parameter)


def _probe(
    denoiser: Denoiser, condition: Condition | None, watched: Iterable[str]
) -> dict[str, Tensor]:
    """Run the network once on zeros; return the watched submodules' outputs in running order."""
    seen: dict[str, Tensor] = {}
    modules = dict(denoiser.network.named_modules())

    def recorder(name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            seen.pop(name, None)
            seen[name] = output[0] if isinstance(output, tuple) else output

        return record

    handles = [modules[name].register_forward_hook(recorder(name)) for name in watched]
    try:
        parameter = next(denoiser.network.parameters())
        x = torch.zeros(1, *denoiser.sample_shape, dtype=parameter.dtype, device=parameter.device)
        with torch.no_grad():
            denoiser(x, _one(), condition)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def site_channels(
    denoiser: Denoiser, sites: Sequence[str], condition: Condition | None, channel_dim: int
) -> list[int]:
    """Channels of the output of each site, found by running the network once.

    Raises:
        InputError: if a site never runs or its output is not a tensor with channels.
    """
    seen = _probe(denoiser, condition, sites)
    for site in sites:
        if site not in seen:
            raise InputError(f"Site {site!r} is never run by the network's forward pass.")
        if not isinstance(seen[site], Tensor) or seen[site].ndim < 2:
            raise InputError(f"The output of site {site!r} is not a tensor with channels.")
    return [seen[site].shape[channel_dim] for site in sites]


def _last_layer(network: nn.Module, denoiser: Denoiser, condition: Condition | None) -> nn.Module:
    """Of a copy of the teacher's network, the last submodule with its own parameters to run."""
    owners = [n for n, m in denoiser.network.named_modules() if list(m.parameters(recurse=False))]
    return network.get_submodule(list(_probe(denoiser, condition, owners))[-1])


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


def lift(
    denoiser: Denoiser,
    sites: Sequence[str],
    *,
    slices: int,
    modes: int,
    channel_dim: int = 1,
    condition: Condition | None = None,
    guidance: bool = False,
) -> Lifted:
    """Copy a denoiser's network and attach temporal layers behind the submodules named by `sites`.

    Args:
        denoiser: the teacher; it is not changed.
        sites: names or patterns of submodules, see `match_sites` (a `Backbone` of the registry
            knows its own).
        slices: M.
        modes: Fourier modes kept.
        channel_dim: where the sites' outputs have their channels: 1, or -1 for tokens.
        condition: one row of conditioning for a network that needs it to run.
        guidance: whether the guidance scale becomes an input.

    Raises:
        InputError: for a site that matches nothing, never runs or has no channels.
    """
    names = match_sites(denoiser.network, sites)
    channels = site_channels(denoiser, names, condition, channel_dim)
    network = copy.deepcopy(denoiser.network).requires_grad_(True)  # a teacher may be frozen
    return Lifted(
        network,
        names,
        channels,
        slices=slices,
        modes=modes,
        channel_dim=channel_dim,
        guidance=guidance,
    )


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
    ) -> Float[Tensor, "batch slices *shape"]:
        """Return the states at the trained times, or at `times` if given, in one evaluation.

        Args:
            noise: unit normal, (batch, *shape).
            condition: tensors with a leading batch dimension; `guidance_scale` (batch,) for a
                student with that input.
            times: (Q,) in [0, 1]; computed beside the trained slices, which they do not change.

        Raises:
            InputError: for noise of another shape, times outside [0, 1], or a guidance scale that
                is missing or not an input.
        """
        if tuple(noise.shape[1:]) != self.sample_shape:
            raise InputError(
                f"This model makes samples of shape {self.sample_shape}, but the noise has "
                f"{tuple(noise.shape[1:])}."
            )
        slices, every = Slices(self.slices), self.times
        if times is not None:
            asked = times.double().cpu()
            if not bool(((asked >= 0) & (asked <= 1)).all()):
                raise InputError("The times to evaluate at must lie in [0, 1].")
            last = (self.slices - 1) / self.slices
            slices = Slices(self.slices, tuple((last - self.spacing.place(asked)).tolist()))
            every = torch.cat([every, asked])

        batch, count = noise.shape[0], slices.count
        x = noise * self.preconditioning.schedule.sigma(_one()).to(noise)
        rows = (x * self.preconditioning.coefficients(_one()).into.to(x)).repeat_interleave(
            count, 0
        )
        given = {k: v.repeat_interleave(count, 0) for k, v in (condition or {}).items()}
        embedding = self._embed_guidance(given.pop(GUIDANCE_SCALE, None))
        kind = torch.promote_types(noise.dtype, torch.float32)
        told = self.preconditioning.c_noise(every).to(noise.device, kind).repeat(batch)
        # Set, not restored: gradient checkpointing runs the network again during backward.
        self.lifted.layout.slices, self.lifted.layout.embedding = slices, embedding
        f = first_channels(self.call(self.lifted.network, rows, told, given), rows)
        f = f.to(noise.dtype)
        f = f.reshape(batch, count, *self.sample_shape)
        if times is not None:
            f, every = f[:, self.slices :], every[self.slices :]
        return self._states(x[:, None], f, every)

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

    def _states(self, x: Tensor, f: Tensor, times: Tensor) -> Tensor:
        pre = self.preconditioning
        clean = f
        if pre.prediction_type != "epsilon":
            c = pre.coefficients(_one())
            clean = c.skip.to(x) * x + c.out.to(x) * f
        alpha, sigma = signal_and_noise(pre.schedule, times)
        if self.output == "state":
            return _per_slice(state_scale(alpha, sigma, pre.sigma_data) / pre.sigma_data, f) * clean
        ratio = sigma / pre.schedule.sigma(_one())
        rest = alpha - pre.schedule.alpha(_one()) * ratio
        return _per_slice(ratio, f) * x + _per_slice(rest, f) * clean

    def sample(self, noise: Tensor, condition: Condition | None = None) -> Tensor:
        """The state at t = 0, (batch, *shape): one network evaluation."""
        states: Tensor = self(noise, condition)
        return states[:, -1]


def _one() -> Tensor:
    return torch.ones((), dtype=torch.float64)


def state_scale(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """sqrt(alpha^2 sigma_data^2 + sigma^2): the standard deviation of x_t for zero-mean data."""
    return (alpha**2 * sigma_data**2 + sigma**2).sqrt()


def _per_slice(factor: Tensor, like: Tensor) -> Tensor:
    """Shape (slices,) to multiply (batch, slices, *shape)."""
    return factor.to(like).reshape(1, -1, *[1] * (like.ndim - 2))
