"""How fast a teacher's batches are made, beside other ways to draw their noise.

    python benchmarks/feed.py --out results/feed.json

Batches of 512 images of 3x32x32 with noise, times and labels, as training on a GPU has them made,
in one thread and in several, by wall time: the machine should have nothing else to do. The noise
alone, by processor time. The ways take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import Work, interleaved

from dsno.data.dataset import Dataset
from dsno.support import seeds
from dsno.support.environment import environment
from dsno.support.files import write_json
from dsno.training.batches import teacher_batches
from dsno.training.prefetch import Batch, Prefetcher
from dsno.training.trainer import Batches

SHAPE, SIZE, CLASSES = (3, 32, 32), 512, 10


def images_per_second(batches: Batches, size: int, seconds: float, *, threads: int) -> float:
    """How fast batches are made ahead of a training that takes no time."""

    def make(step: int) -> Batch:
        return batches(step, range(size))

    with Prefetcher(make, itertools.count(), pin=False, threads=threads) as made:
        next(made)
        start, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds or count == 0:
            next(made)
            count += 1
    return count * size / spent


def batches() -> Batches:
    """Of random images."""
    pixels = torch.randint(0, 256, (50_000, *SHAPE), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (len(pixels),))
    data = Dataset("random", pixels, labels, CLASSES)
    return teacher_batches(
        data,
        SIZE,
        seed=0,
        flips=True,
        conditional=True,
        label_dropout=0.1,
        null_class=CLASSES,
    )


def generators_of_their_own() -> None:
    """The noise of a batch as until 0.1: a generator made for each item."""
    for item in range(SIZE):
        seeds.generator(0, seeds.TEACHER_NOISE, item).standard_normal(SHAPE, np.float32)


def measure(seconds: float, rounds: int, threads: int) -> dict[str, Any]:
    """Images a second of each way, and the ratios of what is used to what it replaces."""
    draws: dict[str, Work] = {
        "a generator for each item": generators_of_their_own,
        "one generator": lambda: seeds.item_noise(0, range(SIZE), SHAPE),
        "torch's generator": lambda: torch.randn(SIZE, *SHAPE),
    }
    spent = interleaved(draws, rounds, torch.device("cpu"), least_seconds=seconds)
    noise = {name: SIZE / each for name, each in spent.items()}
    made, counts = batches(), (1, threads)
    taken: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(rounds):
        for count in counts if turn % 2 == 0 else reversed(counts):
            taken[count].append(images_per_second(made, SIZE, seconds / 10, threads=count))
    fed = {count: statistics.median(values) for count, values in taken.items()}
    return {
        "noise_per_second": noise,
        "images_per_second": {f"{count} threads": rate for count, rate in fed.items()},
        "ratios": {
            "one generator / a generator for each item": noise["one generator"]
            / noise["a generator for each item"],
            f"{threads} threads / one": fed[threads] / fed[1],
        },
    }


def main() -> None:
    """Measure and write."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=max(2, cores), help="to compare with one")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=9, help="in which the ways take turns")
    o = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(o.seconds, o.rounds, o.threads)
    for figures in found.values():
        for name, value in figures.items():
            print(f"{name:44} {value:10,.2f}")
    command = f"python {shlex.join(sys.argv)}"
    write_json(o.out, {"command": command, "cores": cores, **environment(), **found})


if __name__ == "__main__":
    main()
