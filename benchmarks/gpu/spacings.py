"""How near few steps come to many, by solver and spacing: what to collect trajectories with.

    OMP_NUM_THREADS=1 python benchmarks/gpu/spacings.py --weights benchmarks/gpu/weights

The teacher of the recipe `cifar10-small` with kept weights; no images are needed, nor a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from dsno.diffusion.solvers import solve
from dsno.diffusion.time_grids import SPACINGS
from dsno.recipes import load_recipe
from dsno.runs.build import new_teacher
from dsno.support import distributed, seeds
from dsno.support.errors import InputError
from gpu import weights
from gpu.images import as_npz, made_up
from gpu.models import TEACHER, put

EXACT = ("dpm++2m", 160, "quadratic")
CHECK = ("dpm++2m", 96, "uniform")
"""What others are compared with, and another one that should be as good."""
CLASSES = 10


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder of a visit's weights")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--solvers", nargs="+", default=["dpm++2m", "unipc"])
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 24])
    options = parser.parse_args()
    found = weights.load([options.weights], TEACHER)
    if found is None:
        raise InputError(f"There are no teacher's weights in {options.weights}.")
    with tempfile.TemporaryDirectory() as folder:  # any images tell shape and classes
        images = as_npz(made_up(Path(folder), CLASSES), Path(folder) / "images.npz")
        teacher = new_teacher(
            load_recipe("cifar10-small", ["data.source=npz", f"data.path={images}"])
        )
    put(teacher.denoiser.network, found[0], TEACHER)
    denoiser, device = teacher.denoiser.eval().to(distributed.device()), distributed.device()
    noise = seeds.item_noise(0, range(options.samples), denoiser.sample_shape).to(device)
    labels = {"class_labels": (torch.arange(options.samples) % CLASSES).to(device)}

    def sample(method: str, steps: int, spacing: str) -> Tensor:
        with torch.no_grad():
            solution = solve(
                denoiser, noise, method=method, steps=steps, spacing=spacing, condition=labels
            )
        return solution.states[:, -1]

    def apart(method: str, steps: int, spacing: str) -> float:
        return float((sample(method, steps, spacing) - exact).square().mean().sqrt())

    exact = sample(*EXACT)
    columns = [(method, steps) for method in options.solvers for steps in options.steps]
    print(f"| spacing | {' | '.join(f'{m}, {n}' for m, n in columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for spacing in SPACINGS:
        row = " | ".join(f"{apart(m, n, spacing):.3f}" for m, n in columns)
        print(f"| {spacing} | {row} |", flush=True)
    print(f"\n{CHECK[0]} with {CHECK[1]} steps, {CHECK[2]}: {apart(*CHECK):.3f}")


if __name__ == "__main__":
    main()
