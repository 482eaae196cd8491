"""The networks that can be saved, called and lifted by name.

A saved teacher or student names its network's class and holds its configuration; this table turns
the two into a module again. Nothing outside the table is ever built from a file, so a file cannot
make the package import code. Your own networks join it with `register`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dsno.backbones import edm, transformer, unet
from dsno.backbones.sites import Level, match_sites
from dsno.diffusion.denoisers import call_plain
from dsno.support.errors import InputError, closest


@dataclass(frozen=True)
class Backbone:
    """How networks of one class are built, called and lifted.

    Attributes:
        name: of the class; what saved folders say.
        build: configuration -> network.
        config: network -> its JSON-able configuration, which `build` accepts.
        call: (network, c_in x, c_noise (batch,), condition) -> F.
        sites: network -> names of the submodules behind which time is mixed.
        channel_dim: where those submodules' outputs have their channels: 1, or -1 for tokens.
        levels: network -> its submodules at each resolution, from the highest; none if it has one.
        middle: network -> name of the last submodule between encoder and decoder; None without.
        readout: network -> name of its last layer with weights; None if it is not known.
    """

    name: str
    build: Callable[[Mapping[str, Any]], nn.Module]
    config: Callable[[nn.Module], dict[str, Any]]
    call: Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
    sites: Callable[[nn.Module], list[str]]
    channel_dim: int = 1
    levels: Callable[[nn.Module], list[Level]] = lambda network: []
    middle: Callable[[nn.Module], str | None] = lambda network: None
    readout: Callable[[nn.Module], str | None] = lambda network: None


def _build_diffusers(name: str) -> Callable[[Mapping[str, Any]], nn.Module]:
    def build(config: Mapping[str, Any]) -> nn.Module:
        import diffusers  # seconds

        network: nn.Module = getattr(diffusers, name).from_config(dict(config))
        return network

    return build


def _diffusers_config(network: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in dict(network.config).items() if not k.startswith("_")}  # type: ignore[arg-type]


def _own_config(network: nn.Module) -> dict[str, Any]:
    return dict(network.config)  # type: ignore[arg-type]


BACKBONES: dict[str, Backbone] = {
    b.name: b
    for b in (
        Backbone(
            "UNet2DModel",
            _build_diffusers("UNet2DModel"),
            _diffusers_config,
            unet.call_unet,
            unet.unet_sites,
            levels=unet.unet_levels,
            middle=unet.unet_middle,
            readout=lambda network: "conv_out",
        ),
        Backbone(
            "UNet2DConditionModel",
            _build_diffusers("UNet2DConditionModel"),
            _diffusers_config,
            unet.call_condition_unet,
            unet.unet_sites,
            levels=unet.unet_levels,
            middle=unet.unet_middle,
            readout=lambda network: "conv_out",
        ),
        Backbone(
            "DiTTransformer2DModel",
            _build_diffusers("DiTTransformer2DModel"),
            _diffusers_config,
            transformer.call_dit,
            transformer.block_sites,
            channel_dim=-1,
            readout=lambda network: "proj_out_2",
        ),
        Backbone(
            "SongUNet",
            lambda config: edm.SongUNet(**config),
            _own_config,
            edm.call_edm,
            edm.edm_sites,
            levels=edm.edm_levels,
            middle=edm.edm_middle,
            readout=edm.edm_readout,
        ),
        Backbone(
            "DhariwalUNet",
            lambda config: edm.DhariwalUNet(**config),
            _own_config,
            edm.call_edm,
            edm.edm_sites,
            levels=edm.edm_levels,
            middle=edm.edm_middle,
            readout=edm.edm_readout,
        ),
    )
}


def register(
    network: type[nn.Module],
    config: Callable[[Any], dict[str, Any]],
    *,
    sites: tuple[str, ...],
    call: Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor] | None = None,
    channel_dim: int = 1,
    readout: str | None = None,
) -> None:
    """Make your own class of network known under its name.

    Args:
        network: the class; `network(**config)` builds one.
        config: gives the constructor's arguments of a network, JSON-able.
        sites: names or patterns of the submodules behind which time is mixed, see `match_sites`.
        call: how it is called; `network(x, c_noise, **condition)` by default.
        channel_dim: where the sites' outputs have their channels: 1, or -1 for tokens.
        readout: name of the last layer with weights, for `student.lift: readout`.
    """
    BACKBONES[network.__name__] = Backbone(
        network.__name__,
        lambda values: network(**values),
        config,
        call or call_plain,
        lambda built: match_sites(built, sites),
        channel_dim,
        readout=lambda built: readout,
    )


def backbone(name: str) -> Backbone:
    """The row of a class's name.

    Raises:
        InputError: if there is none.
    """
    if name not in BACKBONES:
        raise InputError(
            f"The network class {name!r} is not known: {closest(name, BACKBONES).rstrip('.')} "
            "(register your own classes with dsno.backbones.register; on the command line "
            "name the file that does with --adapter)."
        )
    return BACKBONES[name]


def backbone_of(network: nn.Module) -> Backbone:
    """The row of a network.

    Raises:
        InputError: if its class is not known.
    """
    return backbone(type(network).__name__)
