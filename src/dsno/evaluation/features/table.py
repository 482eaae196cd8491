"""The table of feature spaces: a space by its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dsno.data.dataset import Dataset
from dsno.evaluation.features.classifier_cache import classifier_of
from dsno.evaluation.features.imagenet import imagenet_space
from dsno.evaluation.features.inception import inception_space
from dsno.evaluation.features.plain import MAX_PIXELS, plain_space
from dsno.evaluation.features.space import Space, measured
from dsno.evaluation.features.torchscript import torchscript_space
from dsno.recipes.choices import FeatureName
from dsno.support import distributed
from dsno.support.errors import InputError


@dataclass(frozen=True)
class Wanted:
    """What feature spaces are made for.

    Attributes:
        shape: of the images.
        data: the labelled reference that a classifier is trained on; None without.
        seed: the classifier's.
        inception: Inception's file; empty to download it.
        torchscript: another detector's file.
        device: where features are computed.
    """

    shape: tuple[int, ...]
    data: Dataset | None = None
    seed: int = 0
    inception: str = ""
    torchscript: str = ""
    device: torch.device = torch.device("cpu")


def usual_spaces(data: Dataset) -> tuple[FeatureName, ...]:
    """The spaces the data allow: pixels or, if those are many, thumbnails; a classifier."""
    plain: FeatureName = "pixels" if math.prod(data.sample_shape) <= MAX_PIXELS else "thumbnail"
    return (plain,) if data.labels is None else (plain, "classifier")


def build_space(name: FeatureName, wanted: Wanted) -> Space:
    """A feature space by its name; under a launcher every process calls this.

    Raises:
        InputError: if it needs what is not there: labels, a file, a package.
    """
    return measured(_BUILDERS[name](wanted), torch.zeros(1, *wanted.shape))


def _plain(name: str) -> Callable[[Wanted], Space]:
    return lambda wanted: plain_space(name, wanted.device)


def _classifier(wanted: Wanted) -> Space:
    data = wanted.data
    if data is None:
        raise InputError(
            "Classifier features need labelled real data to compare with; give evaluate.features "
            "other names, such as [thumbnail]."
        )
    if data.labels is None or data.num_classes is None:
        raise InputError(
            f"Classifier features need labels, and {data.name} has none; give "
            "evaluate.features=[pixels] or data with labels."
        )
    labels, classes = data.labels, data.num_classes
    trained = distributed.on_main(lambda: classifier_of(data, labels, classes, seed=wanted.seed))
    return trained.space(wanted.seed, wanted.device)


def _torchscript(wanted: Wanted) -> Space:
    if not wanted.torchscript:
        raise InputError(
            "The features 'torchscript' need a detector's file; give evaluate.torchscript=FILE."
        )
    return torchscript_space(Path(wanted.torchscript), wanted.device)


_BUILDERS: Mapping[FeatureName, Callable[[Wanted], Space]] = {
    "pixels": _plain("pixels"),
    "thumbnail": _plain("thumbnail"),
    "classifier": _classifier,
    "imagenet": lambda wanted: imagenet_space(wanted.device),
    "inception": lambda wanted: inception_space(wanted.inception, wanted.device),
    "torchscript": _torchscript,
}
