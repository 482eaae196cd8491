"""What a feature space is: images in, features out, and the record of what they depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsno.support.errors import InputError
from dsno.support.files import fingerprint
from dsno.support.transfers import to_device

Features = Callable[[Tensor], Tensor]
"""(n, *shape) -> (n, d)."""


class Outputs(NamedTuple):
    """What a space makes of images.

    Attributes:
        features: (n, d), float32.
        logits: (n, classes) of the network's own classes; None where it has none.
    """

    features: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class Space:
    """A feature space.

    Attributes:
        name: in the table of spaces.
        outputs: features, and logits where there are any, of images (n, C, H, W) in [-1, 1].
        record: its entry in metrics.json: the dimension, and all that decides a number in it.
        batch: images the network takes at a time, as memory allows.
        device: where it computes.
        is_costly: whether features are worth keeping for the next evaluation.
    """

    name: str
    outputs: Callable[[Tensor], Outputs]
    record: Mapping[str, Any]
    batch: int = 1000
    device: torch.device = torch.device("cpu")
    is_costly: bool = False

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Outputs of images on any device; they stay on the space's."""
        parts = torch.split(images, self.batch)
        found = [self.outputs(to_device(some, self.device)) for some in parts]
        features = torch.cat([some.features.float() for some in found])
        logits = [some.logits.float() for some in found if some.logits is not None]
        return Outputs(features, torch.cat(logits) if logits else None)

    @property
    def dimension(self) -> int:
        """Of the features."""
        return int(self.record["dimension"])

    @property
    def identity(self) -> str:
        """A hash of all that decides what the space makes of an image."""
        kept = {k: v for k, v in self.record.items() if k not in ABOUT}
        return fingerprint([self.name, kept])


ABOUT = ("held_out_accuracy", "file")
"""What a record says besides: how good a space is, where its file was."""


def measured(space: Space, example: Tensor) -> Space:
    """The space with its dimension in the record, once it has seen an image (1, C, H, W).

    Raises:
        InputError: if what it makes of an image is no list of numbers.
    """
    features = space(example).features
    if features.ndim != 2 or len(features) != len(example) or not features.shape[1]:
        raise InputError(
            f"The features {space.name!r} of {len(example)} images have shape "
            f"{tuple(features.shape)}; expected one row of numbers for each."
        )
    record = {"dimension": features.shape[1], **space.record}
    return dataclasses.replace(space, record=record)


def singular(features: str) -> str:
    """The name of a feature space before "features": pixel, classifier, ImageNet."""
    return _SHOWN.get(features, features.removesuffix("s"))


_SHOWN = {"imagenet": "ImageNet", "inception": "Inception", "torchscript": "TorchScript"}


def distance_name(features: str) -> str:
    """What the Frechet distance in a space is called: FID in Inception's features, and only there.

    Other features have other scales, so a number of theirs must not be read as an FID.
    """
    return "FID" if features == "inception" else "Frechet distance"


def quantised(images: Tensor) -> Tensor:
    """Images (n, 1 or 3, H, W) in [-1, 1] as bytes (n, 3, H, W) in 0 .. 255; grey as RGB.

    floor(127.5 x + 128), clamped: what EDM's sampling script writes into its PNG files, and a
    byte that became byte / 127.5 - 1 comes back as it was.

    Source: Karras et al., github.com/NVlabs/edm (generate.py, fid.py).

    Raises:
        InputError: for other channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            "Features of a network need grey or RGB images; found samples of shape "
            f"{'x'.join(map(str, images.shape[1:]))}; set data.channels=3, or use the features "
            "'pixels' or 'thumbnail'."
        )
    levels = (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    return levels.expand(-1, 3, -1, -1)


QUANTISATION = "floor(127.5 x + 128) to 8 bits"
