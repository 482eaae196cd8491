"""diffusers' U-Nets seen from outside: how they are called, and where time is mixed in them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dsno.backbones.sites import Level
from dsno.support.errors import InputError


def call_unet(
    network: nn.Module, x: Tensor, c_noise: Tensor, condition: Mapping[str, Tensor]
) -> Tensor:
    """Call a `UNet2DModel`; the only condition it knows is `class_labels`.

    Raises:
        InputError: for another condition, or labels given to (or missing from) a network that does
            not (or does) take them.
    """
    for key in condition:
        if key != "class_labels":
            raise InputError(f"A UNet2DModel takes the condition 'class_labels' only, not {key!r}.")
    labels = condition.get("class_labels")
    classes = network.config.num_class_embeds  # type: ignore[union-attr]
    if (labels is None) != (classes is None):
        raise InputError(
            f"This model is class-conditional ({classes} classes): give class labels."
            if labels is None
            else "This model is unconditional: it takes no class labels."
        )
    output: Tensor = network(x, c_noise, class_labels=labels, return_dict=False)[0]
    return output


def call_condition_unet(
    network: nn.Module, x: Tensor, c_noise: Tensor, condition: Mapping[str, Tensor]
) -> Tensor:
    """Call a `UNet2DConditionModel`; its condition is `encoder_hidden_states` (batch, L, D).

    Raises:
        InputError: for another condition, or none.
    """
    if set(condition) != {"encoder_hidden_states"}:
        raise InputError(
            "This model is conditioned on text: give the condition 'encoder_hidden_states' (a "
            f"prompt's embedding), not {sorted(condition) or 'nothing'}."
        )
    output: Tensor = network(x, c_noise, condition["encoder_hidden_states"], return_dict=False)[0]
    return output


def unet_sites(network: nn.Module) -> list[str]:
    """Names of the submodules after which DSNO mixes time, for diffusers' U-Nets.

    After every residual block of the encoder and decoder (after its attention where there is one),
    before the skip connection is taken, and once in the middle block between its attention and the
    second residual block. None after down- or upsampling layers. Source: arXiv 2211.13449, fig. 2.

    The names are found from the blocks' own lists (`resnets`, `attentions`), so every diffusers
    block type that has them is covered.

    Raises:
        InputError: if the network does not have diffusers' U-Net layout.
    """
    found: list[str] = []
    for side in ("down_blocks", "mid_block", "up_blocks"):
        section = getattr(network, side, None)
        if section is None and side == "mid_block":
            continue
        if not isinstance(section, nn.Module):
            raise InputError(
                f"A {type(network).__name__} has no {side!r}, so its time-mixing sites cannot be "
                "found; name them in `student.sites`."
            )
        if side == "mid_block":
            found.append(f"mid_block.{_middle_site(section)}")
            continue
        for i, block in enumerate(section.children()):
            found += [f"{side}.{i}.{site}" for site in _block_sites(block)]
    return found


def unet_levels(network: nn.Module) -> list[Level]:
    """The submodules of each resolution, from the highest down; the middle block is in none.

    A block's down- or upsampling layer counts with the block.
    """
    down = len(_list(network, "down_blocks"))
    up = len(_list(network, "up_blocks"))
    return [
        Level(
            encoder=(*(("conv_in",) if i == 0 else ()), f"down_blocks.{i}"),
            decoder=(f"up_blocks.{up - 1 - i}",),
        )
        for i in range(min(down, up))
    ]


def unet_middle(network: nn.Module) -> str | None:
    """Name of the block between encoder and decoder; None for a network without."""
    return "mid_block" if isinstance(getattr(network, "mid_block", None), nn.Module) else None


def _block_sites(block: nn.Module) -> list[str]:
    resnets = _list(block, "resnets")
    attentions = _list(block, "attentions")
    if not resnets:
        raise InputError(
            f"A {type(block).__name__} has no residual blocks, so its time-mixing sites cannot be "
            "found; name them in `student.sites`."
        )
    sites = [f"resnets.{i}" for i in range(len(resnets))]
    # AttnSkipUpBlock2D has one attention, after its last residual block.
    first = len(resnets) - len(attentions)
    for i, attention in enumerate(attentions):
        if attention is not None:
            sites[first + i] = f"attentions.{i}"
    return sites


def _middle_site(block: nn.Module) -> str:
    attentions = _list(block, "attentions")
    return "attentions.0" if attentions and attentions[0] is not None else "resnets.0"


def _list(block: nn.Module, name: str) -> list[nn.Module | None]:
    found = getattr(block, name, None)
    # nn.ModuleList.children() skips None, which marks a residual block without attention
    return list(found._modules.values()) if isinstance(found, nn.ModuleList) else []
