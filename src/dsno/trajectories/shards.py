"""The shards of a folder of trajectories: writing them, and what can be wrong with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from dsno.diffusion.conditions import CLASS_LABELS, GUIDANCE_SCALE, PROMPT
from dsno.recipes.choices import StorageType
from dsno.support.files import sha256
from dsno.support.storage import StorageDir, as_storage
from dsno.trajectories.manifest import Manifest, Shard, record_name, shard_name, write_json

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(StorageType)}


def write_shard(
    folder: Path | StorageDir, manifest: Manifest, index: int, tensors: Mapping[str, Tensor]
) -> Shard:
    """Write one shard, then its record; return that."""
    storage, name, items = as_storage(folder), shard_name(index), manifest.items(index)
    with storage.writing(name) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
        shard = Shard(name, items.start, len(items), temporary.stat().st_size, sha256(temporary))
    write_json(storage, record_name(index), {"tag": manifest.tag, **dataclasses.asdict(shard)})
    return shard


def entries(manifest: Manifest, count: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a shard holds for so many items."""
    shape = manifest.sample_shape
    found = {"noise": (count, *shape), "states": (count, len(manifest.times), *shape)}
    if manifest.num_classes is not None:
        found[CLASS_LABELS] = (count,)
    if isinstance(manifest.guidance_scale, tuple):
        found[GUIDANCE_SCALE] = (count,)
    if manifest.prompts is not None:
        found[PROMPT] = (count,)
    return found


def misfit(manifest: Manifest, tensors: Mapping[str, Tensor], count: int) -> str:
    """What makes tensors no shard of so many items; empty if nothing does."""
    expected = entries(manifest, count)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        return f"holds {found!r:.300}, not {expected}"
    dtypes = {CLASS_LABELS: torch.int64, PROMPT: torch.int32, GUIDANCE_SCALE: torch.float32}
    for name, tensor in tensors.items():
        if tensor.dtype != dtypes.get(name, DTYPES[manifest.dtype]):
            return f"has {name} of type {str(tensor.dtype).removeprefix('torch.')}"
    limits = (CLASS_LABELS, "labels", manifest.num_classes), (PROMPT, "prompts", manifest.prompts)
    for name, what, limit in limits:
        if limit is not None and not bool(((tensors[name] >= 0) & (tensors[name] < limit)).all()):
            return f"has other {what} than the {limit} there are"
    return ""


def damaged_shards(
    folder: Path | StorageDir,
    manifest: Manifest,
    indices: Iterable[int] | None = None,
    *,
    reads: bool | None = None,
) -> dict[int, str]:
    """Index and complaint of listed shards that are missing, truncated or edited.

    Args:
        folder: where they are.
        manifest: lists them.
        indices: which to look at; all if None.
        reads: whether to read each and compare its checksum, or look at sizes alone; if None they
            are read where they lie on this machine.
    """
    storage = as_storage(folder)
    reads = storage.path is not None if reads is None else reads
    wanted = None if indices is None else set(indices)
    bad: dict[int, str] = {}
    for shard in manifest.shards:
        index = shard.first // manifest.shard_size
        if wanted is None or index in wanted:
            complaint = _damage(storage, shard, reads)
            if complaint:
                bad[index] = complaint
    return bad


def _damage(storage: StorageDir, shard: Shard, reads: bool) -> str:
    """What is wrong with a shard's file; empty if nothing is."""
    size = storage.size(shard.file)
    if size is None:
        return "is missing"
    if size != shard.bytes:
        return f"has {size} bytes, not {shard.bytes}"
    if not reads:
        return ""
    with storage.reading(shard.file) as local:
        return "" if sha256(local) == shard.sha256 else "does not match its checksum"
