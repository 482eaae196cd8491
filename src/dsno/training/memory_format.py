"""In which order the numbers of images lie in memory while a network computes."""

from __future__ import annotations

import torch
from torch import nn


def lay_out(network: nn.Module, order: torch.memory_format) -> None:
    """Order the weights of convolutions in memory, and so what these make of images.

    What else has four dimensions, such as the weights of temporal layers, stays as it is.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.data = module.weight.data.clone(memory_format=order)
