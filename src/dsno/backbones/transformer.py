"""diffusers' diffusion transformers seen from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dsno.backbones.sites import match_sites
from dsno.support.errors import InputError


def call_dit(
    network: nn.Module, x: Tensor, c_noise: Tensor, condition: Mapping[str, Tensor]
) -> Tensor:
    """Call a `DiTTransformer2DModel`; its condition is `class_labels`, always.

    Raises:
        InputError: for another condition, or none.
    """
    if set(condition) != {"class_labels"}:
        raise InputError(
            f"A {type(network).__name__} takes the condition 'class_labels', not "
            f"{sorted(condition)}."
        )
    module: Any
    for module in network.modules():
        if type(module).__name__ == "LabelEmbedding":
            module.dropout_prob = 0  # it would drop labels of the student's training by itself
    output: Tensor = network(x, c_noise, class_labels=condition["class_labels"], return_dict=False)[
        0
    ]
    return output


def block_sites(network: nn.Module) -> list[str]:
    """Every transformer block."""
    return match_sites(network, ["transformer_blocks.*"])
