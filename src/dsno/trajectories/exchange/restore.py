"""Read an export back into a folder of trajectories.

Nothing is unpacked to a disk, no pickle is loaded, and no file is opened whose checksum is not the
index's. One shard is in memory at a time; an interrupted import goes on where it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dsno.support.console import progress
from dsno.support.errors import InputError, one_of
from dsno.support.files import require_space
from dsno.support.storage import StorageDir, as_storage
from dsno.trajectories.begin import begin
from dsno.trajectories.exchange.about import REMEDY, About, Index, read_index
from dsno.trajectories.exchange.checked import checked
from dsno.trajectories.exchange.layout import Layout
from dsno.trajectories.exchange.prompt_files import read_prompt_files
from dsno.trajectories.exchange.state_arrays import not_finite, to_tensors
from dsno.trajectories.exchange.table import LAYOUTS
from dsno.trajectories.manifest import Manifest, compact
from dsno.trajectories.prompts import Prompts, checksum, read_prompts, write_prompts
from dsno.trajectories.shards import DTYPES, misfit, write_shard


def restore(source: StorageDir, folder: Path | StorageDir, *, tag: str | None = None) -> Manifest:
    """Write the trajectories of an export as shards that `TrajectoryStore` opens.

    Args:
        source: the export.
        folder: where the shards go: new, or with what an interrupted import left.
        tag: identifies the recipe they are for; that of the original if None.

    Returns:
        The manifest with every shard listed.

    Raises:
        InputError: if the export is not whole, a file of it holds anything but what the index says,
            or the folder holds other trajectories.
        WorkError: if the disk is too small.
    """
    about, index = read_index(source)
    layout = _layout(source, about, index)
    prompts = read_prompt_files(source, about, index.files)
    manifest = about.manifest
    wanted = dataclasses.replace(
        manifest,
        tag=manifest.tag if tag is None else tag,
        prompts_sha256="" if prompts is None else checksum(prompts),
    )
    storage = as_storage(folder)
    if storage.path is not None:
        require_space(storage.path, _stored_bytes(wanted), "The import")
    found = begin(storage, wanted)
    if prompts is not None:
        _keep(storage, found, prompts)
    todo = set(found.missing)
    done = wanted.count - sum(len(wanted.items(i)) for i in todo)
    with progress("importing", wanted.count, done=done, unit="trajectory") as advance:
        for number, listed in enumerate(index.shards):
            held = range(wanted.shard_count) if layout.is_one_file else range(number, number + 1)
            if not todo.intersection(held):
                continue
            with checked(source, listed) as local:
                for i in sorted(todo.intersection(held)):
                    items, address = wanted.items(i), source.at(listed.file)
                    tensors = _tensors(layout, about, local, items, prompts, address)
                    write_shard(storage, found, i, tensors)
                    advance(len(items))
    return compact(storage)


def _layout(source: StorageDir, about: About, index: Index) -> Layout:
    """The layout of an export whose files are named and cut as it names and cuts them."""
    layout = LAYOUTS[one_of(about.layout, LAYOUTS, "layout of the index")]
    m = about.manifest
    count = 1 if layout.is_one_file else m.shard_count
    for number, listed in enumerate(index.shards):
        items = range(m.count) if layout.is_one_file else m.items(number)
        name = layout.file(number, count)
        if number >= count or listed.file != name or _items(listed.first, listed.count) != items:
            raise InputError(
                f"The index of {source} lists {listed.file!r} with trajectories {listed.first} to "
                f"{listed.first + listed.count - 1}, which no export has there; {REMEDY}."
            )
    if len(index.shards) != count:
        raise InputError(
            f"The index of {source} lists {len(index.shards)} of {count} files; {REMEDY}."
        )
    if complaint := layout.refusal(about):
        raise InputError(f"The index of {source} says that {layout.name} holds {complaint}.")
    return layout


def _items(first: int, count: int) -> range:
    return range(first, first + count)


def _stored_bytes(manifest: Manifest) -> int:
    size = DTYPES[manifest.dtype].itemsize
    states = 1 + len(manifest.times)
    return manifest.count * math.prod(manifest.sample_shape) * states * size


def _keep(storage: StorageDir, manifest: Manifest, prompts: Prompts) -> None:
    """Write the prompts, unless an interrupted import has."""
    try:
        read_prompts(storage, manifest)
    except InputError:
        write_prompts(storage, prompts)


def _tensors(
    layout: Layout,
    about: About,
    path: Path,
    items: range,
    prompts: Prompts | None,
    address: str,
) -> Mapping[str, Tensor]:
    """What a shard is to hold of some trajectories of a file.

    Raises:
        InputError: if they are not there, or not what the index says.
    """
    try:
        size = path.stat().st_size
        if size < (needed := about.state_bytes(len(items))):
            raise InputError(f"It has {size:,} bytes, too few for states of {needed:,}.")
        arrays = layout.read(path, about, items, prompts)
        if (row := not_finite(arrays)) is not None:
            raise InputError(f"Trajectory {items[row]} holds values that are not finite.")
        tensors = to_tensors(about, arrays)
        if complaint := misfit(about.manifest, tensors, len(items)):
            raise InputError(f"It {complaint}.")
        if not all(tensors[name].isfinite().all() for name in ("noise", "states")):
            raise InputError(f"It holds values beyond {about.manifest.dtype}.")
    except InputError as error:
        raise InputError(f"{address}: {str(error).rstrip('.')}; {REMEDY}.") from None
    return tensors
