"""Are the samples copies? Each sample of a run beside the training images nearest to it.

    python benchmarks/neighbours.py runs/cifar10-cpu --out neighbours.png

Every row: a sample, then the nearest images in pixels, then those in the features of the run's
classifier. It also prints the median distance from a sample to its nearest training image, over
that from a training image to the nearest other one: a model that copies has a ratio near 0, one
that makes new images like the real ones a ratio near 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from dsno.data.dataset import Dataset
from dsno.evaluation.features import Space, Wanted, build_space
from dsno.evaluation.samplers import Draws, draw, student_sampler
from dsno.runs.build import conditions_of, load_recipe_data
from dsno.runs.locate import model_of, saved_recipe
from dsno.runs.stages import load_operator
from dsno.support.images import grid, save_png
from dsno.teachers.store import load_teacher

CHUNK = 500


def nearest(queries: Tensor, points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Distances to the nearest points, (n, count), and their rows, nearest first."""
    found = [torch.cdist(part, points).topk(count, largest=False) for part in queries.split(CHUNK)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def ratio(samples: Tensor, points: Tensor) -> float:
    """Median distance to the nearest point, of samples over of points to each other."""
    own, _ = nearest(points[: len(samples)], points, 2)  # the nearest is the point itself
    return (nearest(samples, points, 1)[0].median() / own[:, 1].median()).item()


def spaces(samples: Tensor, data: Dataset, space: Space) -> dict[str, tuple[Tensor, Tensor]]:
    """Samples and training images in each space."""
    images = data.images
    return {
        "pixels": (samples.flatten(1), images.flatten(1)),
        space.name: (space(samples).features, space(images).features),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--num", type=int, default=1000, help="samples of the ratio")
    parser.add_argument(
        "--rows", type=int, default=12, help="samples that are shown, the first ones"
    )
    parser.add_argument("--nearest", type=int, default=5)
    parser.add_argument("--out", type=Path, help="PNG file")
    options = parser.parse_args()
    recipe, teacher = saved_recipe(options.run), load_teacher(options.run / "teacher")
    data = load_recipe_data(recipe)
    conditions = conditions_of(recipe, teacher, None)
    draws = Draws(
        recipe.seed, teacher.denoiser.sample_shape, conditions, recipe.evaluate.batch_size
    )
    sampler = student_sampler(load_operator(options.run / model_of(recipe)))
    samples = draw(sampler, draws, options.num, lambda *_, **__: None).clamp(-1, 1)
    wanted = Wanted(data.sample_shape, data=data, seed=recipe.evaluate.classifier_seed)
    space = build_space("classifier", wanted)
    shown = [samples[: options.rows, None]]
    for name, (of_samples, of_images) in spaces(samples, data, space).items():
        print(f"{name}: {ratio(of_samples, of_images):.2f}")
        rows = nearest(of_samples[: options.rows], of_images, options.nearest)[1]
        shown.append(data.rows(rows.flatten()).unflatten(0, rows.shape))
    if options.out is not None:
        table = torch.cat(shown, 1)
        save_png(grid(table.flatten(0, 1), table.shape[1], gap=4), options.out)


if __name__ == "__main__":
    main()
