"""What the card can do at most: products in each arithmetic, copies on it and to it."""

from __future__ import annotations

import timing
import torch

from gpu.models import arithmetic
from gpu.work import Work

SHARE = 0.3


def run(work: Work) -> None:
    """Measure and record."""
    device = work.device
    work.section("arithmetic and copies", lambda: _limits(work, device))
    work.section("copies from the host", lambda: _from_host(work, device))


def _limits(work: Work, device: torch.device) -> None:
    with arithmetic("float32", device):
        found = timing.ceilings(device)
    with arithmetic("tf32", device):
        fast = timing.ceilings(device)["operations_per_second_float32"]
    for name, value in {**found, "operations_per_second_tf32": fast}.items():
        kind = name.removeprefix("operations_per_second_")
        if kind == name:
            work.record("copy bandwidth", "read and written", value / 1e12, "TB/s")
        else:
            work.record("matrix products", kind, value / 1e12, "TFLOP/s")


def _from_host(work: Work, device: torch.device) -> None:
    source = torch.ones(work.scaled(2**28, 2**20), dtype=torch.uint8)
    if device.type == "cuda":
        source = source.pin_memory()
    target = torch.empty_like(source, device=device)
    works = {"copy": lambda: target.copy_(source, non_blocking=True)}
    taken = timing.interleaved(works, 9, device)["copy"]
    work.record("copy bandwidth", "from pinned memory", source.numel() / taken / 1e9, "GB/s")
