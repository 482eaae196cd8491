"""Ratios of times on a noisy machine, and what the machine can do at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Work = Callable[[], object]


def seconds(work: Work, device: torch.device) -> float:
    """Of one call: between CUDA events on a GPU, else this process's processor time.

    Processor time leaves out that the machine gave the core to somebody else. Nothing measured by
    it waits for anything, and torch is held to one thread.
    """
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000
    start = time.process_time()
    work()
    return time.process_time() - start


def interleaved(
    works: Mapping[str, Work], rounds: int, device: torch.device, *, least_seconds: float = 0
) -> dict[str, float]:
    """Median seconds of each, all taking turns; the order is reversed every second round.

    There are `rounds` of them, and more until they have taken `least_seconds` altogether.
    """
    for work in works.values():
        for _ in range(3 if device.type == "cuda" else 1):  # warm up; compile; choose kernels
            work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    index, spent = 0, 0.0
    while index < rounds or spent < least_seconds:
        for name in names if index % 2 == 0 else reversed(names):
            taken[name].append(seconds(works[name], device))
            spent += taken[name][-1]
        index += 1
    return {name: statistics.median(values) for name, values in taken.items()}


def ceilings(device: torch.device) -> dict[str, float]:
    """Operations a second of large matrix products and bytes a second of large copies."""
    size = 8192 if device.type == "cuda" else 1536
    kinds = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    found = {}
    for kind in kinds:
        a = torch.randn(size, size, device=device, dtype=kind)
        taken = interleaved({"product": lambda a=a: a @ a}, 9, device)["product"]
        found[f"operations_per_second_{str(kind).removeprefix('torch.')}"] = 2 * size**3 / taken
    source = torch.empty((2**30 if device.type == "cuda" else 2**26), dtype=torch.uint8)
    source = source.to(device).fill_(1)
    target = torch.empty_like(source)
    taken = interleaved({"copy": lambda: target.copy_(source)}, 9, device)["copy"]
    found["bytes_per_second"] = 2 * source.numel() / taken  # read and written
    return found
