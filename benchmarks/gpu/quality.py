"""How good samples are: Frechet distances to real images by one lasting ruler, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsno.data.dataset import Dataset
from dsno.evaluation.features import Classifier, Features, thumbnail, train_classifier
from dsno.evaluation.frechet import Moments, frechet_distance, moments
from dsno.evaluation.samplers import Draws, Sampler, draw
from dsno.images import grid, save_png
from dsno.recipes import Recipe
from dsno.runs.build import conditions_of, load_recipe_data
from dsno.support import seeds
from dsno.teachers.store import Teacher
from gpu import weights
from gpu.models import arithmetic
from gpu.work import Work

CLASSIFIER = "classifier"
CHUNK = 5000
PICTURES, COLUMNS = 64, 16


@dataclass(frozen=True)
class Ruler:
    """Feature spaces, and the moments of real images in them."""

    spaces: Mapping[str, Features]
    real: Mapping[str, Moments]
    accuracy: float

    def distances(self, samples: Tensor) -> dict[str, float]:
        """To the real images."""
        return {
            name: frechet_distance(moments(space(samples)), self.real[name])
            for name, space in self.spaces.items()
        }

    def between(self, one: Tensor, other: Tensor) -> dict[str, float]:
        """Of two sets of samples."""
        return {
            name: frechet_distance(moments(space(one)), moments(space(other)))
            for name, space in self.spaces.items()
        }


def ruler(work: Work, recipe: Recipe) -> Ruler:
    """The ruler of this visit and the next ones: its classifier is kept with the weights."""
    data, device = load_recipe_data(recipe), work.device
    network, accuracy = _classifier(work, data, recipe.evaluate.classifier_seed)
    network = network.to(device).eval()
    spaces: dict[str, Features] = {
        "classifier": lambda x: network.features(x.to(device)).cpu(),
        "thumbnail": thumbnail,
    }
    parts = torch.split(torch.arange(len(data)), CHUNK)
    real = {
        name: moments(torch.cat([space(data.rows(rows)) for rows in parts]))
        for name, space in spaces.items()
    }
    return Ruler(spaces, real, accuracy)


def _classifier(work: Work, data: Dataset, seed: int) -> tuple[Classifier, float]:
    """The one that is kept, or a new one, trained on the device."""
    found = weights.load((work.out, *work.weights), CLASSIFIER)
    assert data.labels is not None
    assert data.num_classes is not None
    if found is not None:
        network = Classifier(data.sample_shape[0], data.num_classes)
        network.load_state_dict(found[0])
        return network, float(found[1]["accuracy"])
    device = work.device
    with torch.device(device):  # what it makes, it makes there
        trained = train_classifier(
            lambda rows: data.rows(rows.cpu()).to(device),
            data.labels.to(device),
            data.num_classes,
            seed=seed,
        )
    about = {"accuracy": trained.held_out_accuracy, "seed": seed, **work.origin()}
    weights.save(trained.network.state_dict(), work.out, CLASSIFIER, about)
    # as it will be read again, so that all visits measure alike
    kept = weights.load((work.out,), CLASSIFIER)
    assert kept is not None
    trained.network.load_state_dict(kept[0])
    return trained.network, trained.held_out_accuracy


def draws_of(work: Work, recipe: Recipe, teacher: Teacher, batch: int | None = None) -> Draws:
    """Noise and labels of samples, the same for all samplers; in batches of the evaluation's."""
    conditions = conditions_of(recipe, teacher, None)
    shape, size = teacher.denoiser.sample_shape, batch or recipe.evaluate.batch_size
    return Draws(recipe.seed, shape, conditions, size, work.device)


def judge(
    work: Work, using: Ruler, sampler: Sampler, draws: Draws, count: int, **more: Any
) -> Tensor:
    """Draw samples, record their distances, and return them, (count, C, H, W)."""
    with arithmetic("tf32", work.device):
        samples = draw(sampler, draws, count, lambda *_, **__: None)
    spacing = f", {sampler.spacing}" if sampler.spacing else ""
    setting = f"{sampler.label}{spacing}, {sampler.nfe} evaluations, {count:,} samples"
    for space, distance in using.distances(samples).items():
        work.record(f"Frechet distance, {space}", setting, distance, nfe=sampler.nfe, **more)
    return samples


def floor(work: Work, using: Ruler, recipe: Recipe, count: int) -> None:
    """Record the distance of so many real images to all: what no sampler can be below for long."""
    data = load_recipe_data(recipe)
    order = seeds.generator(recipe.seed, seeds.SPLIT, 2).permutation(len(data))[:count]
    images = data.rows(torch.from_numpy(order))
    for space, distance in using.distances(images).items():
        setting = f"{len(images):,} real images"
        work.record(f"Frechet distance, {space}", setting, distance, accuracy=using.accuracy)


def picture(work: Work, name: str, rows: Sequence[Tensor]) -> None:
    """A PNG of samples: blocks of PICTURES from each, in order, from the same noise."""
    shown = torch.cat([samples[:PICTURES] for samples in rows])
    save_png(grid(shown, COLUMNS, scale=2), work.out / f"{name}.png")
