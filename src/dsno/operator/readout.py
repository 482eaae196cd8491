"""Time behind the last feature map alone: a last layer with weights of its own for every time.

The rest of the network runs once for a sample, and each trained time has a *head*, a copy of the
last layer, so that the whole trajectory costs little more than one evaluation. Between the trained
times the heads are interpolated linearly along the spacing; as they are linear in the features,
that interpolates their outputs. The nearest method is arXiv 2607.26004, which has a head for each
interval of time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dsno.operator.batch_plan import BatchState
from dsno.support.errors import InputError

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}


class Readout(nn.Module):
    """M heads in the place of one layer: its rows of every sample become M, falling in time.

    For t = 0 alone the last head is the only one to be computed, which costs what the layer did.
    Queries of the layout in flight follow the M, each by weights between those of the two trained
    times around it; times before the first trained one have its head.

    Args:
        layer: a linear layer, or a convolution of one group with zeros around its input; every head
            starts as a copy of it.
        heads: M.
        state: says which times are wanted.

    Attributes:
        weight: (M, C_out, C_in, ...).
        bias: (M, C_out), or None.

    Raises:
        InputError: for another layer.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, layer: nn.Module, heads: int, state: BatchState) -> None:
        super().__init__()
        self.state = state
        self._run, self.channel_dim = _function_of(layer)
        for name in ("weight", "bias"):
            value = getattr(layer, name)
            if value is not None:
                value = nn.Parameter(value.detach().expand(heads, *value.shape).clone())
            self.register_parameter(name, value)

    @property
    def out_channels(self) -> int:
        """Of each head."""
        return self.weight.shape[1]

    def keep_channels(self, count: int) -> None:
        """Drop all but the first so many output channels of every head."""
        self.weight = nn.Parameter(self.weight[:, :count].detach().clone())
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias[:, :count].detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """What the layer takes, (B, ...) -> what it gives, (B * count, ...); (B, ...) for t = 0."""
        weight = self._wanted(self.weight)
        bias = None if self.bias is None else self._wanted(self.bias).flatten()
        y = self._run(x, weight.flatten(0, 1), bias)
        if self.channel_dim == 1:
            return y.reshape(-1, self.out_channels, *y.shape[2:])
        y = y.reshape(*y.shape[:-1], len(weight), self.out_channels)
        return y.movedim(-2, 1).flatten(0, 1)

    def _wanted(self, values: Float[Tensor, "M *rest"]) -> Float[Tensor, "count *rest"]:
        """Of the weights or biases of all heads, those of the times in flight."""
        if self.state.last_only:
            return values[-1:]
        queries = self.state.layout.queries
        return torch.cat([values, between(values, queries)]) if queries else values


def between(values: Float[Tensor, "M *rest"], phases: Sequence[float]) -> Float[Tensor, "Q *rest"]:
    """Interpolate linearly between values at the phases j / M, j = 0 .. M - 1; constant outside."""
    last = len(values) - 1
    position = (torch.tensor(phases, dtype=torch.float64) * len(values)).clamp(0, last)
    below = position.floor().clamp(max=max(last - 1, 0))
    share = (position - below).to(values).reshape(-1, *[1] * (values.ndim - 1))
    index = below.long().to(values.device)
    return torch.lerp(values[index], values[(index + 1).clamp(max=last)], share)


def _function_of(layer: nn.Module) -> tuple[Callable[..., Tensor], int]:
    """A layer as a function of input, weight and bias, and the dimension of its output's channels.

    Raises:
        InputError: for one that is not supported.
    """
    if isinstance(layer, nn.Linear):
        return functional.linear, -1
    for kind, function in _CONVOLUTIONS.items():
        if isinstance(layer, kind):
            found: Any = layer
            if found.groups == 1 and found.padding_mode == "zeros":
                options = {key: getattr(found, key) for key in ("stride", "padding", "dilation")}
                return functools.partial(function, **options), 1
    raise InputError(
        f"The readout is {layer}, and only a linear layer or a convolution of one group with zeros "
        "around its input can have a head for each time; name another layer, or choose another "
        "student.lift."
    )
