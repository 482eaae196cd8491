"""Lifting: time made a dimension of any network's data, without touching the network's code.

`lift` attaches temporal layers behind named submodules (`sites`), and finds out by running the
network which of its submodules need not see every slice (`dsno.operator.batch_plan`): those that
time does not reach and those named as `shared` are computed once per sample, and those that run
after time was mixed for the last time serve the last slice alone when only t = 0 is asked for.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence

from torch import nn

from dsno.backbones.sites import inside, match_sites
from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import Denoiser
from dsno.operator.batch_plan import BatchPlan, BatchState, PartHooks, Rows, TemporalHook
from dsno.operator.guidance_embedding import SiteShifts
from dsno.operator.probe import (
    find_constant,
    find_fixed,
    find_plan,
    runs_unrestored,
    site_channels,
    trace,
)
from dsno.operator.temporal import SliceLayout, TemporalLayer
from dsno.support.errors import InputError, closest


class Lifted(nn.Module):
    """A network with temporal layers behind its sites; built by `lift`.

    `network` keeps its own parameter names; the temporal layers are `temporal.0`, `temporal.1`, ...
    in the order of `sites`. With `guidance`, the guidance scale is one more input: `shifts` turns
    it into a bias behind every site. `plan` says which submodules do not see every slice; where it
    names any, all slices of a sample must be given the same input and condition.
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
        plan: BatchPlan | None = None,
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
        self.plan = plan = plan or BatchPlan()
        self.shifts = SiteShifts(channels) if guidance else None
        self.state = BatchState(SliceLayout(slices), self.shifts)
        self.temporal = nn.ModuleList(
            TemporalLayer(c, modes, slices, channel_dim=channel_dim) for c in channels
        )
        modules = dict(network.named_modules())
        named = (
            (Rows.SHARED, plan.constant, True),
            (Rows.SHARED, plan.shared, plan.restores),
            (Rows.ALL, plan.lifted, plan.restores),
            (Rows.LAST, plan.final, plan.restores),
        )
        for rows, names, restores in named:
            for name in names:
                hooks = PartHooks(rows, self.state, plan, name, restores=restores)
                hooks.attach(_module(modules, name))
        for index, (site, layer) in enumerate(zip(self.sites, self.temporal, strict=True)):
            assert isinstance(layer, TemporalLayer)
            is_last = site == plan.last_site
            hook = TemporalHook(index, layer, self.state, last=is_last, restores=plan.restores)
            _module(modules, site).register_forward_hook(hook)

    def zero_temporal(self) -> None:
        """Set every temporal kernel to zero: the network is then the original one."""
        for parameter in self.temporal.parameters():
            nn.init.zeros_(parameter)


def _module(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        raise InputError(f"The network has no submodule {name!r}: {closest(name, modules)}")
    return modules[name]


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
    plan = find_plan(base, calls, names, once)
    constant = find_constant(denoiser, condition, calls, names, plan)
    plan = dataclasses.replace(plan, constant=constant)
    plan = dataclasses.replace(plan, fixed=find_fixed(denoiser, condition, plan))

    def build(plan: BatchPlan) -> Lifted:
        network = copy.deepcopy(base).requires_grad_(True)  # a teacher may be frozen
        return Lifted(
            network,
            names,
            channels,
            slices=slices,
            modes=modes,
            channel_dim=channel_dim,
            guidance=guidance,
            plan=plan,
        )

    lifted = build(plan)
    if runs_unrestored(lifted, lifted.network, lifted.state, denoiser, condition):
        return lifted
    return build(dataclasses.replace(plan, restores=True))
