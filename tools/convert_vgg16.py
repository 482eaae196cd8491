"""Turn VGG16's weights into the safetensors file that the loss `lpips_vgg` reads.

    python tools/convert_vgg16.py vgg16-397923af.pth vgg16.safetensors
    python tools/convert_vgg16.py vgg16.onnx vgg16.safetensors

The input is what https://download.pytorch.org/models/vgg16-397923af.pth gives (528 MB), trained on
ImageNet. Only the convolutional layers are kept (59 MB). The pickle is read with
`weights_only=True`, which runs no code.

Or it is an ONNX file of the original weights (arXiv 1409.1556) as Keras has them, whose first
thirteen convolutions are VGG16's. Those expect blue, green and red from 0 to 255 less their means;
what the first layer is given here differs by a scale and a shift of each channel, which are put
into its weights. Needs `pip install onnx`.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dsno.support.errors import DsnoError, InputError
from dsno.support.files import replacing, require_regular
from dsno.training.lpips import VGG16Distance, check_weights

MEANS = (123.68, 116.779, 103.939)
"""Of red, green and blue over ImageNet, which the original weights expect subtracted."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict saved by `torch.save`.

    Raises:
        InputError: if the file is missing, damaged, or anything but a state dict.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(
            f"There is no file {path}; download torchvision's vgg16-397923af.pth."
        ) from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        raise InputError(
            f"{path} is damaged or not a plain state dict; download torchvision's "
            "vgg16-397923af.pth again."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path} is not a state dict; give torchvision's vgg16-397923af.pth.")
    return state


def read_onnx(path: Path) -> dict[str, Tensor]:
    """The weights of the file's convolutions under torchvision's names, for torchvision's input.

    Raises:
        InputError: if the file is missing, damaged, or has not VGG16's thirteen convolutions.
    """
    try:
        import onnx
    except ImportError:
        raise InputError("An ONNX file is read with onnx: pip install onnx") from None
    try:
        require_regular(path)
        graph = onnx.load(str(path)).graph
        held = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    except Exception as error:  # whatever a damaged file makes the library raise
        raise InputError(
            f"{path} cannot be read as ONNX ({error}); give VGG16 exported from Keras."
        ) from None
    inputs = [name for node in graph.node if node.op_type == "Conv" for name in node.input[1:]]
    state = {
        name: torch.tensor(held[held_name])
        for name, held_name in zip(VGG16Distance().state_dict(), inputs, strict=False)
        if held_name in held
    }
    check_weights({name: value.shape for name, value in state.items()}, str(path))
    return {**state, **_for_scaled_rgb(state["features.0.weight"], state["features.0.bias"])}


def _for_scaled_rgb(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """The first layer's weights for the input of `VGG16Distance`, where they were for Keras's.

    Keras gives its first layer 127.5 (x + 1) - mean, blue first, of an image x in [-1, 1]; here
    it is given z = (x - shift) / scale. The border, which is padded with zeros, is where they
    differ: by the mean's rounding, half a grey level.
    """
    distance = VGG16Distance()
    shift, scale = distance.shift.double(), distance.scale.double()
    rgb = weight.double().flip(1)
    left = 127.5 * (shift + 1) - torch.tensor(MEANS).double().reshape(3, 1, 1)
    return {
        "features.0.weight": (rgb * 127.5 * scale).float(),
        "features.0.bias": (bias.double() + (rgb * left).sum((1, 2, 3))).float(),
    }


def convert(source: Path, destination: Path) -> None:
    """Write the convolutional weights of `source` to `destination`, atomically.

    Raises:
        InputError: if the source does not hold VGG16's weights.
        WorkError: if the destination cannot be written.
    """
    state = (read_onnx if source.suffix.lower() == ".onnx" else read_state_dict)(source)
    names = check_weights({name: value.shape for name, value in state.items()}, str(source))
    with replacing(destination) as temporary:
        save_file({name: state[name].contiguous() for name in names}, temporary)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="torchvision's vgg16-397923af.pth, or ONNX")
    parser.add_argument("destination", type=Path, help="the safetensors file to write")
    given = parser.parse_args(arguments)
    try:
        convert(given.source, given.destination)
    except DsnoError as error:
        print(f"convert_vgg16: {error}", file=sys.stderr)
        return error.exit_code
    print(f"Wrote {given.destination}; give it as train.vgg16={given.destination}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
