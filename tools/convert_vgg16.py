"""Turn torchvision's VGG16 weights into the safetensors file that the loss `lpips_vgg` reads.

    python tools/convert_vgg16.py vgg16-397923af.pth vgg16.safetensors

The input is what https://download.pytorch.org/models/vgg16-397923af.pth gives (528 MB), trained on
ImageNet. Only the convolutional layers are kept (59 MB). The pickle is read with
`weights_only=True`, which runs no code.
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
from dsno.support.files import replacing
from dsno.training.lpips import check_weights


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


def convert(source: Path, destination: Path) -> None:
    """Write the convolutional weights of `source` to `destination`, atomically.

    Raises:
        InputError: if the source is not VGG16's state dict.
        WorkError: if the destination cannot be written.
    """
    state = read_state_dict(source)
    names = check_weights({name: value.shape for name, value in state.items()}, str(source))
    with replacing(destination) as temporary:
        save_file({name: state[name].contiguous() for name in names}, temporary)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="torchvision's vgg16-397923af.pth")
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
