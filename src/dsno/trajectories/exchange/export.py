"""Write a folder of trajectories in a layout that others read.

One shard is in memory at a time. A file is written under a temporary name, read back, compared with
what it was made from bit for bit, and renamed; the index with all checksums is written last. An
interrupted export goes on: what is there already is read and compared too, and kept if it is right.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import load_file
from torch import Tensor

from dsno.diffusion.schedules import NoiseSchedule
from dsno.support.console import Advance, progress, say
from dsno.support.errors import InputError, WorkError, one_of
from dsno.support.files import free_bytes, require_space, sha256
from dsno.support.storage import StorageDir
from dsno.trajectories.exchange.about import (
    DTYPES,
    INDEX,
    About,
    Dtype,
    File,
    Index,
    fastgen_times,
    is_export,
    narrowest,
    read_index,
    write_index,
)
from dsno.trajectories.exchange.layout import Layout, Part
from dsno.trajectories.exchange.prompt_files import EMBEDDED, write_prompt_files
from dsno.trajectories.exchange.state_arrays import differing, to_arrays, to_tensors
from dsno.trajectories.exchange.table import LAYOUTS
from dsno.trajectories.manifest import Manifest, Shard, load_manifest
from dsno.trajectories.prompts import PROMPTS, Prompts, read_prompts
from dsno.trajectories.shards import misfit


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: where.
        layout: its name.
        trajectories: how many.
        states: of each, the noise included.
        files: of trajectories.
        bytes: of these.
        dtype: of the states.
        is_exact: whether an import gives back the original's bits.
    """

    folder: str
    layout: str
    trajectories: int
    states: int
    files: int
    bytes: int
    dtype: str
    is_exact: bool


def export_trajectories(
    storage: StorageDir,
    out: StorageDir,
    layout: str,
    *,
    schedule: NoiseSchedule,
    slices: int | None = None,
    dtype: str | None = None,
) -> Exported:
    """Write the trajectories of a folder in a layout of `table`.

    Args:
        storage: the folder.
        out: where the export goes: new, empty, or with what an interrupted one left.
        layout: its name.
        schedule: the noise schedule they were solved with.
        slices: states a trajectory, beside the noise, at the times that a collection of so many
            has; all if None.
        dtype: of the states, one of `about.DTYPES`; the narrowest that an import gets the stored
            bits back from, as far as the layout's readers take it, if None.

    Raises:
        InputError: if the folder is unfinished or damaged, the layout cannot hold such
            trajectories, or `out` holds something else.
        WorkError: if the disk is too small, or a file was not written as it should be.
    """
    chosen = LAYOUTS[one_of(layout, LAYOUTS, "layout")]
    manifest = _finished(storage)
    prompts = read_prompts(storage, manifest)
    if prompts is not None and not prompts.embeddings.isfinite().all():
        raise InputError(
            f"The embeddings of the prompts in {storage} hold values that are not finite."
        )
    kept = _kept(manifest, slices, storage)
    about = _about(chosen, manifest, kept, schedule, dtype, prompts)
    if complaint := chosen.refusal(about):
        raise InputError(f"The layout {layout!r} cannot hold {complaint}; choose another (--to).")
    export = _Export(storage, out, chosen, about, manifest, kept, prompts)
    export.begin()
    shards = export.write_shards()
    return export.finish(shards)


def _finished(storage: StorageDir) -> Manifest:
    """The manifest of a folder that can be exported."""
    manifest = load_manifest(storage)
    if manifest.missing:
        raise InputError(
            f"{len(manifest.missing)} of {manifest.shard_count} shards in {storage} are not made "
            "yet; run `dsno collect` again to go on, then export."
        )
    if manifest.may_be_clipped_first:
        raise InputError(
            f"The trajectories in {storage} are guided and of an earlier version, which is wrong "
            "for a teacher that clips its samples; run `dsno collect` again, then export."
        )
    if manifest.times[-1] != 0:
        raise InputError(f"The trajectories in {storage} have no state at t = 0 to export.")
    return manifest


def _kept(manifest: Manifest, slices: int | None, storage: StorageDir) -> range:
    """Which of the stored states are exported."""
    stored = len(manifest.times)
    slices = stored if slices is None else slices
    if slices < 1 or stored % slices:
        raise InputError(
            f"The trajectories in {storage} have {stored} states, so the number of slices must "
            f"divide {stored}; {slices} does not."
        )
    stride = stored // slices
    return range(stride - 1, stored, stride)


def _about(
    layout: Layout,
    manifest: Manifest,
    kept: range,
    schedule: NoiseSchedule,
    dtype: str | None,
    prompts: Prompts | None,
) -> About:
    one = torch.ones((), dtype=torch.float64)
    noise_scale = float(schedule.sigma(one))
    times, scales = ([values[i] for i in kept] for values in (manifest.times, manifest.scales))
    exact = narrowest(manifest.dtype, [noise_scale, *scales])
    wanted = dtype or (exact if exact in layout.dtypes else layout.dtypes[-1])
    one_of(wanted, get_args(Dtype), "type of the states")
    if wanted not in layout.dtypes:
        raise InputError(
            f"Readers of the layout {layout.name!r} take {' or '.join(layout.dtypes)}, not "
            f"{wanted}; give another --dtype or none."
        )
    is_exact = DTYPES.index(wanted) >= DTYPES.index(exact)
    is_whole = len(kept) == len(manifest.times)
    return About(
        layout=layout.name,
        manifest=dataclasses.replace(
            manifest,
            tag=manifest.tag if is_exact and is_whole else "",  # else no recipe's any more
            times=tuple(times),
            scales=tuple(scales),
            shards=(),
        ),
        dtype=wanted,  # type: ignore[arg-type]
        is_exact=is_exact,
        noise_scale=noise_scale,
        schedule=json.loads(json.dumps(schedule.to_config())),
        path_timesteps=fastgen_times(schedule, [1.0, *times[:-1]]),
        embedding=None
        if prompts is None
        else (prompts.embeddings.shape[1], prompts.embeddings.shape[2]),
    )


@dataclass(frozen=True)
class _Export:
    """An export under way."""

    storage: StorageDir
    out: StorageDir
    layout: Layout
    about: About
    manifest: Manifest
    kept: range
    prompts: Prompts | None

    @functools.cached_property
    def files(self) -> dict[str, list[Shard]]:
        """The files of trajectories, and which shards go into each."""
        shards = list(self.manifest.shards)
        if self.layout.is_one_file:
            return {self.layout.file(0, 1): shards}
        return {self.layout.file(i, len(shards)): [shard] for i, shard in enumerate(shards)}

    def begin(self) -> None:
        """Refuse a folder with anything else, and a disk that is too small."""
        if self.out.path is not None and self.out.path.is_file():
            raise InputError(f"{self.out} is a file; give a folder to --out.")
        extras = self.layout.extras(self.about, ())
        ours = {INDEX, PROMPTS, EMBEDDED, *extras, *self.files}
        names = self.out.names()
        other = [n for n in names if n not in ours and not n.endswith(".tmp")]
        if other:
            raise InputError(
                f"{self.out} holds {other[0]!r}, which is not of this export; give another folder."
            )
        if is_export(self.out) and read_index(self.out)[0] != self.about:
            raise InputError(f"{self.out} holds another export; give another folder or delete it.")
        absent = [shards for name, shards in self.files.items() if name not in names]
        sizes = (
            self.layout.size(self.about, sum(s.count for s in shards), self.prompts)
            for shards in absent
        )
        needed = sum(sizes) + (0 if self.prompts is None else self.prompts.embeddings.nbytes)
        room = ""
        if self.out.path is not None:
            require_space(self.out.path, needed, "The export")
            room = f"; {free_bytes(self.out.path) / 1e6:,.0f} MB are free"
        many = "one file" if len(self.files) == 1 else f"{len(self.files):,} files"
        say(
            f"export: {self.about.manifest.count:,} trajectories in {many} of {self.layout.name}, "
            f"at most {needed / 1e6:,.1f} MB, to {self.out}{room}."
        )
        self.out.delete(INDEX)  # written last

    def write_shards(self) -> tuple[Shard, ...]:
        """Write every file that is not there yet, or not right; list them all."""
        done = []
        with progress("exporting", self.about.manifest.count, unit="trajectory") as advance:
            for name, shards in self.files.items():
                count = sum(shard.count for shard in shards)
                if self._is_right(name, shards):
                    advance(count)
                else:
                    self._write(name, shards, advance)
                with self.out.reading(name) as local:
                    size, checksum = local.stat().st_size, sha256(local)
                done.append(Shard(name, shards[0].first, count, size, checksum))
        return tuple(done)

    def _is_right(self, name: str, shards: Sequence[Shard]) -> bool:
        """Whether an earlier export wrote a file as this one would."""
        if self.out.size(name) is None:
            return False
        with self.out.reading(name) as local, contextlib.suppress(InputError):
            return not any(self._difference(local, shard) for shard in shards)
        return False

    def _write(self, name: str, shards: Sequence[Shard], advance: Advance) -> None:
        """Write a file and read it back."""

        def parts() -> Iterator[Part]:
            for shard in shards:
                yield self._part(shard, self._stored(shard))
                advance(shard.count)

        with self.out.writing(name) as temporary:
            self.layout.write(temporary, self.about, parts(), self.prompts)
            for shard in shards:
                try:
                    difference = self._difference(temporary, shard)
                except InputError as error:
                    difference = str(error)
                if difference:
                    raise WorkError(
                        f"{self.out.at(name)} was not written as it should be ({difference}); "
                        "check the disk and run again."
                    )

    def _difference(self, path: Path, shard: Shard) -> str:
        """What in a file is not as it is stored; empty if all is.

        Raises:
            InputError: if the file cannot be read.
        """
        items = range(shard.first, shard.first + shard.count)
        found = self.layout.read(path, self.about, items, self.prompts)
        stored = self._stored(shard)
        differs = differing(found, self._part(shard, stored).arrays)
        if not differs and self.about.is_exact:
            given_back = to_tensors(self.about, found)
            differs = differing(
                {name: tensor.numpy() for name, tensor in given_back.items()},
                {name: tensor.numpy() for name, tensor in stored.items()},
            )
        return differs

    def _part(self, shard: Shard, stored: Mapping[str, Tensor]) -> Part:
        items = range(shard.first, shard.first + shard.count)
        return Part(items, to_arrays(self.about, stored, items, self.storage.at(shard.file)))

    def _stored(self, shard: Shard) -> dict[str, Tensor]:
        """What a shard stores of the states that are exported.

        Raises:
            InputError: if it is missing, truncated or edited.
        """
        address = self.storage.at(shard.file)
        with self.storage.reading(shard.file) as local:
            complaint = "" if local.is_file() else "is missing"
            if not complaint and sha256(local) != shard.sha256:
                complaint = "does not match its checksum"
            tensors = {} if complaint else load_file(local)
        complaint = complaint or misfit(self.manifest, tensors, shard.count)
        if complaint:
            raise InputError(
                f"{address} {complaint}; `dsno trajectories verify {self.storage}` finds every "
                "such shard."
            )
        return {**tensors, "states": tensors["states"][:, list(self.kept)]}

    def finish(self, shards: tuple[Shard, ...]) -> Exported:
        """Write the small files, then the index."""
        names = []
        if self.prompts is not None:
            write_prompt_files(self.out, self.prompts)
            names += [PROMPTS, EMBEDDED]
        for name, text in self.layout.extras(self.about, shards).items():
            with self.out.writing(name) as temporary:
                temporary.write_text(text, encoding="utf-8")
            names.append(name)
        files = []
        for name in names:
            with self.out.reading(name) as local:
                files.append(File(name, local.stat().st_size, sha256(local)))
        write_index(self.out, self.about, Index(shards, tuple(files)))
        return Exported(
            folder=str(self.out),
            layout=self.layout.name,
            trajectories=self.about.manifest.count,
            states=1 + len(self.kept),
            files=len(shards),
            bytes=sum(shard.bytes for shard in shards),
            dtype=self.about.dtype,
            is_exact=self.about.is_exact,
        )
