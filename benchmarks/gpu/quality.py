"""How good samples are: Frechet distances to real images by one lasting ruler, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsno.data.dataset import Dataset
from dsno.evaluation.features import Classifier, Features, thumbnail, train_classifier
from dsno.evaluation.frechet import Moments, frechet_distance, moments
from dsno.evaluation.manifold import manifold
from dsno.evaluation.samplers import Draws, Sampler, draw
from dsno.images import grid, save_png
from dsno.recipes import Recipe
from dsno.runs.build import conditions_of, load_recipe_data
from dsno.support import seeds
from dsno.support.files import replacing
from dsno.teachers.store import Teacher
from gpu import weights
from gpu.models import arithmetic, digest
from gpu.work import Work

CLASSIFIER, REAL = "classifier", "real-images.npz"
CHUNK = 5000
PICTURES, COLUMNS = 64, 16


@dataclass(frozen=True)
class Ruler:
    """Feature spaces, and the moments of real images in them."""

    spaces: Mapping[str, Features]
    real: Mapping[str, Moments]
    accuracy: float
    some: Tensor
    """Classifier features of `CHUNK` real images at most."""

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
    real = _real(work, data, spaces, digest(network))
    return Ruler(spaces, real, accuracy, spaces[CLASSIFIER](_some(data, recipe.seed, CHUNK)))


def _real(
    work: Work, data: Dataset, spaces: Mapping[str, Features], network: str
) -> dict[str, Moments]:
    """The moments of all real images: those kept with this classifier, or of the data at hand.

    A visit that is short of time brings a few images and is measured against all of them.
    """
    for folder in (work.out, *work.weights):
        if not (folder / REAL).is_file():
            continue
        with np.load(folder / REAL) as kept:
            if str(kept["classifier"]) != network:
                continue
            count = int(kept["count"])
            mean, covariance = (
                {name: torch.from_numpy(kept[f"{name}_{key}"]) for name in spaces}
                for key in ("mean", "covariance")
            )
        return {name: Moments(mean[name], covariance[name], count) for name in spaces}
    chunks = torch.split(torch.arange(len(data)), CHUNK)
    found = {
        name: moments(torch.cat([space(data.rows(rows)) for rows in chunks]))
        for name, space in spaces.items()
    }
    arrays = {f"{name}_mean": m.mean.numpy() for name, m in found.items()}
    arrays |= {f"{name}_covariance": m.covariance.numpy() for name, m in found.items()}
    with replacing(work.out / REAL) as temporary, temporary.open("wb") as file:
        np.savez(file, classifier=np.array(network), count=np.int64(len(data)), **arrays)
    return found


def _some(data: Dataset, seed: int, count: int) -> Tensor:
    """Images drawn at random."""
    order = seeds.generator(seed, seeds.SPLIT, 2).permutation(len(data))[:count]
    return data.rows(torch.from_numpy(order))


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


def coverage(work: Work, using: Ruler, samples: Tensor, setting: str) -> None:
    """Record precision and recall of samples, in the classifier's features."""
    real = using.some[: len(samples)].to(work.device)
    made = using.spaces[CLASSIFIER](samples[: len(real)]).to(work.device)
    work.record("precision", setting, manifold(real).share(made))
    work.record("recall", setting, manifold(made).share(real))


def floor(work: Work, using: Ruler, recipe: Recipe, count: int) -> None:
    """Record the distance of so many real images to all: what no sampler can be below for long."""
    images = _some(load_recipe_data(recipe), recipe.seed, count)
    for space, distance in using.distances(images).items():
        setting = f"{len(images):,} real images"
        work.record(f"Frechet distance, {space}", setting, distance, accuracy=using.accuracy)


def picture(work: Work, name: str, rows: Sequence[Tensor]) -> None:
    """A PNG of samples: blocks of PICTURES from each, in order, from the same noise."""
    shown = torch.cat([samples[:PICTURES] for samples in rows])
    save_png(grid(shown, COLUMNS, scale=2), work.out / f"{name}.png")
