"""arrays.safetensors: the samples and trajectories that an evaluation keeps to be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dsno.evaluation.metrics import REMEDY
from dsno.support.errors import InputError
from dsno.support.images import MODES

ARRAYS = "arrays.safetensors"
REAL = "real"
"""Missing where only statistics of the data are known."""
SAMPLES = ("teacher", "ddim", "student")
TRAJECTORIES = ("teacher_trajectory", "student_trajectory")


def read_arrays(path: Path) -> dict[str, Tensor]:
    """arrays.safetensors, checked; its images are there in whole groups or not at all.

    Raises:
        InputError: if it is missing or malformed.
    """
    try:
        arrays = load_file(path)
    except FileNotFoundError:
        raise InputError(f"There is no arrays file at {path}; {REMEDY}.") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"The arrays file {path} cannot be read ({error}); {REMEDY}.") from None
    samples = (REAL, *SAMPLES) if REAL in arrays else SAMPLES
    for group, ndim in ((samples, 4), (TRAJECTORIES, 5)):
        if reason := _problem(arrays, group, ndim):
            raise InputError(f"The arrays file {path} is malformed ({reason}); {REMEDY}.")
    return arrays


def _problem(arrays: Mapping[str, Tensor], group: tuple[str, ...], ndim: int) -> str | None:
    """What is wrong with a group of images (n, ..., C, H, W), None if nothing is."""
    missing = [name for name in group if name not in arrays]
    if len(missing) == len(group):
        return None
    if missing:
        return f"{missing[0]!r} is missing"
    if ndim == 5 and arrays.get("trajectory_times", arrays[group[0]]).ndim != 1:
        return "'trajectory_times' is missing or not a list"
    last = arrays[group[-1]]
    for name in group:
        array = arrays[name]
        shape = tuple(array.shape)
        if array.ndim != ndim or shape[-3] not in MODES or not array.numel():
            return f"{name!r} has shape {shape}"
        if shape[1:] != last.shape[1:] or (name != REAL and len(array) != len(last)):
            return f"the shapes of {name!r} and {group[-1]!r} differ"
        if array.isnan().any():
            return f"{name!r} holds NaN"
        if ndim == 5 and shape[1] != len(arrays["trajectory_times"]):
            return f"{name!r} and 'trajectory_times' differ in length"
    return None
