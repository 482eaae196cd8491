"""Weights into networks, strictly: nothing missing, nothing extra, every shape right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dsno.backbones.misfits import mismatch_sentence
from dsno.backbones.safe_loading import first_line, sketch, stored_shapes
from dsno.support.errors import InputError


def check_shapes(network: nn.Module, shapes: Mapping[str, Sequence[int]], source: str) -> None:
    """Compare the names and shapes of weights with a network's, which may be on `meta`.

    Raises:
        InputError: naming the first three missing, extra and mis-shaped ones.
    """
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    shared = wanted.keys() & shapes.keys()
    sentence = mismatch_sentence(
        source,
        missing=wanted.keys() - shapes.keys(),
        extra=shapes.keys() - wanted.keys(),
        misshaped=[name for name in shared if tuple(shapes[name]) != wanted[name]],
    )
    if sentence:
        raise InputError(sentence)


def strict_load(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load every weight of a network in float32; one on `meta` becomes real.

    Weights are copied: those mapped from a file lie where the file has them, and on other
    alignments torch's kernels round differently.

    Raises:
        InputError: naming the first three missing, extra and mis-shaped ones, or the first that
            holds whole or complex numbers where the network has real ones.
    """
    check_shapes(network, {name: t.shape for name, t in tensors.items()}, source)
    for name, own in network.state_dict().items():
        if own.is_floating_point() != tensors[name].is_floating_point():
            dtype = str(tensors[name].dtype).removeprefix("torch.")
            raise InputError(
                f"The weight {name} in {source} is of type {dtype}, which does not fit the "
                "network; check that it belongs to this configuration."
            )
    copies = {
        k: v.to(torch.float32 if v.is_floating_point() else v.dtype, copy=True)
        for k, v in tensors.items()
    }
    network.load_state_dict(copies, assign=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return load_file(path)
    except Exception as error:  # whatever a damaged file makes the library raise
        raise InputError(
            f"The weights {path} cannot be read ({first_line(error)}); check the file."
        ) from None


def load_weights(build: Callable[[], nn.Module], path: Path) -> nn.Module:
    """Build a network and load a safetensors file into it, in eval mode, without gradients.

    It is built on the `meta` device and compared with the file's header first, so a configuration
    that lies about sizes allocates nothing.

    Raises:
        InputError: if the file cannot be read or does not fit.
    """
    shapes = stored_shapes([path])
    network = sketch(build, len(shapes), f"network of {path}")
    check_shapes(network, shapes, str(path))
    tensors = read_tensors(path)
    strict_load(network, tensors, str(path))
    return network.eval().requires_grad_(False)
