"""The average of a model's weights over its training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def average_of(model: nn.Module) -> AveragedModel:
    """A copy of a model for `update_average`."""
    return AveragedModel(model, use_buffers=False)


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, updates: int, decay: float) -> None:
    """Update an exponential average with warm-up: min(decay, (1 + n) / (10 + n)) at update n.

    `AveragedModel.update_parameters` reads its count from the device, for which the host waits.

    Args:
        average: what is updated; its buffers become those of the model.
        model: what is averaged.
        updates: n, how many there were before; the first copies the weights.
        decay: what the average keeps of itself.
    """
    ours: list[Tensor] = list(average.module.parameters())
    theirs: list[Tensor] = list(model.parameters())
    if updates == 0:
        for kept, current in zip(ours, theirs, strict=True):
            kept.copy_(current)
    else:
        torch._foreach_lerp_(ours, theirs, 1 - min(decay, (1 + updates) / (10 + updates)))
    for kept, current in zip(average.module.buffers(), model.buffers(), strict=True):
        kept.copy_(current)
    average.n_averaged += 1
