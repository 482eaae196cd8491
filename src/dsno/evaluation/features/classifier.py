"""Features of a small classifier that is trained on the labelled reference."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsno.evaluation.features.space import Outputs, Space
from dsno.support import seeds
from dsno.support.console import progress
from dsno.support.errors import InputError

MAX_CLASSIFIER_STEPS = 4000
MAX_HELD_OUT = 5000
EPOCHS = 40
"""Passes over the training part, unless the steps come first."""


class Classifier(nn.Module):
    """A small convolutional classifier whose last hidden layer is the feature space.

    Args:
        channels: of the images.
        classes: number of classes.
        width: features.
    """

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, C, H, W)."""
        logits: Tensor = self.head(self.body(x))
        return logits

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Features (n, width) of images clamped to [-1, 1]."""
        return torch.cat([self.body(some.clamp(-1, 1)) for some in torch.split(x, 1000)])

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Logits (n, classes) of features (n, width)."""
        found: Tensor = self.head(features)
        return found


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier and the share of held-out images it gets right."""

    network: Classifier
    held_out_accuracy: float

    def record(self, seed: int) -> dict[str, Any]:
        """Its entry in metrics.json."""
        return {
            "dimension": self.network.head.in_features,
            "held_out_accuracy": self.held_out_accuracy,
            "seed": seed,
            "weights_sha256": weights_hash(self.network),
        }

    def space(self, seed: int, device: torch.device) -> Space:
        """Its hidden layer as a feature space."""
        network = copy.deepcopy(self.network).to(device)

        def outputs(images: Tensor) -> Outputs:
            features = network.body(images.clamp(-1, 1))
            return Outputs(features, network.head(features))

        return Space("classifier", outputs, self.record(seed), device=device)


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of a network's weights."""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(name.encode())
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def train_classifier(
    images: Callable[[Tensor], Tensor],
    labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
) -> TrainedClassifier:
    """Train a classifier on 80 % of the images (all but 5,000, if that is more); measure the rest.

    The split, the start and every batch are functions of `seed`. Images are shifted by up to one
    pixel as augmentation.

    Args:
        images: rows (k,) -> images (k, C, H, W) in [-1, 1].
        labels: (n,), int64.
        classes: how many.
        seed: of everything random.
        epochs: passes over the training part.

    Raises:
        InputError: if the data are not images.
    """
    example = images(torch.zeros(1, dtype=torch.int64))
    if example.ndim != 4:
        raise InputError("Classifier features need images; use the features 'pixels'.")
    order = torch.from_numpy(seeds.generator(seed, seeds.SPLIT).permutation(len(labels)))
    held = min(len(labels) // 5, MAX_HELD_OUT)
    test, kept = order[:held], order[held:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(example.shape[1], classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    batch = 64
    steps = min(epochs * max(len(kept) // batch, 1), MAX_CLASSIFIER_STEPS)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    with progress("classifier for the features", steps, unit="step") as advance:
        for step in range(steps):
            rows = kept[seeds.batch_items(seed, step, batch, len(kept))]
            shift = seeds.generator(seed, seeds.TRAINING, step).integers(-1, 2, 2).tolist()
            x = torch.roll(images(rows), shift, (2, 3))
            loss = functional.cross_entropy(network(x), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate.step()
            advance(1)
    network.eval()
    with torch.no_grad():
        right = network(images(test)).argmax(1) == labels[test]
    return TrainedClassifier(network, float(right.float().mean()))
