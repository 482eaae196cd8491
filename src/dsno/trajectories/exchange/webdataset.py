"""WebDataset: tar files of .npy and .json members, as FastGen's loaders read them.

Members of trajectory 7 are called 00000007.latent.npy and so on; FastGen's `WDSLoader` maps its
keys to them (docs/sharing-trajectories.md has the loader). Beside the arrays there are

    condition.npy   the class as FastGen's networks take it, one of K float32; of length 0 for none
    txt_emb.npy     instead, the prompt's embedding (L, D), and txt, the prompt
    json            index, seed, and what conditioned the trajectory

Sources: fastgen/datasets/wds_dataloaders.py and class_cond_dataset.py of NVlabs/FastGen, 34f30e8;
the tar of POSIX.1-1988 (ustar), which WebDataset reads in order.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dsno.diffusion.conditions import CLASS_LABELS, GUIDANCE_SCALE, PROMPT
from dsno.support.errors import InputError
from dsno.trajectories.exchange.about import About
from dsno.trajectories.exchange.layout import Layout, Part
from dsno.trajectories.exchange.npy import HEADER, npy_bytes, read_npy
from dsno.trajectories.exchange.state_arrays import Arrays
from dsno.trajectories.manifest import Shard
from dsno.trajectories.prompts import Prompts

STATES = ("latent", "path", "noise")
CONDITIONS = {CLASS_LABELS: "class_label", GUIDANCE_SCALE: "guidance_scale", PROMPT: "prompt_index"}
"""Names of the conditions in a .json member."""
MAX_JSON = 4096
"""Bytes of a .json member, at most."""


class WebDataset(Layout):
    """A tar a shard, 00000.tar: FastGen sorts them by their number."""

    name: ClassVar[str] = "webdataset"

    def file(self, index: int, count: int) -> str:
        """Name of file `index`."""
        return f"{index:05d}.tar"

    def size(self, about: About, count: int, prompts: Prompts | None) -> int:
        """Bytes that a file of so many trajectories takes at most."""
        one = {name: spec for name, spec in about.arrays(1).items() if name in STATES}
        members = [int(np.prod(shape)) * dtype.itemsize + HEADER for dtype, shape in one.values()]
        if prompts is None:
            members.append((about.manifest.num_classes or 0) * 4 + HEADER)
        else:
            members.append(prompts.embeddings[0].nbytes + HEADER)
            members.append(max(len(text.encode()) for text in prompts.texts))
        members.append(MAX_JSON // 8)
        block = tarfile.BLOCKSIZE  # a header, and the content padded
        return count * sum(block + -(-member // block) * block for member in members) + 2**14

    def write(
        self, path: Path, about: About, parts: Iterable[Part], prompts: Prompts | None
    ) -> None:
        """Write a tar of some shards, the same bytes each time."""
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for part in parts:
                for row, item in enumerate(part.items):
                    for suffix, data in _members(about, part.arrays, row, item, prompts):
                        info = tarfile.TarInfo(f"{_key(item)}.{suffix}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))

    def read(self, path: Path, about: About, items: range, prompts: Prompts | None) -> Arrays:
        """The arrays of a tar's trajectories; nothing is unpacked to a disk."""
        specs, one = about.arrays(len(items)), about.arrays(1)
        found = {name: np.empty(shape, dtype) for name, (dtype, shape) in specs.items()}
        stored = [name for name in STATES if name in specs]
        suffixes = [*(f"{name}.npy" for name in stored), *_derived(prompts), "json"]
        wanted = iter(itertools.product(enumerate(items), suffixes))
        derived: dict[str, bytes] = {}
        for name, data in _entries(path, about, suffixes, len(items), prompts):
            (row, item), suffix = next(wanted, ((-1, -1), ""))
            if name != (expected := f"{_key(item)}.{suffix}" if suffix else "no other member"):
                raise InputError(f"Member {name!r} is not expected there, but {expected}.")
            array = suffix.removesuffix(".npy")
            if array in stored:
                dtype, shape = one[array]
                found[array][row] = read_npy(io.BytesIO(data), dtype, shape[1:], name, len(data))
            elif suffix == "json":
                _take(found, row, _values(data, name), name)
                row_of = {key: found[key][row : row + 1] for key in CONDITIONS if key in found}
                _agree(about, row_of, prompts, derived, _key(item))
            else:
                derived[suffix] = data
        if (left := next(wanted, None)) is not None:
            (_, item), suffix = left
            raise InputError(f"Member {_key(item)}.{suffix} is missing.")
        return found

    def extras(self, about: About, shards: Sequence[Shard]) -> dict[str, str]:
        """The numbers of trajectories that FastGen's deterministic loader skips by."""
        counts = {shard.file: shard.count for shard in shards}
        return {"shard_count.json": json.dumps(counts, indent=1) + "\n"}


def _key(item: int) -> str:
    return f"{item:08d}"


def _derived(prompts: Prompts | None) -> list[str]:
    """Suffixes of what repeats a condition in the form that networks take."""
    return ["condition.npy"] if prompts is None else ["txt_emb.npy", "txt"]


def _members(
    about: About, arrays: Mapping[str, Any], row: int, item: int, prompts: Prompts | None
) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of a trajectory's members, in their order."""
    for name in STATES:
        if name in arrays:
            yield f"{name}.npy", npy_bytes(arrays[name][row])
    drawn = {name: arrays[name][row].item() for name in CONDITIONS if name in arrays}
    yield from _condition(about, drawn, prompts).items()
    values = {"index": item, "seed": about.manifest.seed}
    values |= {CONDITIONS[name]: value for name, value in drawn.items()}
    yield "json", json.dumps(values, allow_nan=False).encode()


def _condition(about: About, drawn: Mapping[str, Any], prompts: Prompts | None) -> dict[str, bytes]:
    """What repeats a condition in the form that networks take, by its suffix."""
    if prompts is None:
        one_hot = np.zeros(about.manifest.num_classes or 0, np.float32)
        if CLASS_LABELS in drawn:
            one_hot[drawn[CLASS_LABELS]] = 1
        return {"condition.npy": npy_bytes(one_hot)}
    index = drawn[PROMPT]
    embedding = npy_bytes(prompts.embeddings[index].numpy())
    return {"txt_emb.npy": embedding, "txt": prompts.texts[index].encode()}


def _entries(
    path: Path, about: About, suffixes: Sequence[str], count: int, prompts: Prompts | None
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a tar's members, none larger than any of an export is.

    Raises:
        InputError: if it cannot be read, or a member is no file or too large.
    """
    texts = () if prompts is None else prompts.texts
    embedding = 0 if prompts is None else prompts.embeddings[0].nbytes
    classes = (about.manifest.num_classes or 0) * 4
    most = max(
        about.state_bytes(1), embedding, classes, *(len(text.encode()) for text in texts), MAX_JSON
    )
    if path.stat().st_size % tarfile.RECORDSIZE:  # which every tar is padded to
        raise InputError(f"It is not a whole tar file, of records of {tarfile.RECORDSIZE:,} bytes.")
    try:
        with tarfile.open(path, "r:") as tar:
            for number, member in enumerate(tar):
                if number >= count * len(suffixes):
                    raise InputError(f"Member {member.name!r} is one too many.")
                if not member.isreg():
                    raise InputError(f"Member {member.name!r} is not a regular file.")
                if member.size > most + HEADER:
                    raise InputError(f"Member {member.name!r} has {member.size:,} bytes.")
                file = tar.extractfile(member)
                assert file is not None  # it is a regular file
                yield member.name, file.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"It is not a whole tar file ({error}).") from None


def _values(data: bytes, name: str) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise InputError(f"Member {name} is not JSON.") from None
    if not isinstance(values, dict):
        raise InputError(f"Member {name} is not a JSON object.")
    return values


def _take(found: Arrays, row: int, values: Mapping[str, Any], name: str) -> None:
    """Put a trajectory's conditions into their arrays."""
    for array, key in CONDITIONS.items():
        if array in found:
            value, is_whole = values.get(key), found[array].dtype.kind == "i"
            right = type(value) is int if is_whole else type(value) in (int, float)
            if not right or (is_whole and not 0 <= int(value or 0) < 2**31):
                raise InputError(f"Member {name} gives {key} as {value!r:.40}.")
            found[array][row] = value


def _agree(
    about: About,
    row: Mapping[str, np.ndarray[Any, Any]],
    prompts: Prompts | None,
    derived: Mapping[str, bytes],
    key: str,
) -> None:
    """Refuse a condition that is another in the form that networks take.

    Raises:
        InputError: if it is, or if there is no such condition.
    """
    drawn = {name: array.item() for name, array in row.items()}
    limits = {CLASS_LABELS: about.manifest.num_classes, PROMPT: about.manifest.prompts}
    for name, limit in limits.items():
        if name in drawn and limit is not None and drawn[name] >= limit:
            raise InputError(f"Member {key}.json has {CONDITIONS[name]} {drawn[name]} of {limit}.")
    shortest = 0 if prompts is not None else (about.manifest.num_classes or 0) * 4
    if len(derived.get("condition.npy", b"")) < shortest:
        raise InputError(f"Member {key}.condition.npy is shorter than the classes are many.")
    for suffix, data in _condition(about, drawn, prompts).items():
        if derived[suffix] != data:
            raise InputError(f"Member {key}.{suffix} is not what {key}.json says.")
