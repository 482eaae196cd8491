"""The prompts of a folder of trajectories, each with its embedding stored once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from dsno.support.errors import InputError
from dsno.support.files import read_json, sha256
from dsno.support.storage import StorageDir, as_storage
from dsno.trajectories.manifest import Manifest, write_json

PROMPTS = "prompts.json"
EMBEDDED = "prompts.safetensors"


@dataclass(frozen=True)
class Prompts:
    """The prompts of a folder of trajectories.

    Attributes:
        texts: what they say.
        embeddings: (P, L, D), in storage precision.
    """

    texts: tuple[str, ...]
    embeddings: Tensor


def checksum(prompts: Prompts) -> str:
    """What `write_prompts` returns, without writing."""
    return hashlib.sha256(save({"embeddings": prompts.embeddings.contiguous()})).hexdigest()


def write_prompts(folder: Path | StorageDir, prompts: Prompts) -> str:
    """Write prompts and embeddings; return the checksum of the latter."""
    storage = as_storage(folder)
    write_json(storage, PROMPTS, {"prompts": list(prompts.texts)})
    with storage.writing(EMBEDDED) as temporary:
        save_file({"embeddings": prompts.embeddings.contiguous()}, temporary)
        return sha256(temporary)


def read_prompts(folder: Path | StorageDir, manifest: Manifest) -> Prompts | None:
    """The prompts of a folder; None for a teacher without text.

    Raises:
        InputError: if they are missing, damaged or not those of the manifest.
    """
    if manifest.prompts is None:
        return None
    storage, remedy = as_storage(folder), "run `dsno collect` again to make them"
    with storage.reading(PROMPTS) as local:
        path = storage.at(PROMPTS)
        texts = read_json(local, "list of prompts", remedy, shown=path).get("prompts")
    with storage.reading(EMBEDDED) as local:
        if not local.is_file() or sha256(local) != manifest.prompts_sha256:
            raise InputError(
                f"{storage.at(EMBEDDED)} is missing or does not match its checksum; {remedy}."
            )
        try:
            with safe_open(local, "pt") as file:
                embeddings = file.get_tensor("embeddings").clone()
        except Exception as error:  # whatever a foreign file makes the library raise
            raise InputError(
                f"{storage.at(EMBEDDED)} cannot be read ({error}); {remedy}."
            ) from None
    if embeddings.ndim != 3 or not embeddings.is_floating_point():
        raise InputError(f"{storage.at(EMBEDDED)} holds no embeddings of prompts; {remedy}.")
    if not isinstance(texts, list) or not (len(texts) == len(embeddings) == manifest.prompts):
        raise InputError(
            f"{storage.at(PROMPTS)} does not list {manifest.prompts} prompts; {remedy}."
        )
    return Prompts(tuple(str(t) for t in texts), embeddings)
