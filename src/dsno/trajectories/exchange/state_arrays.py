"""Stored tensors as the arrays of an export, and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsno.support.errors import InputError
from dsno.trajectories.exchange.about import About
from dsno.trajectories.shards import DTYPES

Arrays = dict[str, np.ndarray[Any, Any]]
"""The arrays of some trajectories, see `About.arrays`."""
ROWS = 128
"""Trajectories converted at a time, as float64 takes four times the memory of what is stored."""


def to_arrays(about: About, tensors: Mapping[str, Tensor], items: range, where: str) -> Arrays:
    """The arrays of a shard's trajectories.

    Args:
        about: the export.
        tensors: of the shard, with the states that the export has.
        items: which trajectories they are.
        where: the shard's address, for the error.

    Raises:
        InputError: if a state is not finite in the export's type.
    """
    count = len(items)
    found: Arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in _states(about, count)}
    for rows in _chunks(count):
        whole = torch.cat([tensors["noise"][rows, None], tensors["states"][rows]], 1).double()
        kept = (whole * _scales(about, whole)).numpy()
        with np.errstate(over="ignore"):  # found out below
            kept = kept.astype(about.dtype)
        if not np.isfinite(kept).all():
            bad = int(np.isfinite(kept).reshape(len(kept), -1).all(1).argmin())
            raise InputError(
                f"Trajectory {items[rows.start + bad]} in {where} holds values that are not finite "
                f"in {about.dtype}; export it as a wider type, or collect it again."
            )
        if "noise" in found:
            found["noise"][rows] = kept[:, 0]
        else:
            found["path"][rows] = kept[:, :-1]
        found["latent"][rows] = kept[:, -1]
    return found | {
        name: tensor.numpy() for name, tensor in tensors.items() if name not in ("noise", "states")
    }


def to_tensors(about: About, arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    """What a shard stores of the trajectories of an export."""
    m, dtype = about.manifest, DTYPES[about.manifest.dtype]
    count = len(arrays["latent"])
    noise = torch.empty(count, *m.sample_shape, dtype=dtype)
    states = torch.empty(count, len(m.times), *m.sample_shape, dtype=dtype)
    for rows in _chunks(count):
        before = arrays["noise"][rows, None] if "noise" in arrays else arrays["path"][rows]
        whole = torch.from_numpy(np.concatenate([before, arrays["latent"][rows, None]], 1)).double()
        kept = (whole / _scales(about, whole)).to(dtype)
        noise[rows], states[rows] = kept[:, 0], kept[:, 1:]
    others = {
        name: torch.from_numpy(array.copy())  # which may be read-only
        for name, array in arrays.items()
        if name not in ("latent", "path", "noise")
    }
    return {"noise": noise, "states": states, **others}


def not_finite(arrays: Mapping[str, np.ndarray[Any, Any]]) -> int | None:
    """The first row with a number that is not finite; None if there is none."""
    for array in arrays.values():
        if array.dtype.kind == "f":
            for rows in _chunks(len(array)):
                whole = np.isfinite(array[rows]).reshape(len(array[rows]), -1).all(1)
                if not whole.all():
                    return int(rows.start) + int(whole.argmin())
    return None


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The first array in which two sets of them differ in a bit; empty if none does."""
    if first.keys() != second.keys():
        return " and ".join(sorted(first.keys() ^ second.keys()))
    for name in first:
        one, other = (np.ascontiguousarray(arrays[name]) for arrays in (first, second))
        is_same = (one.dtype, one.shape) == (other.dtype, other.shape)
        if not is_same or not np.array_equal(_bits(one), _bits(other)):
            return name
    return ""


def _bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.view(f"u{array.dtype.itemsize}")


def _states(about: About, count: int) -> Iterator[tuple[str, Any]]:
    names = ("latent", "path", "noise")
    return ((name, spec) for name, spec in about.arrays(count).items() if name in names)


def _scales(about: About, states: Tensor) -> Tensor:
    return torch.tensor(about.scales, dtype=torch.float64).reshape(1, -1, *[1] * (states.ndim - 2))


def _chunks(count: int) -> Iterator[slice]:
    edges = [*range(0, count, ROWS), count]
    return (slice(a, b) for a, b in itertools.pairwise(edges))
