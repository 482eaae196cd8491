"""Are the samples copies? Each sample of a model beside the training images nearest to it.

    python benchmarks/neighbours.py runs/cifar10-cpu --out neighbours.png
    python benchmarks/neighbours.py MODEL data.source=huggingface data.path=CIFAR

Every row: a sample, then the nearest images in pixels, then those in the features of a classifier.
It also prints the median distance from a sample to its nearest training image, over that from a
training image to the nearest other one: a model that copies has a ratio near 0, one that makes new
images like the real ones a ratio near 1. A run says itself which images it was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from feature_spaces import kept_classifier
from torch import Tensor

from dsno import DSNOPipeline
from dsno.data.dataset import Dataset
from dsno.data.load import read_data
from dsno.evaluation.features import Space, Wanted, build_space
from dsno.runs.build import load_recipe_data
from dsno.runs.locate import model_folder, saved_recipe
from dsno.runs.request import sections
from dsno.support.images import grid, save_png

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


def sampled(model: str, count: int) -> Tensor:
    """Samples, (count, C, H, W), of a model's or run's folder."""
    folder = model_folder(model)
    if folder is None:
        raise SystemExit(f"{model} is no model and no run.")
    pipeline, generator = DSNOPipeline.from_pretrained(folder), torch.Generator().manual_seed(0)
    sizes = [len(part) for part in torch.arange(count).split(CHUNK)]
    return torch.cat(
        [pipeline(batch_size=n, generator=generator, output_type="raw").images for n in sizes]
    ).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a model or a run")
    parser.add_argument("data", nargs="*", help="data.KEY=VALUE; a run's own if left out")
    parser.add_argument("--classifier", type=Path, help="folder with one that was trained before")
    parser.add_argument("--num", type=int, default=1000, help="samples of the ratio")
    parser.add_argument(
        "--rows", type=int, default=12, help="samples that are shown, the first ones"
    )
    parser.add_argument("--nearest", type=int, default=5)
    parser.add_argument("--out", type=Path, help="PNG file")
    options = parser.parse_args()
    if options.data:
        data = read_data(sections({}, options.data)[0])
    else:
        data = load_recipe_data(saved_recipe(Path(options.model)))
    if options.classifier is not None:
        space = kept_classifier(options.classifier, data, torch.device("cpu"))
    else:
        space = build_space("classifier", Wanted(data.sample_shape, data=data, seed=0))
    samples = sampled(options.model, options.num)
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
