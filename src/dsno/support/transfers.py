"""Tensors between the host and the device, without the host waiting for them.

A GPU works through what it was asked for in order. A copy to or from ordinary memory makes the host
wait until all of that is done; one to or from pinned memory does not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def runs_ahead(device: torch.device) -> bool:
    """Whether the host can ask for more while the device computes."""
    return device.type == "cuda"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; it may still be on its way there."""
    if not runs_ahead(device):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Arrival:
    """A device's tensor on its way to the host.

    Args:
        tensor: still being computed, perhaps.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if not runs_ahead(tensor.device):
            self._host = tensor.cpu()
            return
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> Tensor:
        """The tensor on the host, once it is there."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
