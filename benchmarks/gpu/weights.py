"""Trained weights in half precision, in files small enough to be carried and committed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dsno.support.errors import InputError
from dsno.support.files import replacing

LIMIT = 15_000_000
"""Bytes of tensors a file."""


def save(
    state: Mapping[str, Tensor],
    folder: Path,
    name: str,
    about: Mapping[str, Any],
    limit: int = LIMIT,
) -> list[Path]:
    """Write NAME-1-of-N.safetensors and so on; floats in half precision.

    Args:
        state: tensors by name.
        folder: where to.
        name: of the files.
        about: what the tensors are; it comes back with them.
        limit: bytes of tensors a file.

    Raises:
        InputError: for a number that half precision cannot hold, or a tensor larger than a file.
    """
    pieces: list[dict[str, Tensor]] = [{}]
    room = limit
    for key, tensor in state.items():
        kept = tensor.detach().cpu().contiguous()
        if kept.is_floating_point():
            kept = kept.half()
            if not bool(torch.isfinite(kept).all()):
                raise InputError(f"{name}: {key} has numbers that half precision cannot hold.")
        if kept.nbytes > limit:
            raise InputError(f"{name}: {key} alone has {kept.nbytes:,} bytes, over {limit:,}.")
        if kept.nbytes > room:
            pieces.append({})
            room = limit
        pieces[-1][key] = kept
        room -= kept.nbytes
    folder.mkdir(parents=True, exist_ok=True)
    old, written = set(_files(folder, name)), []
    for index, piece in enumerate(pieces, 1):
        path = folder / f"{name}-{index}-of-{len(pieces)}.safetensors"
        with replacing(path) as temporary:
            save_file(piece, temporary, metadata={"about": json.dumps(dict(about))})
        written.append(path)
    for path in old - set(written):
        path.unlink()
    return written


def load(folders: Iterable[Path], name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors in float32 and what is said of them, from the first folder that has them.

    Raises:
        InputError: if a folder has some of the files only, or a damaged one.
    """
    for folder in folders:
        paths = _files(folder, name)
        if not paths:
            continue
        wanted = int(paths[0].stem.rsplit("-", 1)[1])
        if len(paths) != wanted:
            raise InputError(
                f"{folder} has {len(paths)} of the {wanted} files of {name}; "
                "bring the others or remove these."
            )
        state: dict[str, Tensor] = {}
        about: dict[str, Any] = {}
        for path in paths:
            try:
                with safe_open(path, "pt") as file:
                    about = json.loads(file.metadata()["about"])
                    state |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            except Exception as error:  # whatever a damaged file makes the library raise
                raise InputError(f"{path} cannot be read ({error}); remove it.") from None
        return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, about
    return None


def _files(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}-*-of-*.safetensors"))
