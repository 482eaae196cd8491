"""Trajectories on disk: safetensors shards and a manifest that is never ahead of them.

A shard holds, for its items, `noise` (n, *shape), `states` (n, M, *shape) and what conditioned
them: `class_labels` (n,), `guidance_scale` (n,) or `prompt_index` (n,), the row of the prompt in
prompts.safetensors, where every prompt's embedding is stored once. States are stored divided by
`state_scale` at their time (1 at t = 0), which keeps half precision accurate when the noise scale
is large. The manifest lists every finished shard with its checksum and says how they were made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsno.conditions import LABELS, PROMPT, Conditions
from dsno.denoisers import GUIDANCE_SCALE, Condition
from dsno.errors import InputError
from dsno.files import read_json, replacing, sha256, write_json

FORMAT = 2
DTYPES = {"float16": torch.float16, "float32": torch.float32}
MANIFEST = "manifest.json"
PROMPTS = "prompts.json"
EMBEDDED = "prompts.safetensors"


@dataclass(frozen=True)
class Shard:
    """One finished shard: items first .. first + count - 1."""

    file: str
    first: int
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of trajectories is.

    Attributes:
        tag: identifies the recipe and teacher that made it.
        count: trajectories in all, when finished.
        shard_size: items per shard.
        sample_shape: of one state.
        times: of the states, falling.
        scales: what the states were divided by at each time.
        dtype: storage precision, one of `DTYPES`.
        seed: of the noise and labels.
        num_classes: of the labels; None for an unconditional teacher.
        solver: method, steps, spacing and nfe.
        guidance_scale: of classifier-free guidance: one for all, or the range each trajectory's own
            was drawn from; None for none.
        prompts: how many prompts there are; None for a teacher without text.
        prompts_sha256: checksum of prompts.safetensors.
        shards: the finished ones.
    """

    tag: str
    count: int
    shard_size: int
    sample_shape: tuple[int, ...]
    times: tuple[float, ...]
    scales: tuple[float, ...]
    dtype: str
    seed: int
    num_classes: int | None
    solver: Mapping[str, Any]
    guidance_scale: float | tuple[float, float] | None = None
    prompts: int | None = None
    prompts_sha256: str = ""
    shards: tuple[Shard, ...] = ()
    format: int = FORMAT

    def items(self, index: int) -> range:
        """The items of shard `index`."""
        first = index * self.shard_size
        return range(first, min(first + self.shard_size, self.count))

    @property
    def shard_count(self) -> int:
        """Shards in all, when finished."""
        return -(-self.count // self.shard_size)

    @property
    def missing(self) -> list[int]:
        """Indices of the shards still to make."""
        done = {s.first // self.shard_size for s in self.shards}
        return [i for i in range(self.shard_count) if i not in done]


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically."""
    write_json(folder / MANIFEST, dataclasses.asdict(manifest))


def load_manifest(folder: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        InputError: if it is missing, damaged, of another format, or names files outside the folder.
    """
    path = folder / MANIFEST
    remedy = "run `dsno collect` to make the trajectories"
    remedy = f"delete it and {remedy} again" if path.exists() else remedy
    value = read_json(path, "manifest", remedy)
    known = {f.name for f in dataclasses.fields(Manifest)}
    for key in value:
        if key not in known:
            raise InputError(f"The manifest {path} has an unknown entry {key!r}; {remedy}.")
    if value.get("format") != FORMAT:
        raise InputError(
            f"The manifest {path} has format {value.get('format')!r}, and this version reads "
            f"{FORMAT}; {remedy}."
        )
    try:
        manifest = TypeAdapter(Manifest).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"The manifest {path} is damaged ({where}: {first['msg']}); {remedy}."
        ) from None
    if manifest.dtype not in DTYPES:
        raise InputError(
            f"The manifest {path} has an unknown storage precision {manifest.dtype!r}; {remedy}."
        )
    if manifest.shard_size < 1 or manifest.count < 1:
        raise InputError(f"The manifest {path} has no trajectories; {remedy}.")
    for shard in manifest.shards:
        if shard.file != shard_name(shard.first // manifest.shard_size):
            raise InputError(f"The manifest {path} names a foreign shard {shard.file!r}; {remedy}.")
    return manifest


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.safetensors"


@dataclass(frozen=True)
class Prompts:
    """The prompts of a folder of trajectories.

    Attributes:
        texts: what they say.
        embeddings: (P, L, D), in storage precision.
    """

    texts: tuple[str, ...]
    embeddings: Tensor


def write_prompts(folder: Path, prompts: Prompts) -> str:
    """Write prompts and embeddings; return the checksum of the latter."""
    write_json(folder / PROMPTS, {"prompts": list(prompts.texts)})
    with replacing(folder / EMBEDDED) as temporary:
        save_file({"embeddings": prompts.embeddings.contiguous()}, temporary)
    return sha256(folder / EMBEDDED)


def read_prompts(folder: Path, manifest: Manifest) -> Prompts | None:
    """The prompts of a folder; None for a teacher without text.

    Raises:
        InputError: if they are missing, damaged or not those of the manifest.
    """
    if manifest.prompts is None:
        return None
    remedy = "run `dsno collect` again to make them"
    texts = read_json(folder / PROMPTS, "list of prompts", remedy).get("prompts")
    path = folder / EMBEDDED
    if not path.is_file() or sha256(path) != manifest.prompts_sha256:
        raise InputError(f"{path} is missing or does not match its checksum; {remedy}.")
    embeddings = load_file(path)["embeddings"]
    if not isinstance(texts, list) or not (len(texts) == len(embeddings) == manifest.prompts):
        raise InputError(f"{folder / PROMPTS} does not list {manifest.prompts} prompts; {remedy}.")
    return Prompts(tuple(str(t) for t in texts), embeddings)


def write_shard(
    folder: Path, manifest: Manifest, index: int, tensors: Mapping[str, Tensor]
) -> Manifest:
    """Write one shard, then the manifest that lists it; return that manifest."""
    path = folder / shard_name(index)
    with replacing(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
    items = manifest.items(index)
    entry = Shard(path.name, items.start, len(items), path.stat().st_size, sha256(path))
    shards = sorted((*manifest.shards, entry), key=lambda s: s.first)
    manifest = dataclasses.replace(manifest, shards=tuple(shards))
    save_manifest(folder, manifest)
    return manifest


def damaged_shards(folder: Path, manifest: Manifest) -> dict[int, str]:
    """Index and complaint of every listed shard that is missing, truncated or edited."""
    bad = {}
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file():
            bad[shard.first // manifest.shard_size] = "is missing"
        elif path.stat().st_size != shard.bytes:
            bad[shard.first // manifest.shard_size] = (
                f"has {path.stat().st_size} bytes, not {shard.bytes}"
            )
        elif sha256(path) != shard.sha256:
            bad[shard.first // manifest.shard_size] = "does not match its checksum"
    return bad


class TrajectoryStore:
    """Random access to a finished folder of trajectories.

    Shards are memory-mapped, so only the rows asked for are read.

    Args:
        folder: with a manifest.
        tag: the recipe and teacher expected; None for any.
        times: the subset of stored times wanted, in order; all if None.

    Raises:
        InputError: if the folder is unfinished, of another recipe, lacks a time, or a shard is
            missing, truncated or edited.
    """

    def __init__(
        self, folder: Path, *, tag: str | None = None, times: Sequence[float] | None = None
    ) -> None:
        self.manifest = manifest = load_manifest(folder)
        if tag is not None and manifest.tag != tag:
            raise InputError(
                f"The trajectories in {folder} are of another recipe; run `dsno collect` again."
            )
        if manifest.missing:
            raise InputError(
                f"{len(manifest.missing)} of {manifest.shard_count} shards in {folder} are not "
                "made yet; run `dsno collect` again to go on."
            )
        for index, complaint in damaged_shards(folder, manifest).items():
            raise InputError(
                f"{folder / shard_name(index)} {complaint}; run `dsno collect` again to make it."
            )
        self.prompts = read_prompts(folder, manifest)
        embeddings = None if self.prompts is None else self.prompts.embeddings
        self._conditions = Conditions(prompts=embeddings)
        self.slots = [_slot(manifest.times, t, folder) for t in (times or manifest.times)]
        self._shards = []
        for index in range(manifest.shard_count):
            path = folder / shard_name(index)
            try:
                self._shards.append(load_file(path))
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{path} cannot be read ({error}); run `dsno collect` again."
                ) from None
            self._check(path, self._shards[-1], len(manifest.items(index)))

    def __len__(self) -> int:
        return self.manifest.count

    def rows(self, items: Tensor) -> tuple[Tensor, Tensor, Condition | None]:
        """Noise (n, *shape), scaled states (n, M, *shape), both float32, and the condition."""
        size = self.manifest.shard_size
        shard = items // size
        parts: dict[str, Tensor] = {}
        for index in sorted(set(shard.tolist())):
            where = (shard == index).nonzero()[:, 0]
            for name, tensor in self._shards[index].items():
                picked = tensor[items[where] - index * size]
                if name == "states":
                    picked = picked[:, self.slots]
                if name not in parts:
                    parts[name] = picked.new_empty(len(items), *picked.shape[1:])
                parts[name][where] = picked
        noise, states = parts.pop("noise").float(), parts.pop("states").float()
        return noise, states, self._conditions.expand(parts)

    def _check(self, path: Path, tensors: Mapping[str, Tensor], count: int) -> None:
        shape, m = self.manifest.sample_shape, len(self.manifest.times)
        expected = {"noise": (count, *shape), "states": (count, m, *shape)}
        if self.manifest.num_classes is not None:
            expected[LABELS] = (count,)
        if isinstance(self.manifest.guidance_scale, tuple):
            expected[GUIDANCE_SCALE] = (count,)
        if self.manifest.prompts is not None:
            expected[PROMPT] = (count,)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise InputError(f"{path} holds {found}, not {expected}; run `dsno collect` again.")


def _slot(stored: Sequence[float], t: float, folder: Path) -> int:
    for i, time in enumerate(stored):
        if abs(time - t) < 1e-9:
            return i
    raise InputError(
        f"The trajectories in {folder} have no state at t = {t:g}, only at "
        f"{', '.join(f'{s:g}' for s in stored)}; let `student.slices` divide `collect.slices`."
    )
