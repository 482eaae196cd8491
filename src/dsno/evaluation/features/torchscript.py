"""Features of a detector exported with TorchScript.

`torch.jit.load` runs the file's program in PyTorch's interpreter: no pickle and no Python, but a
program all the same, so the file must come from somebody you trust. The user names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsno.evaluation.features.space import QUANTISATION, Outputs, Space, quantised
from dsno.support.errors import InputError, WorkError
from dsno.support.files import sha256

BATCH = 64
"""Images at a time, as in EDM's fid.py: Inception enlarges each to 299x299."""


def torchscript_space(path: Path, device: torch.device, *, name: str = "torchscript") -> Space:
    """A detector: bytes (n, 3, H, W) in 0 .. 255 to features (n, d).

    If its `forward` has an argument `return_features`, as NVIDIA's detectors have, it is called
    with True; if it has `no_output_bias`, its class probabilities are asked for with that.

    Raises:
        InputError: if the file is missing or no TorchScript.
    """
    try:
        checksum = sha256(path)
        load: Any = torch.jit.load
        network = load(str(path), map_location=device).eval()
        taken = {argument.name for argument in network.forward.schema.arguments}
    except FileNotFoundError:
        raise InputError(f"There is no file {path} of {name} features; give its path.") from None
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{path} cannot be read as TorchScript ({reason}); write it with torch.jit.save."
        ) from None
    optimised: Any = torch.jit.optimized_execution  # type: ignore[attr-defined]
    options = {"return_features": True} if "return_features" in taken else {}

    def outputs(images: Tensor) -> Outputs:
        levels = quantised(images)
        # The optimiser changes the program after its first calls, and with it the last digits,
        # which would then depend on how many batches a process has seen.
        with optimised(False):
            features = _called(network, levels, path, **options)
            if "no_output_bias" not in taken:
                return Outputs(features.flatten(1))
            probabilities = _called(network, levels, path, no_output_bias=True)
        tiny = torch.finfo(torch.float32).tiny
        return Outputs(features.flatten(1), probabilities.float().clamp(min=tiny).log())

    record = {"quantisation": QUANTISATION, "sha256": checksum, "file": path.name}
    return Space(name, outputs, record, batch=BATCH, device=device, is_costly=True)


def _called(network: Any, levels: Tensor, path: Path, **options: bool) -> Tensor:
    try:
        found = network(levels, **options)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise WorkError(
                f"The detector {path} needs more memory than {levels.device} has; free some."
            ) from error
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"The detector {path} fails on bytes of shape {tuple(levels.shape)} ({reason}); it "
            "must take (n, 3, H, W) in 0 .. 255."
        ) from None
    if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(levels):
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"The detector {path} makes {what} of {len(levels)} images; expected features (n, d)."
        )
    return found
