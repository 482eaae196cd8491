"""The prompts of an export: prompts.json, and prompts.npy with their embeddings (P, L, D)."""

from __future__ import annotations

import numpy as np
import torch

from dsno.support.errors import InputError
from dsno.support.files import read_json
from dsno.support.storage import StorageDir
from dsno.trajectories.exchange.about import REMEDY, About, File
from dsno.trajectories.exchange.checked import checked
from dsno.trajectories.exchange.npy import npy_bytes, read_npy
from dsno.trajectories.manifest import write_json
from dsno.trajectories.prompts import PROMPTS, Prompts

EMBEDDED = "prompts.npy"


def write_prompt_files(storage: StorageDir, prompts: Prompts) -> None:
    """Write them, each whole or not at all."""
    write_json(storage, PROMPTS, {"prompts": list(prompts.texts)})
    with storage.writing(EMBEDDED) as temporary:
        temporary.write_bytes(npy_bytes(prompts.embeddings.numpy()))


def read_prompt_files(storage: StorageDir, about: About, files: tuple[File, ...]) -> Prompts | None:
    """Read them; None if the export has none.

    Raises:
        InputError: if they are missing or not what the index says.
    """
    count, embedding = about.manifest.prompts, about.embedding
    if count is None or embedding is None:
        return None
    listed = {file.file: file for file in files}
    for name in (PROMPTS, EMBEDDED):
        if name not in listed:
            raise InputError(f"{storage} lists no {name}; {REMEDY}.")
    with checked(storage, listed[PROMPTS]) as local:
        texts = read_json(local, "list of prompts", REMEDY, shown=storage.at(PROMPTS)).get(
            "prompts"
        )
    if not isinstance(texts, list) or len(texts) != count or not all(map(_is_text, texts)):
        raise InputError(f"{storage.at(PROMPTS)} does not list {count} prompts; {REMEDY}.")
    with checked(storage, listed[EMBEDDED]) as local, local.open("rb") as file:
        dtype = np.dtype(about.manifest.dtype)
        try:
            array = read_npy(file, dtype, (count, *embedding), EMBEDDED, listed[EMBEDDED].bytes)
        except InputError as error:
            raise InputError(
                f"{storage.at(EMBEDDED)}: {str(error).rstrip('.')}; {REMEDY}."
            ) from None
    if not np.isfinite(array).all():
        raise InputError(f"{storage.at(EMBEDDED)} holds values that are not finite; {REMEDY}.")
    return Prompts(tuple(texts), torch.from_numpy(array.copy()))


def _is_text(value: object) -> bool:
    """Whether it is a string that UTF-8 can express."""
    return isinstance(value, str) and value.encode(errors="replace").decode() == value
