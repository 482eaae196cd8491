"""Random access to a finished folder of trajectories, near or far."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from dsno.diffusion.conditions import Condition, Conditions
from dsno.support import distributed
from dsno.support.errors import InputError, WorkError
from dsno.support.files import locked, replacing, sha256
from dsno.support.storage import StorageDir, as_storage
from dsno.trajectories.manifest import Shard, load_manifest, shard_name
from dsno.trajectories.prompts import read_prompts
from dsno.trajectories.shards import damaged_shards, misfit

MAX_OPEN = 4096
"""Shards mapped into memory at a time."""


class TrajectoryStore:
    """Random access to a finished folder of trajectories.

    Shards are memory-mapped, so only the trajectories asked for are read. Shards that are not on
    this machine are copied to `cache` when they are first needed.

    Args:
        folder: with a manifest.
        tag: the recipe and teacher expected; None for any but guided ones of an earlier version.
        times: the subset of stored times wanted, in order; all if None.
        cache: for copies of shards that lie elsewhere.
        cache_bytes: how large the copies may become together; the least recently used go first.

    Raises:
        InputError: if the folder is unfinished, of another recipe, guided in the wrong order,
            lacks a time, or a shard is missing, truncated or edited. Copied shards are checked when
            they are copied.
    """

    def __init__(
        self,
        folder: Path | StorageDir,
        *,
        tag: str | None = None,
        times: Sequence[float] | None = None,
        cache: Path | None = None,
        cache_bytes: float = float("inf"),
    ) -> None:
        self.storage = storage = as_storage(folder)
        self.manifest = manifest = distributed.on_main(lambda: load_manifest(storage))
        if tag is not None and manifest.tag != tag:
            raise InputError(
                f"The trajectories in {storage} are of another recipe; run `dsno collect` again."
            )
        if tag is None and manifest.may_be_clipped_first:
            raise InputError(
                f"The trajectories in {storage} are guided and of an earlier version, which is "
                "wrong for a teacher that clips its samples: it clipped before guidance, not "
                f"after; run `dsno collect` again, or give tag={manifest.tag!r} if the teacher "
                "does not clip."
            )
        if manifest.missing:
            raise InputError(
                f"{len(manifest.missing)} of {manifest.shard_count} shards in {storage} are not "
                "made yet; run `dsno collect` again to go on."
            )
        if storage.path is None:
            self._cache: _Cache | None = _Cache(
                storage, cache or _usual_cache(storage), cache_bytes
            )
        else:
            self._cache = None
            # Every byte is read here, so one process of many does it.
            bad = distributed.on_main(lambda: damaged_shards(storage, manifest))
            for index, complaint in bad.items():
                raise InputError(_again(storage.at(shard_name(index)), complaint))
        self.prompts = read_prompts(storage, manifest)
        embeddings = None if self.prompts is None else self.prompts.embeddings
        self._conditions = Conditions(prompts=embeddings)
        self.slots = [_slot(manifest.times, t, storage) for t in (times or manifest.times)]
        self._shards = {s.first // manifest.shard_size: s for s in manifest.shards}
        self._open: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        self._tensors(0)  # a shard of another shape is noticed now

    def __len__(self) -> int:
        return self.manifest.count

    def rows(self, items: Tensor) -> tuple[Tensor, Tensor, Condition | None]:
        """Noise (n, *shape), scaled states (n, M, *shape), both float32, and the condition.

        Raises:
            InputError: if a shard is not what the manifest says.
            WorkError: if a shard cannot be reached.
        """
        size = self.manifest.shard_size
        shard = items // size
        found: dict[str, Tensor] = {}
        for index in sorted(set(shard.tolist())):
            where = (shard == index).nonzero()[:, 0]
            for name, tensor in self._tensors(index).items():
                picked = tensor[items[where] - index * size]
                if name == "states":
                    picked = picked[:, self.slots]
                if name not in found:
                    found[name] = picked.new_empty(len(items), *picked.shape[1:])
                found[name][where] = picked
        noise, states = found.pop("noise").float(), found.pop("states").float()
        return noise, states, self._conditions.expand(found)

    def _tensors(self, index: int) -> dict[str, Tensor]:
        """A shard's tensors, mapped into memory; for one thread at a time."""
        with self._lock:
            return self._opened(index)

    def _opened(self, index: int) -> dict[str, Tensor]:
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        shard = self._shards[index]
        address = self.storage.at(shard.file)
        if self._cache is not None:
            path = self._cache.path(shard)
        else:
            assert self.storage.path is not None
            path = self.storage.path / shard.file
        try:
            tensors = load_file(path)
        except Exception as error:  # whatever a foreign file makes the library raise
            raise InputError(_again(address, f"cannot be read ({error})")) from None
        self._check(address, tensors, shard.count)
        self._open[index] = tensors
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        return tensors

    def _check(self, address: str, tensors: Mapping[str, Tensor], count: int) -> None:
        if complaint := misfit(self.manifest, tensors, count):
            raise InputError(_again(address, complaint))


def _again(address: str, complaint: str) -> str:
    return f"{address} {complaint}; run `dsno collect` again to make it."


class _Cache:
    """Copies of another storage's shards, in a folder."""

    def __init__(self, storage: StorageDir, folder: Path, limit: float) -> None:
        self.storage, self.folder, self.limit = storage, folder, limit
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, shard: Shard) -> Path:
        """A shard's copy, made if need be; named by its content, so never an outdated one."""
        target = self.folder / f"{shard.sha256[:32]}.safetensors"
        if target.is_file() and target.stat().st_size == shard.bytes:
            target.touch()  # used last
            return target
        with locked(target.with_suffix(".lock")):  # one of a machine's processes copies it for all
            if not target.is_file():
                self._make_room(shard.bytes)
                self._copy(shard, target)
        return target

    def _copy(self, shard: Shard, target: Path) -> None:
        with replacing(target) as temporary:
            self.storage.copy_to(shard.file, temporary)
            if not temporary.is_file():
                raise InputError(_again(self.storage.at(shard.file), "is missing"))
            if sha256(temporary) != shard.sha256:
                raise WorkError(
                    f"{self.storage.at(shard.file)} does not match its checksum; run `dsno "
                    f"trajectories verify {self.storage}` to find every such shard."
                )

    def _make_room(self, size: int) -> None:
        copies = [(p.stat().st_mtime_ns, p) for p in self.folder.glob("*.safetensors")]
        used = sum(p.stat().st_size for _, p in copies)
        for _, oldest in sorted(copies):
            if used + size <= self.limit:
                return
            used -= oldest.stat().st_size
            oldest.unlink(missing_ok=True)  # whoever has it open keeps it


def _usual_cache(storage: StorageDir) -> Path:
    name = hashlib.sha256(str(storage).encode()).hexdigest()[:16]
    return Path.home() / ".cache" / "dsno" / name


def _slot(stored: Sequence[float], t: float, storage: StorageDir) -> int:
    for i, time in enumerate(stored):
        if abs(time - t) < 1e-9:
            return i
    raise InputError(
        f"The trajectories in {storage} have no state at t = {t:g}, only at "
        f"{', '.join(f'{s:g}' for s in stored)}; let `student.slices` divide `collect.slices`."
    )
