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
from dataclasses import dataclass

from torch import nn

from dsno.backbones.sites import inside, match_sites
from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import Denoiser
from dsno.operator.batch_plan import (
    BatchPlan,
    BatchState,
    Rows,
    ShiftHook,
    SubmoduleHooks,
    TemporalHook,
)
from dsno.operator.guidance_embedding import SiteShifts
from dsno.operator.probe import (
    find_constant,
    find_fixed,
    find_plan,
    rows_out,
    run_until,
    runs_unrestored,
    site_channels,
    trace,
)
from dsno.operator.readout import Readout
from dsno.operator.temporal import SliceLayout, TemporalLayer
from dsno.support.errors import InputError, closest
from dsno.support.scalars import whole


@dataclass(frozen=True)
class LiftConfig:
    """How a network is lifted.

    Attributes:
        sites: names or patterns of the submodules behind which time is mixed, see `match_sites` (a
            `Backbone` of the registry knows its own). Those inside shared submodules are left out:
            a constant needs no mixing. Names alone in a `Lifted` network.
        slices: M.
        modes: Fourier modes kept; unused with a readout.
        channel_dim: where the sites' outputs have their channels: 1, or -1 for tokens.
        shared: names or patterns of submodules computed once per sample, at the time of the first
            slice, instead of once per slice.
        guidance: whether the guidance scale is an input.
        readout: name of the layer that has a head for each slice; all in front of it is computed
            once per sample and time is mixed nowhere, so that `sites` say only where the guidance
            scale enters. Empty for a network that is given every time.

    Raises:
        InputError: for the guidance input without a site, a readout together with sites that have
            no use or with shared submodules, or a number of slices or modes that is no whole number
            of at least 1.
    """

    sites: Sequence[str]
    slices: int = 4
    modes: int = 2
    channel_dim: int = 1
    shared: Sequence[str] = ()
    guidance: bool = False
    readout: str = ""

    def __post_init__(self) -> None:
        """Make lists tuples, so that equal configurations are equal and cannot change."""
        object.__setattr__(self, "slices", whole(self.slices, "number of slices"))
        object.__setattr__(self, "modes", whole(self.modes, "number of modes"))
        object.__setattr__(self, "sites", tuple(self.sites))
        object.__setattr__(self, "shared", tuple(self.shared))
        if self.guidance and not self.sites:
            raise InputError(
                "The guidance scale enters where time is mixed, so a student with that input needs "
                "at least one site; name some in `student.sites`."
            )
        if self.readout and (self.shared or (self.sites and not self.guidance)):
            raise InputError(
                f"Nothing in front of the readout {self.readout!r} sees a time, so nothing is "
                "there to mix or to share: give neither sites nor shared submodules."
            )


class Lifted(nn.Module):
    """A network with temporal layers behind its sites; built by `lift`.

    `network` keeps its own parameter names; the temporal layers are `temporal.0`, `temporal.1`, ...
    in the order of the sites. With the guidance input `shifts` turns the scale into a bias behind
    every site. `plan` says which submodules do not see every slice; where it names any, all slices
    of a sample must be given the same input and condition. A readout takes the place of the layer
    of its name, and its heads are that layer's parameters.

    Args:
        network: hooks are attached to it.
        config: with the names of the sites; what is shared is what the plan says.
        channels: of the output of each site.
        plan: by default every submodule sees every slice.

    Raises:
        InputError: for a name that no submodule has.
    """

    def __init__(
        self,
        network: nn.Module,
        config: LiftConfig,
        channels: Sequence[int],
        plan: BatchPlan | None = None,
    ) -> None:
        super().__init__()
        plan = plan or BatchPlan()
        self.network = network
        self.config = config if config.readout else dataclasses.replace(config, shared=plan.shared)
        self.channels = tuple(channels)
        self.plan = plan
        self.shifts = SiteShifts(channels) if config.guidance else None
        self.state = BatchState(SliceLayout(config.slices), self.shifts)
        self.temporal = nn.ModuleList(
            TemporalLayer(c, config.modes, config.slices, channel_dim=config.channel_dim)
            for c in (() if config.readout else channels)
        )
        if config.readout:
            _put_readout(network, config, self.state)
        modules = dict(network.named_modules())
        named = (
            (Rows.SHARED, plan.constant, True),
            (Rows.SHARED, plan.shared, plan.restores),
            (Rows.ALL, plan.lifted, plan.restores),
            (Rows.LAST, plan.final, plan.restores),
        )
        for rows, names, restores in named:
            for name in names:
                hooks = SubmoduleHooks(rows, self.state, plan, name, restores=restores)
                hooks.attach(_module(modules, name))
        if config.readout:
            for index, site in enumerate(config.sites):
                shift = ShiftHook(index, self.state, config.channel_dim)
                _module(modules, site).register_forward_hook(shift)
            return
        for index, (site, layer) in enumerate(zip(config.sites, self.temporal, strict=True)):
            assert isinstance(layer, TemporalLayer)
            is_last = site == plan.last_site
            hook = TemporalHook(index, layer, self.state, last=is_last, restores=plan.restores)
            _module(modules, site).register_forward_hook(hook)

    @property
    def time_enters(self) -> str:
        """How the output depends on time, in words."""
        readout = self.config.readout
        sites = f"{len(self.temporal)} time-mixing sites"
        return f"a head of {readout} for each time" if readout else sites

    def rows_given(self, layout: SliceLayout) -> int:
        """Rows of each sample that the network is to be given."""
        return 1 if self.config.readout and not self.plan.shared else layout.count


def _put_readout(network: nn.Module, config: LiftConfig, state: BatchState) -> None:
    layer = _module(dict(network.named_modules()), config.readout)
    parent, _, name = config.readout.rpartition(".")
    setattr(network.get_submodule(parent), name, Readout(layer, config.slices, state))


def _module(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        raise InputError(f"The network has no submodule {name!r}: {closest(name, modules)}")
    return modules[name]


def lift(denoiser: Denoiser, config: LiftConfig, *, condition: Condition | None = None) -> Lifted:
    """Copy a denoiser's network and attach temporal layers behind its sites.

    Args:
        denoiser: the teacher; it is not changed.
        config: how to lift it.
        condition: one row of conditioning for a network that needs it to run.

    Raises:
        InputError: for a site that matches nothing, never runs or has no channels, a shared
            submodule that matches nothing, never runs or does not run before time is mixed, or a
            readout that does not run once, is of another kind of layer, or whose output the network
            combines with what it cannot.
    """
    base = denoiser.network
    matched = match_sites(base, config.shared)
    shared = [name for name in matched if not inside(name, [n for n in matched if n != name])]
    sites = [site for site in match_sites(base, config.sites) if not inside(site, shared)]
    config = dataclasses.replace(config, sites=sites, shared=shared)
    calls = trace(denoiser, condition)
    channels = site_channels(calls, sites, config.channel_dim)

    def build(plan: BatchPlan) -> Lifted:
        network = copy.deepcopy(base).requires_grad_(True)  # a teacher may be frozen
        return Lifted(network, config, channels, plan)

    if config.readout:
        before = run_until(base, calls, config.readout)
        # all rows only if the network's own code asks for them, as for the shape of its output
        for plan in BatchPlan(), BatchPlan(shared=before, restores=True):
            fixed = find_fixed(denoiser, condition, calls, plan)
            lifted = build(dataclasses.replace(plan, fixed=fixed))
            if runs_with_readout(lifted, denoiser, condition):
                return lifted
        raise InputError(
            f"The network cannot go on with the output of {config.readout!r} for several times, so "
            "that layer cannot be its readout; name another one, or choose another student.lift."
        )
    plan = find_plan(base, calls, sites, shared)
    constant = find_constant(denoiser, condition, calls, sites, plan)
    plan = dataclasses.replace(plan, constant=constant)
    plan = dataclasses.replace(plan, fixed=find_fixed(denoiser, condition, calls, plan))
    lifted = build(plan)
    if runs_unrestored(lifted, lifted.network, plan, lifted.state, denoiser, condition):
        return lifted
    return build(dataclasses.replace(plan, restores=True))


def runs_with_readout(lifted: Lifted, denoiser: Denoiser, condition: Condition | None) -> bool:
    """Whether a network with a readout gives its states at all times, and that at t = 0 alone."""
    samples, state = 2, lifted.state
    given = lifted.rows_given(state.layout)
    found = []
    for last_only in (False, True):
        state.set(state.layout, samples, last_only=last_only, embedding=None)
        found.append(rows_out(lifted.network, denoiser, condition, samples * given))
        state.set(state.layout, 1, embedding=None)
    return found == [samples * state.layout.count, samples * given]
