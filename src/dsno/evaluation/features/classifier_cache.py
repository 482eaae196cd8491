"""Trained classifiers, kept for the next measurement.

A file's name is a hash of the data and of all that decides the training, so it is never out of
date; what is no longer wanted can be deleted.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dsno.data.dataset import Dataset
from dsno.evaluation.features.classifier import (
    EPOCHS,
    Classifier,
    TrainedClassifier,
    train_classifier,
)
from dsno.support.cache import cache_folder
from dsno.support.console import alert
from dsno.support.environment import versions
from dsno.support.errors import InputError, WorkError
from dsno.support.files import fingerprint, replacing

ACCURACY = "held_out_accuracy"


def classifier_of(
    data: Dataset, labels: Tensor, classes: int, *, seed: int, epochs: int = EPOCHS
) -> TrainedClassifier:
    """The classifier of data that `train_classifier` makes: the kept one, or one trained now.

    Args:
        data: images.
        labels: (n,), int64.
        classes: how many.
        seed: of everything random.
        epochs: passes over the training part.

    Raises:
        InputError: if the data are not images, or the kept file is damaged.
    """
    of_labels = hashlib.sha256(labels.numpy().tobytes()).hexdigest()
    name = fingerprint([data.digest, of_labels, classes, seed, epochs, versions()])
    path = cache_folder() / "features" / f"trained-classifier-{name}.safetensors"
    if path.is_file():
        return _kept(path, data.sample_shape[0], classes)
    trained = train_classifier(data.rows, labels, classes, seed=seed, epochs=epochs)
    _keep(path, trained)
    return trained


def _kept(path: Path, channels: int, classes: int) -> TrainedClassifier:
    with torch.random.fork_rng(devices=[]):
        network = Classifier(channels, classes)
    try:
        with safe_open(path, framework="pt") as file:
            network.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
            accuracy = float(file.metadata()[ACCURACY])
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        why = (str(error) or type(error).__name__).partition("\n")[0]
        raise InputError(f"{path} cannot be read ({why}); delete it and run again.") from None
    return TrainedClassifier(network.eval(), accuracy)


def _keep(path: Path, trained: TrainedClassifier) -> None:
    """Keep a classifier; where there is no room for it, say so and go on."""
    try:
        with replacing(path) as temporary:
            save_file(
                trained.network.state_dict(),
                temporary,
                {ACCURACY: repr(trained.held_out_accuracy)},
            )
    except WorkError as error:
        alert(f"The classifier is not kept for the next time: {error}")
