"""Where to step: the grid between the asked times."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsno.diffusion.time_grids import Spacing
from dsno.support.errors import InputError


def step_times(times: Tensor, steps: int, spacing: Spacing, start: float = 1.0) -> Tensor:
    """The step grid from `start` down to the last of `times`, which are all on it.

    `steps` are shared among the segments between the asked times in proportion to their length in
    the spacing variable (largest remainder, at least one each). `times`: strictly falling, float64.

    Raises:
        InputError: if there are fewer steps than segments.
    """
    ends = torch.cat([times.new_tensor([start]), times[times < start]])
    segments = len(ends) - 1
    if steps < segments:
        raise InputError(
            f"{steps} solver steps cannot reach {segments} separate times; "
            f"ask for at least {segments}."
        )
    positions = spacing.position(ends)
    if positions[0] == positions[-1]:  # all beyond karras' largest sigma: step evenly in time
        spacing, positions = Spacing("uniform", spacing.schedule), ends
    lengths = positions[:-1] - positions[1:]
    share = lengths / lengths.sum() * steps
    counts = share.floor().long().clamp(min=1)
    while int(counts.sum()) != steps:
        gap = share - counts
        if int(counts.sum()) < steps:
            counts[gap.argmax()] += 1
        else:
            counts[torch.where(counts > 1, gap, math.inf).argmin()] -= 1
    grid = [ends[:1]]
    for i, count in enumerate(counts.tolist()):
        u = torch.lerp(positions[i], positions[i + 1], torch.arange(1, count + 1).double() / count)
        piece = spacing.time(u)
        piece[-1] = ends[i + 1]
        grid.append(piece)
    return torch.cat(grid)
