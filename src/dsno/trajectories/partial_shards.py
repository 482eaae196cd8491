"""The solved part of a shard that is not finished: what an interrupted collection keeps.

It is a safetensors file, partial-00003.safetensors, of the shard's first trajectories, with the tag
of the recipe and a checksum in its header. One that is damaged or another recipe's is not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dsno.support.storage import StorageDir
from dsno.trajectories.manifest import Manifest, shard_index, shard_name
from dsno.trajectories.shards import misfit


def partial_name(index: int) -> str:
    """File name of the solved part of a shard."""
    return shard_name(index).replace("shard", "partial")


def partial_index(name: str) -> int | None:
    """Number of the shard whose solved part has this name; None for another file."""
    return shard_index("shard" + name.removeprefix("partial")) if name[:7] == "partial" else None


def save_partial(
    storage: StorageDir, manifest: Manifest, index: int, tensors: Mapping[str, Tensor]
) -> None:
    """Write the first trajectories of a shard."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with storage.writing(partial_name(index)) as temporary:
        save_file(whole, temporary, {"tag": manifest.tag, "sha256": _checksum(whole)})


def load_partial(storage: StorageDir, manifest: Manifest, index: int) -> dict[str, Tensor] | None:
    """The first trajectories of a shard; None if there are none to go on from."""
    if storage.size(partial_name(index)) is None:
        return None
    with storage.reading(partial_name(index)) as local:
        try:
            with safe_open(local, "pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            count = len(tensors["noise"])
        except Exception:  # whatever a damaged file makes the library raise
            return None
    if not 0 < count < len(manifest.items(index)) or misfit(manifest, tensors, count):
        return None
    is_its = header.get("tag") == manifest.tag and header.get("sha256") == _checksum(tensors)
    return tensors if is_its else None


def drop_partial(storage: StorageDir, index: int) -> None:
    """Remove it, once the shard is whole."""
    storage.delete(partial_name(index))


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
