"""What an export of trajectories holds: its index.json, written last, and the arrays it names.

A trajectory is, in every layout,

    latent  the state at t = 0                                    shape
    path    the states before it, from t = 1 on                   (M, *shape), for M > 1 states
    noise   the state at t = 1, instead of a path, for M = 1      shape

and what conditioned it. These are states x_t = alpha(t) x_0 + sigma(t) eps as a network is given
them, not the scaled ones of a shard. In storage precision such a product may round, so where a
scale is not 1 the next wider type is used, from which division gives the stored bits back.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError

from dsno.diffusion.conditions import CLASS_LABELS, GUIDANCE_SCALE, PROMPT
from dsno.diffusion.schedules import (
    BetaSchedule,
    EDMSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
)
from dsno.support.adapters import adapter
from dsno.support.errors import InputError
from dsno.support.files import read_json
from dsno.support.storage import StorageDir
from dsno.support.version import __version__
from dsno.trajectories.manifest import (
    MAX_ELEMENTS,
    Manifest,
    Shard,
    parse_manifest,
    write_json,
)

INDEX = "index.json"
FORMAT = 1
DTYPES = ("float16", "float32", "float64")
"""Of the states in an export, each exact for what the one before it holds, scaled."""
REMEDY = "export it again, or fetch it again"
FASTGEN_LAST = 0.999
"""Largest time of FastGen's schedules of flows and of chains of betas."""

Dtype = Literal["float16", "float32", "float64"]
Spec = tuple[np.dtype[Any], tuple[int, ...]]
"""Type and shape of an array."""


@dataclass(frozen=True)
class File:
    """A small file that belongs to all shards."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class About:
    """What an export holds.

    Attributes:
        layout: its name, of `table`.
        manifest: of the folder of trajectories it gives back; no shards.
        dtype: of the states.
        is_exact: whether that folder's states are the original's, bit for bit.
        noise_scale: sigma(1), what the noise was multiplied by.
        schedule: the noise schedule, as `schedule_from_config` takes it.
        path_timesteps: the times of t = 1 and of all states but the last as FastGen counts them;
            None for a schedule that it has not.
        embedding: L and D of a prompt's embedding; None without prompts.
    """

    layout: str
    manifest: Manifest
    dtype: Dtype
    is_exact: bool
    noise_scale: float
    schedule: Mapping[str, Any]
    path_timesteps: tuple[float, ...] | None
    embedding: tuple[int, int] | None

    @property
    def scales(self) -> tuple[float, ...]:
        """What is multiplied to the noise and to every stored state."""
        return (self.noise_scale, *self.manifest.scales)

    def arrays(self, count: int) -> dict[str, Spec]:
        """Types and shapes of so many trajectories."""
        m, states = self.manifest, np.dtype(self.dtype)
        found: dict[str, Spec] = {"latent": (states, (count, *m.sample_shape))}
        before = len(m.times)
        if before == 1:
            found["noise"] = (states, (count, *m.sample_shape))
        else:
            found["path"] = (states, (count, before, *m.sample_shape))
        if m.num_classes is not None:
            found[CLASS_LABELS] = (np.dtype(np.int64), (count,))
        if isinstance(m.guidance_scale, tuple):
            found[GUIDANCE_SCALE] = (np.dtype(np.float32), (count,))
        if m.prompts is not None:
            found[PROMPT] = (np.dtype(np.int32), (count,))
        return found

    def state_bytes(self, count: int) -> int:
        """Bytes of so many trajectories' states: no file that holds them is smaller."""
        shape = self.manifest.sample_shape
        states = count * (1 + len(self.manifest.times)) * math.prod(shape)
        return states * np.dtype(self.dtype).itemsize


def narrowest(stored: str, scales: Sequence[float]) -> str:
    """The smallest type of `DTYPES` that scaled states come back from as they were stored."""
    # A factor this near to 1 rounds to the same number.
    if all(abs(scale - 1) <= np.finfo(stored).eps / 8 for scale in scales):
        return stored
    return DTYPES[DTYPES.index(stored) + 1]


def fastgen_times(schedule: NoiseSchedule, times: Sequence[float]) -> tuple[float, ...] | None:
    """Times of ours as FastGen counts them for the same network; None if it has no such schedule.

    EDM's time there is sigma, a flow's is ours, and step k of a chain of N betas is k / N; the last
    two end at 0.999. Source: fastgen/networks/noise_schedule.py of NVlabs/FastGen, 34f30e8.
    """
    t = torch.tensor(times, dtype=torch.float64)
    if isinstance(schedule, EDMSchedule):
        return tuple(schedule.sigma(t).tolist())
    if isinstance(schedule, BetaSchedule):
        t = t * ((schedule.timesteps - 1) / schedule.timesteps)
    elif not isinstance(schedule, RectifiedFlowSchedule):
        return None
    return tuple(t.clamp(max=FASTGEN_LAST).tolist())


@dataclass(frozen=True)
class Index:
    """What index.json lists beside `About`: the files, each with its checksum."""

    shards: tuple[Shard, ...]
    files: tuple[File, ...]


def is_export(storage: StorageDir) -> bool:
    """Whether a folder holds a finished export."""
    return storage.size(INDEX) is not None


def write_index(storage: StorageDir, about: About, index: Index) -> None:
    """Write index.json, whole or not at all."""
    manifest = dataclasses.asdict(about.manifest)
    del manifest["shards"]
    arrays = {
        name: {"dtype": str(dtype), "shape": shape[1:]}
        for name, (dtype, shape) in about.arrays(1).items()
    }
    value = {
        "format": FORMAT,
        "made_by": f"dsno {__version__}",
        "layout": about.layout,
        "dtype": about.dtype,
        "is_exact": about.is_exact,
        "noise_scale": about.noise_scale,
        "schedule": dict(about.schedule),
        "path_timesteps": about.path_timesteps,
        "embedding": about.embedding,
        "arrays": arrays,
        "trajectories": manifest,
        **dataclasses.asdict(index),
    }
    write_json(storage, INDEX, value)


@dataclass(frozen=True)
class _Values:
    """The entries of index.json that are read back."""

    layout: str
    dtype: Dtype
    is_exact: bool
    noise_scale: float
    schedule: dict[str, Any]
    path_timesteps: tuple[float, ...] | None
    embedding: tuple[int, int] | None
    trajectories: dict[str, Any]
    shards: tuple[Shard, ...]
    files: tuple[File, ...]


def read_index(storage: StorageDir) -> tuple[About, Index]:
    """Read and check an index; whether its files are the layout's is checked by `restore`.

    Raises:
        InputError: if it is missing, damaged, or of another format.
    """
    path = storage.at(INDEX)
    with storage.reading(INDEX) as local:
        value = read_json(local, "index of trajectories", REMEDY, shown=path)
    if value.get("format") != FORMAT:
        raise InputError(
            f"The index {path} has format {value.get('format')!r}, and this version reads "
            f"{FORMAT}; {REMEDY}."
        )
    try:
        found = adapter(_Values).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"The index {path} is damaged ({where}: {first['msg']}); {REMEDY}."
        ) from None
    manifest = parse_manifest({**found.trajectories, "shards": ()}, path, REMEDY)
    if complaint := _complaint(found, manifest):
        raise InputError(f"The index {path} {complaint}; {REMEDY}.")
    about = About(
        layout=found.layout,
        manifest=manifest,
        dtype=found.dtype,
        is_exact=found.is_exact,
        noise_scale=found.noise_scale,
        schedule=found.schedule,
        path_timesteps=found.path_timesteps,
        embedding=found.embedding,
    )
    return about, Index(found.shards, found.files)


def _complaint(found: _Values, manifest: Manifest) -> str:
    """What is impossible about an index; empty if nothing is."""
    if not (math.isfinite(found.noise_scale) and found.noise_scale > 0):
        return f"has a noise scale of {found.noise_scale}"
    if manifest.times[-1] != 0:
        return "has no states at t = 0"
    if (found.embedding is None) != (manifest.prompts is None):
        return "has prompts without the shape of their embeddings, or that shape alone"
    if found.embedding is not None and not 0 < math.prod(found.embedding) <= MAX_ELEMENTS:
        return f"has embeddings of shape {found.embedding}"
    listed = [item for shard in found.shards for item in (shard.first, shard.count)]
    if min(listed, default=0) < 0 or sum(listed[1::2]) != manifest.count:
        return f"lists {sum(listed[1::2]):,} trajectories, not {manifest.count:,}"
    files: tuple[Shard | File, ...] = (*found.shards, *found.files)
    for file in files:
        if not re.fullmatch("[0-9a-f]{64}", file.sha256) or file.bytes < 0:
            return f"gives {file.file!r} no checksum"
    return ""
