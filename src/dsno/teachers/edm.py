"""EDM's networks as teachers, from the folder that `tools/export_edm.py` writes.

network.json           {"format": 1, "precond": "EDMPrecond", "sigma_min", "sigma_max",
                        "sigma_data", "network": {"class", "arguments"}}, and "rho" if not 7
network.safetensors    the state dict of the inner network

The published checkpoints are pickles, which can run code when they are loaded, so they never are
here. Source: Karras et al., arXiv 2206.00364, section 5 and Table 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dsno.backbones.edm import DhariwalUNet, SongUNet, call_edm
from dsno.backbones.safe_loading import check_sample_shape, first_line
from dsno.diffusion.denoisers import Denoiser
from dsno.diffusion.schedules import EDMSchedule, checked
from dsno.support.errors import InputError, one_of
from dsno.support.files import read_json
from dsno.support.scalars import as_real
from dsno.teachers.weights import load_weights

DESCRIPTION = "network.json"
WEIGHTS = "network.safetensors"
FORMAT = 1
NETWORKS: dict[str, type[SongUNet | DhariwalUNet]] = {
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
}
REMEDY = "export the network with tools/export_edm.py"


def load_edm(folder: Path) -> Denoiser:
    """Load an exported EDM network as a denoiser, in float32, in eval mode, without gradients.

    Nothing is allocated before the network that `network.json` describes is known to have the
    shapes in the weights' header.

    Args:
        folder: with network.json and network.safetensors.

    Raises:
        InputError: for a pickle, another preconditioning than EDM's, or files that are missing,
            damaged or do not fit together.
    """
    path = folder / DESCRIPTION
    _refuse_pickles(folder)
    description = read_json(path, "EDM network description", REMEDY)
    if description.get("format") != FORMAT:
        raise InputError(
            f"{path} has the format {description.get('format')!r}, not {FORMAT}; {REMEDY} again."
        )
    if description.get("precond") != "EDMPrecond":
        raise InputError(
            f"The preconditioning {description.get('precond')!r} in {path} is not supported, only "
            "EDMPrecond; for another write an adapter (see docs/teachers.md)."
        )
    schedule = _schedule(description, path)
    sigma_data = _positive(description, "sigma_data", path)
    network = _network(description, folder)
    config = network.config
    if config["in_channels"] != config["out_channels"]:
        raise InputError(
            f"The network in {path} takes {config['in_channels']} channels and gives "
            f"{config['out_channels']}, so it is no denoiser; {REMEDY} again."
        )
    shape = (config["in_channels"], config["img_resolution"], config["img_resolution"])
    check_sample_shape(shape, str(path))
    return Denoiser(
        network,
        schedule,
        prediction_type="edm",
        sample_shape=shape,
        sigma_data=sigma_data,
        call=call_edm,
    )


def _refuse_pickles(folder: Path) -> None:
    holds_one = not (folder / DESCRIPTION).exists() and any(folder.glob("*.pkl"))
    if folder.suffix.lower() == ".pkl" or holds_one:
        what = "holds" if holds_one else "is"
        raise InputError(
            f"{folder} {what} a pickle, which can run code when it is loaded; "
            "export it with tools/export_edm.py first."
        )


def _schedule(description: Mapping[str, Any], path: Path) -> EDMSchedule:
    """The default sigmas, unless the file has others; 0 and infinity are no limits of their own."""
    given: dict[str, float] = {}
    for key, no_limit in (("sigma_min", 0.0), ("sigma_max", math.inf), ("rho", None)):
        if description.get(key) not in (None, no_limit):
            given[key] = _positive(description, key, path)
    return checked(EDMSchedule(**given))


def _positive(description: Mapping[str, Any], key: str, path: Path) -> float:
    number = as_real(description.get(key))
    if number is None or not 0 < number < math.inf:
        raise InputError(
            f"`{key}` in {path} must be a positive number, not {description.get(key)!r}."
        )
    return number


def _network(description: Mapping[str, Any], folder: Path) -> SongUNet | DhariwalUNet:
    path = folder / DESCRIPTION
    inner = description.get("network")
    if not isinstance(inner, dict) or not isinstance(inner.get("arguments"), dict):
        raise InputError(f"{path} does not say the network's class and arguments; {REMEDY} again.")
    network_class = NETWORKS[one_of(str(inner.get("class")), NETWORKS, "network class")]
    arguments = inner["arguments"]

    def build() -> nn.Module:
        try:
            return network_class(**arguments)
        except InputError as error:
            raise InputError(f"In {path}: {error}") from None
        except Exception as error:  # whatever lying arguments make of it
            raise InputError(
                f"The {network_class.__name__} in {path} cannot be built ({first_line(error)}); "
                f"{REMEDY} again."
            ) from None

    network = load_weights(build, folder / WEIGHTS)
    assert isinstance(network, SongUNet | DhariwalUNet)
    return network
