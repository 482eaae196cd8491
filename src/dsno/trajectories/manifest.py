"""The manifest of a folder of trajectories: how they were made, and which shards are finished.

A shard holds, for its items, `noise` (n, *shape), `states` (n, M, *shape) and what conditioned
them: `class_labels` (n,), `guidance_scale` (n,) or `prompt_index` (n,), the index of the prompt in
prompts.safetensors. States are stored divided by `state_scale` at their time (1 at t = 0), which
keeps half precision accurate when the noise scale is large.

The manifest is never ahead of the shards: it lists finished ones with their checksums, and a shard
made since it was written has a record of its own, shard-00000.json, written after the shard. So
many processes can add shards without ever writing the same file, and none is listed before it is on
disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from dsno.recipes.choices import Arithmetic, StorageType
from dsno.support.adapters import adapter
from dsno.support.errors import InputError
from dsno.support.files import read_json
from dsno.support.storage import StorageDir, as_storage

FORMAT = 3
FORMAT_CLIPPED_FIRST = 2
"""What was guided may have been clipped before it was guided, if its teacher clips; all else is as
in `FORMAT`."""
MANIFEST = "manifest.json"
MAX_SHARDS, MAX_ELEMENTS, MAX_TIMES = 2**20, 2**26, 2**12
"""More a manifest may not claim: of shards, numbers in a state, and states."""
ATTEMPTS = 10
"""To read a folder that others are changing."""
MAX_TEXT = 200
"""Characters of a tag or of what the manifest says of the solver."""


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
        dtype: storage precision, a `StorageType`.
        seed: of the noise and labels.
        num_classes: of the labels; None for an unconditional teacher.
        solver: method, steps, spacing and nfe; then, unless they are `exact` and no, the
            network's `precision` and whether it was `compiled`.
        guidance_scale: of classifier-free guidance: one for all, or the range each trajectory's own
            was drawn from; None for none.
        prompts: how many prompts there are; None for a teacher without text.
        prompts_sha256: checksum of prompts.safetensors.
        shards: the finished ones.
        format: `FORMAT`, or `FORMAT_CLIPPED_FIRST` for guided trajectories of an earlier version.
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
    solver: Mapping[str, str | int | float]
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
    def precision(self) -> Arithmetic:
        """Arithmetic of the network, see `dsno.diffusion.arithmetic`."""
        found: Arithmetic = self.solver.get("precision", "exact")  # type: ignore[assignment]
        return found

    def as_compiled(self) -> Manifest:
        """The same, saying that a compiled network solved some of it."""
        return dataclasses.replace(self, solver={**self.solver, "compiled": "yes"})

    @property
    def may_be_clipped_first(self) -> bool:
        """Whether a version made it that clipped predictions before guidance combined them."""
        return self.format == FORMAT_CLIPPED_FIRST

    @property
    def shard_count(self) -> int:
        """Shards in all, when finished."""
        return -(-self.count // self.shard_size)

    @property
    def missing(self) -> list[int]:
        """Indices of the shards still to make."""
        done = {s.first // self.shard_size for s in self.shards}
        return [i for i in range(self.shard_count) if i not in done]


def save_manifest(folder: Path | StorageDir, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all."""
    write_json(as_storage(folder), MANIFEST, dataclasses.asdict(manifest))


def write_json(storage: StorageDir, name: str, value: Mapping[str, Any]) -> None:
    """Write a file of JSON, whole or not at all."""
    with storage.writing(name) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def has_manifest(folder: Path | StorageDir) -> bool:
    """Whether a collection was begun in a folder."""
    return as_storage(folder).size(MANIFEST) is not None


def load_manifest(folder: Path | StorageDir) -> Manifest:
    """Read and check a manifest; shards recorded since it was written are listed in it.

    Raises:
        InputError: if it is missing, damaged, of another format, or names files outside the folder.
    """
    storage = as_storage(folder)
    for _ in range(ATTEMPTS):
        manifest = _read_manifest(storage)
        with contextlib.suppress(FileNotFoundError):
            return _with_records(storage, manifest)
        # Another process has just moved a record into the manifest.
    raise InputError(f"A record of a shard (shard-*.json) in {storage} cannot be read; delete it.")


def _read_manifest(storage: StorageDir) -> Manifest:
    path, remedy = storage.at(MANIFEST), "run `dsno collect` to make the trajectories"
    with storage.reading(MANIFEST) as local:
        remedy = f"delete it and {remedy} again" if local.exists() else remedy
        value = read_json(local, "manifest", remedy, shown=path)
    return parse_manifest(value, path, remedy)


def parse_manifest(value: dict[str, Any], path: str, remedy: str) -> Manifest:
    """Check the values of a manifest.

    Args:
        value: of its entries.
        path: where they were read, for the error.
        remedy: what the user should do if they make none.

    Raises:
        InputError: if they make none.
    """
    known = {f.name for f in dataclasses.fields(Manifest)}
    for key in value:
        if key not in known:
            raise InputError(f"The manifest {path} has an unknown entry {key!r}; {remedy}.")
    if value.get("format") == FORMAT_CLIPPED_FIRST and value.get("guidance_scale") is None:
        value["format"] = FORMAT
    if value.get("format") not in (FORMAT, FORMAT_CLIPPED_FIRST):
        raise InputError(
            f"The manifest {path} has format {value.get('format')!r}, and this version reads "
            f"{FORMAT}; {remedy}."
        )
    try:
        manifest = adapter(Manifest).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"The manifest {path} is damaged ({where}: {first['msg']}); {remedy}."
        ) from None
    if complaint := _complaint(manifest):
        raise InputError(f"The manifest {path} {complaint}; {remedy}.")
    return manifest


def _complaint(manifest: Manifest) -> str:
    """What is impossible about a manifest; empty if nothing is."""
    m = manifest
    if m.dtype not in get_args(StorageType):
        return f"has an unknown storage precision {m.dtype!r}"
    if m.shard_size < 1 or m.count < 1:
        return "has no trajectories"
    if m.shard_count > MAX_SHARDS:
        return f"has {m.shard_count:,} shards, and at most {MAX_SHARDS:,} are supported"
    if min(m.sample_shape, default=1) < 1 or math.prod(m.sample_shape) > MAX_ELEMENTS:
        return f"has samples of shape {m.sample_shape}"
    if not 1 <= len(m.times) == len(m.scales) <= MAX_TIMES or (m.prompts or 1) < 1:
        return f"has {len(m.times)} times, {len(m.scales)} scales and {m.prompts} prompts"
    if not all(math.isfinite(t) for t in m.times + m.scales) or min(m.scales) <= 0:
        return "has times that are not finite, or scales that are not finite and positive"
    if (1 if m.num_classes is None else m.num_classes) < 1:
        return f"has {m.num_classes} classes"
    texts = [m.tag, *m.solver, *(v for v in m.solver.values() if isinstance(v, str))]
    if not all(text.isprintable() and len(text) <= MAX_TEXT for text in texts):
        return f"has a tag or solver text beyond {MAX_TEXT} printable characters"
    if not {"method", "steps", "spacing", "nfe"} <= m.solver.keys():
        return "does not say how its solver worked"
    if m.precision not in get_args(Arithmetic):
        return f"has an unknown precision {m.precision!r}"
    for shard in m.shards:
        index = shard.first // m.shard_size
        if shard.file != shard_name(index) or not 0 <= index < m.shard_count:
            return f"names a foreign shard {shard.file!r}"
        if not re.fullmatch("[0-9a-f]{64}", shard.sha256) or shard.bytes < 0:
            return f"gives {shard.file} no checksum"
        if range(shard.first, shard.first + shard.count) != m.items(index):
            return f"lists other trajectories in {shard.file} than belong there"
    return ""


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.safetensors"


def shard_index(name: str) -> int | None:
    """Number of the shard whose file has this name; None for another file."""
    found = re.fullmatch(r"shard-(\d{5,7})\.safetensors", name)
    return None if found is None or shard_name(int(found[1])) != name else int(found[1])


def record_name(index: int) -> str:
    """File name of a shard's own record."""
    return f"shard-{index:05d}.json"


def record_index(name: str) -> int | None:
    """Number of the shard whose record has this name; None for another file."""
    stem, suffix = name[: -len(".json")], name[-len(".json") :]
    return shard_index(f"{stem}.safetensors") if suffix == ".json" else None


def _with_records(storage: StorageDir, manifest: Manifest) -> Manifest:
    """The manifest with the shards that have a record of their own, which is newer."""
    shards = {shard.file: shard for shard in manifest.shards}
    for name in storage.names():
        index = record_index(name)
        shard = None if index is None else _read_record(storage, manifest, index)
        if shard is not None:
            shards[shard.file] = shard
    ordered = sorted(shards.values(), key=lambda shard: shard.first)
    return dataclasses.replace(manifest, shards=tuple(ordered))


def _read_record(storage: StorageDir, manifest: Manifest, index: int) -> Shard | None:
    """A shard's record; None if it is damaged or another collection's: then it is made again."""
    try:
        with storage.reading(record_name(index)) as local:
            if not local.exists():
                raise FileNotFoundError(local)
            value = read_json(local, "record", "delete it")
        tag = value.pop("tag", None)
        shard = adapter(Shard).validate_python(value)
    except (InputError, ValidationError):
        return None
    alone = dataclasses.replace(manifest, shards=(shard,))
    is_its = tag == manifest.tag and shard.file == shard_name(index) and not _complaint(alone)
    return shard if is_its else None


def compact(folder: Path | StorageDir) -> Manifest:
    """Once every shard is made, list them in the manifest and remove their records; return it.

    Several processes may do this at once: all write the same.
    """
    storage = as_storage(folder)
    manifest = load_manifest(storage)
    records = [name for name in storage.names() if record_index(name) is not None]
    if records and not manifest.missing:
        save_manifest(storage, manifest)
        for name in records:
            storage.delete(name)
    return manifest


def forget(folder: Path | StorageDir, indices: Iterable[int]) -> Manifest:
    """Take shards off the list, so that they are made again; return the manifest."""
    storage, bad = as_storage(folder), set(indices)
    manifest = _read_manifest(storage)
    kept = tuple(s for s in manifest.shards if s.first // manifest.shard_size not in bad)
    if kept != manifest.shards:
        save_manifest(storage, dataclasses.replace(manifest, shards=kept))
    for index in bad:
        storage.delete(record_name(index))
    return load_manifest(storage)
