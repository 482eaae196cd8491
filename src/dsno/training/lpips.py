"""The loss `lpips_vgg`: how far apart two images are in the features of VGG16.

This is LPIPS without its learned linear layers (Zhang et al., arXiv 1801.03924, eq. 1 with every
w_l = 1): VGG16's activations at five depths, each pixel's channels scaled to unit length, squared
differences summed over channels, averaged over pixels, added up over the depths. The code of the
DSNO paper (arXiv 2211.13449) trains its CIFAR-10 model with it, on noisy states as they are.

The weights are torchvision's, read from a safetensors file; `tools/convert_vgg16.py` makes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from dsno.support.errors import InputError
from dsno.support.files import require_regular

MINIMUM_SIZE = 16
"""Pixels per side: four poolings leave one for the deepest activations."""

PICKLES = (".pth", ".pt", ".pkl")

# Width and number of convolutions between poolings: configuration D of arXiv 1409.1556, Table 1.
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
# The last ReLU of each block: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.
_TAPS = (3, 8, 15, 22, 29)
# ImageNet's channel means and deviations, (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225), moved
# from [0, 1] to [-1, 1] and rounded as LPIPS rounds them.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


def _vgg16_features() -> nn.Sequential:
    """VGG16's convolutional layers up to relu5_3, numbered as torchvision's `features`."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in _BLOCKS:
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-1])  # nothing reads what the last pooling makes


class VGG16Distance(nn.Module):
    """Distance of pairs of images in VGG16's features: `distance(first, second) -> (batch,)`.

    Its weights are frozen and random until they are loaded (`load_vgg16`); the state dict has
    torchvision's names, `features.0.weight` to `features.28.bias`.

    Source: arXiv 1801.03924, eq. 1, without the linear layers.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = _vgg16_features()
        self.register_buffer("shift", torch.tensor(_SHIFT).reshape(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).reshape(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(
        self,
        first: Float[Tensor, "batch channels height width"],
        second: Float[Tensor, "batch channels height width"],
    ) -> Float[Tensor, " batch"]:
        """Distances of the pairs, in float32 or wider.

        Args:
            first: images in [-1, 1] with 3 channels, or 1, which is repeated to 3. Values outside
                are not clipped: the states of a trajectory have them.
            second: what to compare with, of the same shape. No gradient flows to it, so its pass
                keeps nothing for the backward one.

        Raises:
            InputError: if they are not images of one shape, with 1 or 3 channels and at least 16
                pixels per side.
        """
        _check_images(first, second)
        with torch.no_grad():
            targets = self._activations(second)
        pairs = zip(self._activations(first), targets, strict=True)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)

    def _activations(self, images: Tensor) -> list[Tensor]:
        """The five activations, each (batch, width, h, w) and of unit length over its channels."""
        x = (images.expand(-1, 3, -1, -1) - self.shift) / self.scale
        x = x.to(self.shift.dtype)
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS:
                taps.append(_unit(x))
        return taps


def _unit(activation: Tensor) -> Tensor:
    """Divide by the length over channels, at least in float32: float16 rounds 1e-10 to 0.

    A ReLU can silence all channels of a pixel: `vector_norm` has the gradient 0 there.
    """
    wide = activation.to(torch.promote_types(activation.dtype, torch.float32))
    length: Tensor = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return wide / (length + _EPSILON)


def _check_images(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise InputError(
            f"The perceptual distance compares images of one shape, not {tuple(first.shape)} with "
            f"{tuple(second.shape)}."
        )
    if first.ndim != 4 or first.shape[1] not in (1, 3):
        raise InputError(
            "The perceptual distance needs images of 1 or 3 channels, not samples of the shape "
            f"{tuple(first.shape[1:])}; use the loss l1, l2 or pseudo_huber."
        )
    if min(first.shape[2:]) < MINIMUM_SIZE:
        raise InputError(
            f"The perceptual distance needs images of at least {MINIMUM_SIZE} x {MINIMUM_SIZE} "
            f"pixels, not {first.shape[2]} x {first.shape[3]}; use the loss l1, l2 or pseudo_huber."
        )


def load_vgg16(path: Path) -> VGG16Distance:
    """Read VGG16's convolutional weights from a safetensors file.

    Args:
        path: a file with `features.0.weight` ... `features.28.bias`; its other tensors (the
            classifier's) are not read.

    Raises:
        InputError: if the file is missing, a pickle, not safetensors, or holds other weights.
    """
    if not path.exists():
        raise InputError(
            f"There is no file {path}; make one from torchvision's vgg16-397923af.pth with "
            "tools/convert_vgg16.py."
        )
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"{path} is a pickle, which can run code and is never loaded; convert it with "
            f"`python tools/convert_vgg16.py {path} vgg16.safetensors` and give the result."
        )
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            names = check_weights(shapes, str(path))
            tensors = {name: file.get_tensor(name) for name in names}
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file makes the library raise
        raise InputError(
            f"{path} cannot be read as safetensors ({error}); make it again with "
            "tools/convert_vgg16.py."
        ) from None
    with torch.random.fork_rng(devices=[]):  # loading must not move the caller's random numbers
        distance = VGG16Distance()
    distance.load_state_dict(tensors)
    return distance


def check_weights(shapes: Mapping[str, Sequence[int]], source: str) -> list[str]:
    """Return the names of VGG16's convolutional weights once all are there in their shapes.

    Args:
        shapes: shape of every tensor of the source.
        source: where they come from, for the error.

    Raises:
        InputError: naming the first three that are missing or of another shape.
    """
    with torch.device("meta"):  # shapes without memory
        wanted = {name: tuple(value.shape) for name, value in VGG16Distance().state_dict().items()}
    wrong = [
        f"{name} is {tuple(shapes[name])} instead of {shape}"
        if name in shapes
        else f"{name} is missing"
        for name, shape in wanted.items()
        if tuple(shapes.get(name, ())) != shape
    ]
    if wrong:
        rest = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise InputError(
            f"{source} does not hold the weights of VGG16: {', '.join(wrong[:3])}{rest}; "
            "take torchvision's vgg16-397923af.pth."
        )
    return list(wanted)
