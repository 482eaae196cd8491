"""Lifting: time made a dimension of any network's data, without touching the network's code.

`lift` attaches temporal layers behind named submodules (`sites`), and finds out by running the
network which of its submodules need not see every slice (`dsno.rows`): those that time does not
reach and those named as `shared` are computed once per sample, and those that run after time was
mixed for the last time serve the last slice alone when only t = 0 is asked for.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsno.backbones.sites import inside, match_sites
from dsno.denoisers import GUIDANCE_SCALE, Condition, Denoiser
from dsno.errors import InputError, closest
from dsno.modulation import SiteShifts
from dsno.rows import Layout, PartHooks, Parts, Rows, TemporalHook
from dsno.temporal import Slices, TemporalLayer


class Lifted(nn.Module):
    """A network with temporal layers behind its sites; built by `lift`.

    `network` keeps its own parameter names; the temporal layers are `temporal.0`, `temporal.1`, ...
    in the order of `sites`. With `guidance`, the guidance scale is one more input: `shifts` turns
    it into a bias behind every site. `parts` says which submodules do not see every slice.
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
        parts: Parts | None = None,
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
        self.parts = parts = parts or Parts()
        self.shifts = SiteShifts(channels) if guidance else None
        self.layout = Layout(Slices(slices), self.shifts)
        self.temporal = nn.ModuleList(
            TemporalLayer(c, modes, slices, channel_dim=channel_dim) for c in channels
        )
        modules = dict(network.named_modules())
        named = (
            (Rows.SHARED, parts.constant, dataclasses.replace(parts, restores=True)),
            (Rows.SHARED, parts.shared, parts),
            (Rows.ALL, parts.lifted, parts),
            (Rows.LAST, parts.final, parts),
        )
        for rows, names, how in named:
            for name in names:
                PartHooks(rows, self.layout, how).attach(_module(modules, name))
        for index, (site, layer) in enumerate(zip(self.sites, self.temporal, strict=True)):
            assert isinstance(layer, TemporalLayer)
            is_last = site == parts.last_site
            hook = TemporalHook(index, layer, self.layout, last=is_last, restores=parts.restores)
            _module(modules, site).register_forward_hook(hook)

    def zero_temporal(self) -> None:
        """Set every temporal kernel to zero: the network is then the original one."""
        for parameter in self.temporal.parameters():
            nn.init.zeros_(parameter)


def _module(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        raise InputError(f"The network has no submodule {name!r}: {closest(name, modules)}")
    return modules[name]


# ---------------------------------------------------------------- what a network does when it runs


class Call(NamedTuple):
    """One call of a submodule.

    Attributes:
        start, end: its places in the order of all starts and ends.
        shape: of its output, or the first of them; None if that is no tensor.
    """

    start: int
    end: int
    shape: tuple[int, ...] | None


def trace(denoiser: Denoiser, condition: Condition | None) -> dict[str, list[Call]]:
    """Run the network once on zeros; return the calls of each of its submodules that ran."""
    calls: dict[str, list[Call]] = {}
    begun: list[int] = []
    clock = 0

    def before(module: nn.Module, args: Any) -> None:
        nonlocal clock
        begun.append(clock)
        clock += 1

    def behind(name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal clock
            first = output[0] if isinstance(output, tuple) else output
            shape = tuple(first.shape) if isinstance(first, Tensor) else None
            calls.setdefault(name, []).append(Call(begun.pop(), clock, shape))
            clock += 1

        return record

    handles = []
    for name, module in denoiser.network.named_modules():
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(behind(name)))
    try:
        with torch.no_grad():
            denoiser(_zeros(denoiser, 1), _one(), condition)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def site_channels(
    calls: Mapping[str, Sequence[Call]], sites: Sequence[str], channel_dim: int
) -> list[int]:
    """Channels of the output of each site.

    Raises:
        InputError: if a site never runs or its output is not a tensor with channels.
    """
    channels = []
    for site in sites:
        if site not in calls:
            raise InputError(f"Site {site!r} is never run by the network's forward pass.")
        shape = calls[site][-1].shape
        if shape is None or len(shape) < 2:
            raise InputError(f"The output of site {site!r} is not a tensor with channels.")
        channels.append(shape[channel_dim])
    return channels


# ----------------------------------------------------------------------- shared, lifted and final


def find_parts(
    network: nn.Module,
    calls: Mapping[str, Sequence[Call]],
    sites: Sequence[str],
    shared: Sequence[str],
) -> Parts:
    """Sort a network's submodules by the slices they have to see; each as a whole where it can be.

    Nothing is final if the site that runs last runs more than once.

    Raises:
        InputError: for a shared submodule that never runs, or not before time is first mixed.
    """
    for name in shared:
        if name not in calls:
            raise InputError(
                f"The shared part {name!r} is never run by the network's forward pass."
            )
        if sites and calls[name][-1].end > min(calls[site][0].end for site in sites):
            raise InputError(
                f"The shared part {name!r} runs after time was mixed, so its input is not the same "
                "for all slices; share parts that run earlier, or mix time later."
            )
    last, end = "", -1.0
    if sites:
        last = max(sites, key=lambda site: calls[site][-1].end)
        end = calls[last][-1].end
        if len(calls[last]) > 1:
            last, end = "", math.inf
    lifted: list[str] = []
    final: list[str] = []

    def sort(parent: str, module: nn.Module) -> None:
        for child_name, child in module.named_children():
            name = f"{parent}.{child_name}" if parent else child_name
            runs = calls.get(name, ())
            if name in shared:
                continue
            if runs and runs[0].start > end:
                final.append(name)
                continue
            holds_shared = any(inside(part, [name]) for part in shared)
            if runs and shared and not holds_shared:
                lifted.append(name)
            if not runs or holds_shared or any(run.start < end < run.end for run in runs):
                sort(name, child)

    sort("", network)
    return Parts(shared=tuple(shared), lifted=tuple(lifted), final=tuple(final), last_site=last)


def find_constant(
    denoiser: Denoiser,
    condition: Condition | None,
    calls: Mapping[str, Sequence[Call]],
    sites: Sequence[str],
    parts: Parts,
) -> tuple[str, ...]:
    """Layers that neither the time a network is told nor the mixing of times reaches.

    In a U-Net they are the first convolution and that of the first block in front of its time
    embedding. Looked for among layers with weights and without submodules, outside of other parts.
    Two runs tell: nothing a layer puts out may be a function of the time in autograd's graph, which
    weights of zero do not hide, nor change with it, which a table of times does not hide. None are
    found in a network whose own output is no differentiable function of time, or without data.
    """
    x = _zeros(denoiser, 2)
    if not sites or x.is_meta:
        return ()
    mixed = min(calls[site][0].end for site in sites)
    taken = (*parts.shared, *parts.final)
    network = copy.deepcopy(denoiser.network).requires_grad_(False)
    candidates = {
        name: layer
        for name, layer in network.named_modules()
        if not list(layer.children())
        and list(layer.parameters())
        and name in calls
        and calls[name][-1].end < mixed
        and not inside(name, taken)
    }
    made: dict[str, list[Tensor]] = {}
    reached: set[str] = set()

    def behind(name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            entered = args[0] if args else None
            whole = all(
                isinstance(x, Tensor) and x.ndim > 2 and len(x) == 2 for x in (entered, output)
            )
            if whole and not output.requires_grad:
                made.setdefault(name, []).append(output)
            else:
                reached.add(name)

        return record

    for name, layer in candidates.items():
        layer.register_forward_hook(behind(name))
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    given = {k: v.expand(2, *v.shape[1:]) for k, v in (condition or {}).items()}
    given.pop(GUIDANCE_SCALE, None)
    for moment in (0.25, 0.75):
        told = denoiser.preconditioning.c_noise(torch.tensor([moment] * 2).double())
        told = told.to(x.device, torch.promote_types(x.dtype, torch.float32))
        with torch.enable_grad():
            output = denoiser.call(network, x, told.requires_grad_(), given)
        if not output.requires_grad:
            return ()
    return tuple(
        name
        for name, (first, *others) in made.items()
        if name not in reached and len(others) == 1 and first.equal(others[0])
    )


class _Trial(nn.Module):
    """A lifted network and how it is called, as one module."""

    def __init__(self, lifted: Lifted, denoiser: Denoiser) -> None:
        super().__init__()
        self.lifted, self.call = lifted, denoiser.call

    def forward(self, x: Tensor, told: Tensor, condition: Condition) -> Tensor:
        return self.call(self.lifted.network, x, told, condition)


def runs_unrestored(lifted: Lifted, denoiser: Denoiser, condition: Condition | None) -> bool:
    """Whether the network's own code never combines tensors of different rows.

    Tried on tensors without data, so that it costs nothing: two samples, whose rows cannot be taken
    for all slices by broadcasting.
    """
    layout, count = lifted.layout, lifted.slices
    x = _zeros(denoiser, 2 * count).to("meta")
    given = {k: v.to("meta") for k, v in (condition or {}).items() if k != GUIDANCE_SCALE}
    given = {k: v.expand(2 * count, *v.shape[1:]) for k, v in given.items()}
    trial = _Trial(lifted, denoiser)
    tensors = {**dict(trial.named_parameters()), **dict(trial.named_buffers())}
    nothing = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    for last_only in (False, True):
        layout.set(Slices(count), 2, last_only=last_only, embedding=None)
        told = torch.zeros(2 * count, device="meta")
        try:
            with torch.no_grad():
                made = torch.func.functional_call(trial, nothing, (x, told, given))
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            return False
        finally:
            layout.set(Slices(count), 1, embedding=None)
        if made.shape[0] not in ((2, 2 * count) if last_only else (2 * count,)):
            return False
    return True


def lift(
    denoiser: Denoiser,
    sites: Sequence[str],
    *,
    slices: int,
    modes: int,
    channel_dim: int = 1,
    condition: Condition | None = None,
    guidance: bool = False,
    shared: Sequence[str] = (),
) -> Lifted:
    """Copy a denoiser's network and attach temporal layers behind the submodules named by `sites`.

    Args:
        denoiser: the teacher; it is not changed.
        sites: names or patterns of submodules, see `match_sites` (a `Backbone` of the registry
            knows its own). Those inside shared parts are left out: a constant needs no mixing.
        slices: M.
        modes: Fourier modes kept.
        channel_dim: where the sites' outputs have their channels: 1, or -1 for tokens.
        condition: one row of conditioning for a network that needs it to run.
        guidance: whether the guidance scale becomes an input.
        shared: names or patterns of submodules computed once per sample, at the time of the first
            slice, instead of once per slice.

    Raises:
        InputError: for a site that matches nothing, never runs or has no channels, or a shared part
            that matches nothing, never runs or does not run before time is mixed.
    """
    base = denoiser.network
    once = match_sites(base, shared)
    once = [name for name in once if not inside(name, [n for n in once if n != name])]
    names = [site for site in match_sites(base, sites) if not inside(site, once)]
    calls = trace(denoiser, condition)
    channels = site_channels(calls, names, channel_dim)
    parts = find_parts(base, calls, names, once)
    constant = find_constant(denoiser, condition, calls, names, parts)
    parts = dataclasses.replace(parts, constant=constant)

    def build(parts: Parts) -> Lifted:
        network = copy.deepcopy(base).requires_grad_(True)  # a teacher may be frozen
        return Lifted(
            network,
            names,
            channels,
            slices=slices,
            modes=modes,
            channel_dim=channel_dim,
            guidance=guidance,
            parts=parts,
        )

    lifted = build(parts)
    if runs_unrestored(lifted, denoiser, condition):
        return lifted
    return build(dataclasses.replace(parts, restores=True))


def _zeros(denoiser: Denoiser, rows: int) -> Tensor:
    place = next(denoiser.network.parameters())
    return torch.zeros(rows, *denoiser.sample_shape, dtype=place.dtype, device=place.device)


def _one() -> Tensor:
    return torch.ones((), dtype=torch.float64)
