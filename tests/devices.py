"""A device that computes nothing: what crosses between it and the host is noted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")


class Crossings(TorchDispatchMode):
    """Within it, tensors on `DEVICE` can be copied to the host (as zeros) and read (as 0).

    Attributes:
        up, down: shapes and types of what was copied to the device and to the host.
        reads: how many numbers the host has waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.up: list[tuple[tuple[int, ...], torch.dtype]] = []
        self.down: list[tuple[tuple[int, ...], torch.dtype]] = []
        self.reads = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        source = args[-1] if function is torch.ops.aten.copy_.default else next(iter(args), None)
        if isinstance(source, Tensor) and source.device == DEVICE:
            if function is torch.ops.aten._local_scalar_dense.default:
                self.reads += 1
                return 0
            target = given.get("device", args[0].device)
            if target is not None and torch.device(target).type == "cpu":
                self.down.append((tuple(source.shape), given.get("dtype") or source.dtype))
                return torch.zeros(source.shape, dtype=given.get("dtype") or source.dtype)
        made = function(*args, **given)
        is_copy = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if is_copy and source.device != DEVICE and _is_on_device(made):
            self.up.append((tuple(source.shape), source.dtype))
        return made


def _is_on_device(made: Any) -> bool:
    return any(isinstance(t, Tensor) and t.device == DEVICE for t in tree_leaves(made))
