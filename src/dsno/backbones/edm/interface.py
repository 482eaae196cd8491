"""EDM's networks seen from outside: how they are called, and where time is mixed in them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dsno.backbones.edm.layers import UNetBlock
from dsno.backbones.edm.networks import EDMNetwork, local_name
from dsno.backbones.sites import Level
from dsno.diffusion.conditions import CLASS_LABELS
from dsno.support.errors import InputError


def call_edm(
    network: nn.Module, x: Tensor, c_noise: Tensor, condition: Mapping[str, Tensor]
) -> Tensor:
    """Call a `SongUNet` or `DhariwalUNet`; the only condition they know is `class_labels`.

    Raises:
        InputError: for another condition, or labels given to (or missing from) a network that does
            not (or does) take them.
    """
    for key in condition:
        if key != CLASS_LABELS:
            raise InputError(
                f"A {type(network).__name__} takes the condition {CLASS_LABELS!r} only, "
                f"not {key!r}."
            )
    output: Tensor = network(x, c_noise, condition.get(CLASS_LABELS))
    return output


def edm_sites(network: nn.Module) -> list[str]:
    """Names of the blocks behind which DSNO mixes time.

    Every residual block that keeps the resolution, with its attention, before its skip is taken;
    of the two in the middle the first. None behind down- and upsampling blocks and the second path.
    Source: arXiv 2211.13449, fig. 2.

    Raises:
        InputError: for another kind of network.
    """
    if not isinstance(network, EDMNetwork):
        raise InputError(
            f"A {type(network).__name__} is not a network of EDM, so its time-mixing sites cannot "
            "be found; name them in `student.sites`."
        )
    return [
        f"{side}.{name}"
        for side, blocks in (("enc", network.enc), ("dec", network.dec))
        for name, block in blocks.items()
        if isinstance(block, UNetBlock) and not block.resize and local_name(name) != "in1"
    ]


def edm_levels(network: nn.Module) -> list[Level]:
    """The submodules of each resolution, from the highest down; the two in the middle left out.

    A downsampling layer counts with the resolution it leads to, and so does an upsampling one.

    Raises:
        InputError: for another kind of network.
    """
    if not isinstance(network, EDMNetwork):
        raise InputError(f"A {type(network).__name__} is not a network of EDM.")

    def at(blocks: nn.ModuleDict, side: str, size: str) -> tuple[str, ...]:
        names = (name for name in blocks if name.partition("_")[0] == size)
        return tuple(f"{side}.{name}" for name in names if local_name(name) not in ("in0", "in1"))

    sizes = dict.fromkeys(name.partition("_")[0] for name in network.enc)
    return [Level(at(network.enc, "enc", s), at(network.dec, "dec", s)) for s in sizes]


def edm_middle(network: nn.Module) -> str:
    """Name of the second of the two blocks in the middle.

    Raises:
        InputError: for another kind of network.
    """
    if not isinstance(network, EDMNetwork):
        raise InputError(f"A {type(network).__name__} is not a network of EDM.")
    return next(f"dec.{name}" for name in network.dec if local_name(name) == "in1")


def edm_readout(network: nn.Module) -> str:
    """Name of the last convolution.

    Raises:
        InputError: for another kind of network.
    """
    if not isinstance(network, EDMNetwork):
        raise InputError(f"A {type(network).__name__} is not a network of EDM.")
    if hasattr(network, "out_conv"):
        return "out_conv"
    return next(f"dec.{name}" for name in reversed([*network.dec]) if name.endswith("aux_conv"))
