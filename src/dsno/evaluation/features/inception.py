"""Inception-v3 as NVIDIA exported it: the one feature space whose Frechet distance is called FID.

It is the network of 2015-12-05 that the FID was defined with, translated to PyTorch, resizing
included, so numbers compare with those of StyleGAN2-ADA, EDM and clean-fid. EDM's own copy of it is
a pickle, which is never read here; the TorchScript file holds the same network.
"""

from __future__ import annotations

import contextlib
import urllib.request
from pathlib import Path

import torch

from dsno.evaluation.features.space import Space
from dsno.evaluation.features.torchscript import torchscript_space
from dsno.support import distributed
from dsno.support.cache import cache_folder
from dsno.support.console import progress
from dsno.support.errors import InputError
from dsno.support.files import replacing, sha256

NAME = "inception-2015-12-05.pt"
URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt"
)
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Of that file; the same as in k-diffusion's evaluation.py."""
SIZE = 95_607_719
PATIENCE = 60.0
"""Seconds without an answer from the server."""


def inception_space(path: str, device: torch.device) -> Space:
    """Its 2,048 features, and the log-probabilities of its 1,008 classes.

    Args:
        path: of the file; empty to take the copy in the cache, or to download it.
        device: where it computes.

    Raises:
        InputError: if the file is another, or cannot be downloaded.
    """
    file = distributed.on_main(lambda: _checked(Path(path)) if path else _fetched())
    return torchscript_space(file, device, name="inception")


def _checked(path: Path) -> Path:
    try:
        found = sha256(path)
    except OSError as error:
        raise InputError(
            f"{path} (evaluate.inception) cannot be read ({error.strerror}); give the path of "
            f"{NAME}, or leave it out to download it."
        ) from None
    if found != SHA256:
        raise InputError(
            f"{path} is not NVIDIA's Inception: expected SHA-256 {SHA256[:12]}..., found "
            f"{found[:12]}...; fetch it from {URL}, or name other detectors by "
            "evaluate.features=[torchscript] evaluate.torchscript=FILE."
        )
    return path


def _fetched() -> Path:
    """The copy in the cache, downloaded if there is none."""
    path = cache_folder() / NAME
    if path.is_file():
        return _checked(path)
    try:
        with (
            urllib.request.urlopen(URL, timeout=PATIENCE) as answer,
            progress(f"downloading {NAME}", SIZE, unit="byte") as advance,
            replacing(path) as temporary,
        ):
            with temporary.open("wb") as file:
                while part := answer.read(2**20):
                    file.write(part)
                    advance(len(part))
            _checked(temporary)
    except OSError as error:  # URLError is one
        with contextlib.suppress(OSError):
            path.unlink()
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"Inception's features need {URL}, which cannot be downloaded ({reason}); fetch it "
            f"elsewhere and give evaluate.inception=FILE, or put it at {path}."
        ) from None
    return path
