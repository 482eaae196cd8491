"""Edit samples: walk from one noise to another, and keep the noise while the class changes.

    python examples/interpolate.py runs/digits/finished --out interpolation.png

Every picture is one evaluation, and all of them are one batch. Along a row the noise turns from one
to another; down a column it stays and the class changes (one row for a model without classes).
"""

import argparse
import math

import torch

from dsno import DSNOPipeline
from dsno.images import grid, save_png


def between(a: torch.Tensor, b: torch.Tensor, steps: int) -> torch.Tensor:
    """Noises (steps, *shape) from a to b, both (*shape).

    cos(s) a + sin(s) b for s in [0, pi/2] is unit normal for every s if a and b are; their mean is
    not: its variance is a half, which no model has seen.
    """
    turn = torch.linspace(0, math.pi / 2, steps).view(-1, *[1] * a.ndim)
    return turn.cos() * a + turn.sin() * b


def interpolate(pipeline: DSNOPipeline, steps: int = 9, seed: int = 0) -> torch.Tensor:
    """Samples (classes, steps, C, H, W), about [-1, 1]."""
    shape = pipeline.model.operator.sample_shape
    ends = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    row = between(ends[0], ends[1], steps)
    classes = len(pipeline.model.config.class_frequencies or ())
    labels = [c for c in range(classes) for _ in range(steps)] or None
    noise = row.repeat(max(classes, 1), *[1] * len(shape))
    images = pipeline(noise=noise, class_labels=labels, output_type="raw").images
    return images.unflatten(0, (-1, steps))


def main() -> None:
    """Draw the grid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a student, or its id on the Hub")
    parser.add_argument("--steps", type=int, default=9, help="pictures in a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="interpolation.png")
    given = parser.parse_args()
    images = interpolate(DSNOPipeline.from_pretrained(given.model), given.steps, given.seed)
    save_png(grid(images.flatten(0, 1), columns=given.steps), given.out)
    print(f"Wrote {images.shape[0]} x {images.shape[1]} samples to {given.out}")


if __name__ == "__main__":
    main()
