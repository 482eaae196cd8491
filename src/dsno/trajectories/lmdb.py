"""Import the trajectories of the paper's authors, an LMDB, into our shards.

Their record of trajectory i (key `str(i)`) is raw float32 of shape (C, N, H, W): N = 17 states of a
16-step quadratic grid (CIFAR-10) or 9 of an 8-step uniform one (ImageNet), from noise (state 0) to
data (the last one). The key `length` says how many there are; class labels lie in labels.npy.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from torch import Tensor

from dsno.diffusion.conditions import CLASS_LABELS
from dsno.diffusion.schedules import CosineSchedule, NoiseSchedule, signal_and_noise, state_scale
from dsno.diffusion.time_grids import Spacing, grid_times
from dsno.support.console import progress
from dsno.support.errors import InputError, one_of
from dsno.support.storage import StorageDir, as_storage
from dsno.trajectories.begin import begin
from dsno.trajectories.manifest import Manifest, compact
from dsno.trajectories.shards import DTYPES, write_shard

# By the number of states: the grid they lie on, and the DDIM steps that made them (arXiv
# 2211.13449, appendix).
GRIDS = {17: ("quadratic", 512), 9: ("uniform", 16)}
CHANNELS = (1, 3)
LABEL_FILE = "labels.npy"
MAX_CLASSES = 1_000_000


def import_lmdb(
    source: Path,
    folder: Path | StorageDir,
    *,
    slices: int = 4,
    spacing: str | None = None,
    schedule: NoiseSchedule = CosineSchedule(),  # noqa: B008  frozen
    dtype: str = "float16",
    shard_size: int = 4096,
    labels: Path | None = None,
    tag: str = "",
    check: Callable[[Manifest], None] = lambda manifest: None,
) -> Manifest:
    """Write the trajectories of an LMDB as shards that `TrajectoryStore` opens.

    An interrupted import goes on where it was. The noise is state 0 divided by sigma(1), rounded to
    storage precision after it was solved, not before as in our own collection.

    Args:
        source: the LMDB, a folder or its data file.
        folder: where the shards go.
        slices: output times kept, t = g(m / slices), m = slices - 1 .. 0.
        spacing: g, the grid the states lie on; None for the authors' own, by the number of states.
        schedule: of the teacher that made them.
        dtype: storage precision, float16 or float32.
        shard_size: trajectories per shard.
        labels: class labels, an .npy file; None for labels.npy in the LMDB's folder or beside it.
        tag: identifies the recipe they are for.
        check: given what would be written before anything is; what it raises ends the import.

    Returns:
        The manifest with every shard listed.

    Raises:
        InputError: if the source is not such an LMDB, a record or the labels do not fit, or the
            folder holds other trajectories.
    """
    one_of(dtype, DTYPES, "storage precision")
    if shard_size < 1:
        raise InputError(f"A shard needs at least 1 trajectory, not {shard_size}.")
    given = _read_labels(source, labels)
    with _opened(source) as records:
        count = _count(records, given)
        layout = _layout(records.get(0))
        _check_size(records, count, layout)
        stride = _stride(layout, slices)
        usual, steps = GRIDS[layout.states]
        times = grid_times(Spacing(spacing or usual, schedule), slices)
        scales = state_scale(*signal_and_noise(schedule, times), 1.0)
        wanted = Manifest(
            tag=tag,
            count=count,
            shard_size=min(shard_size, count),
            sample_shape=layout.sample_shape,
            times=tuple(times.tolist()),
            scales=tuple(scales.tolist()),
            dtype=dtype,
            seed=0,
            num_classes=None if given is None else int(given.max()) + 1,
            solver={
                "method": "ddim",
                "steps": steps,
                "spacing": "uniform",
                "nfe": steps,
                "imported": _identity(records, given),
            },
        )
        check(wanted)
        storage = as_storage(folder)
        manifest = begin(storage, wanted)
        done = count - sum(len(manifest.items(i)) for i in manifest.missing)
        first = float(schedule.sigma(torch.ones((), dtype=torch.float64)))
        with progress("importing", count, done=done, unit="trajectory") as advance:
            for index in manifest.missing:
                items = manifest.items(index)
                tensors = _read(records, items, layout, stride, DTYPES[dtype], first, scales)
                if given is not None:
                    tensors[CLASS_LABELS] = given[items.start : items.stop].clone()
                write_shard(storage, manifest, index, tensors)
                advance(len(items))
    return compact(storage)


@dataclass(frozen=True)
class _Layout:
    """A record's shape: (C, states, H, W)."""

    states: int
    sample_shape: tuple[int, int, int]

    @property
    def bytes(self) -> int:
        return 4 * self.states * math.prod(self.sample_shape)


@dataclass(frozen=True)
class _Records:
    """The records of an open LMDB, a file of `size` bytes."""

    source: Path
    transaction: Any
    size: int

    def get(self, index: int) -> memoryview:
        """The bytes of a record, valid while the LMDB is open.

        Raises:
            InputError: if it is missing.
        """
        value: memoryview | None = self.transaction.get(str(index).encode())
        if value is None:
            raise InputError(
                f"The LMDB {self.source} has no trajectory {index}; it is incomplete: fetch it "
                "again."
            )
        return value


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[_Records]:
    """Open an LMDB for reading.

    Raises:
        InputError: if it is none, or its file is shorter than it says.
    """
    data = _data_file(source)
    if not data.is_file():
        raise InputError(f"There is no LMDB at {source}; give the folder that holds data.mdb.")
    try:
        environment = lmdb.open(str(data), subdir=False, readonly=True, lock=False, readahead=False)
        with contextlib.closing(environment), environment.begin(buffers=True) as transaction:
            # Reading a page beyond the end of the file would kill the process, not raise.
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            size = data.stat().st_size
            if size < needed:
                raise InputError(
                    f"The LMDB {source} is truncated ({size:,} of {needed:,} bytes); "
                    "fetch it again."
                )
            yield _Records(source, transaction, size)
    except lmdb.Error as error:
        raise InputError(f"{source} cannot be opened as an LMDB ({error}); check it.") from None


def _count(records: _Records, labels: Tensor | None) -> int:
    """How many trajectories there are: `length`, or as many as labels if it is not said.

    Raises:
        InputError: if neither says, it is no number, or the two differ.
    """
    value = records.transaction.get(b"length")
    if value is None and labels is None:
        raise InputError(
            f"The LMDB {records.source} has no entry `length`; give a file of trajectories."
        )
    text = (
        str(len(labels))
        if value is None and labels is not None
        else bytes(value or b"").decode("ascii", "replace")
    )
    if not text.isdecimal() or not 0 < int(text) < 2**48:
        raise InputError(
            f"The entry `length` of the LMDB {records.source} is {text[:20]!r}, not a number of "
            "trajectories."
        )
    if labels is not None and len(labels) != int(text):
        raise InputError(
            f"The LMDB {records.source} has {int(text):,} trajectories, but there are "
            f"{len(labels):,} labels."
        )
    return int(text)


def _layout(record: memoryview) -> _Layout:
    """The only shape that a record of this length can have.

    It is unique: C N H H takes its value for one (C, N) alone, because no quotient of two of the
    products C N is a square.

    Raises:
        InputError: if there is none.
    """
    for channels in CHANNELS:
        for states in GRIDS:
            pixels, rest = divmod(len(record), 4 * channels * states)
            size = math.isqrt(pixels)
            if not rest and size and size**2 == pixels:
                return _Layout(states, (channels, size, size))
    raise InputError(
        f"A trajectory of {len(record):,} bytes is not {' or '.join(map(str, GRIDS))} float32 "
        f"states of square images with {' or '.join(map(str, CHANNELS))} channels."
    )


def _check_size(records: _Records, count: int, layout: _Layout) -> None:
    """Refuse a count that the file is too small for, before anything is as long as it says.

    Raises:
        InputError: if it is.
    """
    if count * layout.bytes > records.size:
        raise InputError(
            f"The LMDB {records.source} says {count:,} trajectories of {layout.bytes:,} bytes, "
            f"but holds {records.size:,}; it is damaged or incomplete: fetch it again."
        )


def _stride(layout: _Layout, slices: int) -> int:
    """Steps of the stored grid from one kept state to the next.

    Raises:
        InputError: if the grid has no such states.
    """
    steps = layout.states - 1
    if slices < 1 or steps % slices:
        raise InputError(
            f"The trajectories have {layout.states} states, so the number of slices must divide "
            f"{steps}; {slices} does not."
        )
    return steps // slices


def files_of_lmdb(source: Path) -> dict[str, Path]:
    """The files that an import of an LMDB reads, by what they are; none if there is no LMDB."""
    data, labels = _data_file(source), _label_file(source)
    if not data.is_file():
        return {}
    return {"data": data} | ({} if labels is None else {"labels": labels})


def _data_file(source: Path) -> Path:
    return source / "data.mdb" if source.is_dir() else source


def _label_file(source: Path) -> Path | None:
    found = [folder / LABEL_FILE for folder in (source, source.parent)]
    return next((path for path in found if path.is_file()), None)


def _read_labels(source: Path, labels: Path | None) -> Tensor | None:
    """The class labels, (n,) int64; None if there are none.

    Raises:
        InputError: if the file is missing or does not hold class labels.
    """
    if labels is None:
        labels = _label_file(source)
        if labels is None:
            return None
    try:
        # Mapped, so that a header that lies about the length allocates nothing; never a pickle.
        values = np.lib.format.open_memmap(labels, mode="r")
    except Exception as error:  # whatever a damaged header makes of numpy's parser
        raise InputError(f"The labels {labels} cannot be read ({error}); check them.") from None
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(f"The labels {labels} are not a list of whole numbers.")
    if not len(values) or values.min() < 0:
        raise InputError(f"The labels {labels} are empty or negative.")
    if values.max() >= MAX_CLASSES:
        raise InputError(
            f"A label in {labels} is {values.max()}, and at most {MAX_CLASSES:,} classes are "
            "supported; check them."
        )
    return torch.from_numpy(values.astype(np.int64))


def _identity(records: _Records, labels: Tensor | None) -> str:
    """A short hash of the first trajectory and the labels, to know the source again."""
    digest = hashlib.sha256(records.get(0))
    if labels is not None:
        digest.update(labels.numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(
    records: _Records,
    items: range,
    layout: _Layout,
    stride: int,
    dtype: torch.dtype,
    first_sigma: float,
    scales: Tensor,
) -> dict[str, Tensor]:
    """Noise (n, *shape) and scaled states (n, slices, *shape) of some items."""
    shape, slices = layout.sample_shape, len(scales)
    noise = torch.empty(len(items), *shape, dtype=dtype)
    states = torch.empty(len(items), slices, *shape, dtype=dtype)
    divide = torch.cat([torch.tensor([first_sigma]).double(), scales]).reshape(-1, 1, 1, 1)
    for row, item in enumerate(items):
        record = records.get(item)
        if len(record) != layout.bytes:
            raise InputError(
                f"Trajectory {item} in {records.source} has {len(record):,} bytes, not "
                f"{layout.bytes:,} like the first."
            )
        whole = np.frombuffer(record, dtype="<f4").reshape(shape[0], layout.states, *shape[1:])
        kept = torch.from_numpy(whole[:, ::stride].swapaxes(0, 1).astype(np.float64)) / divide
        kept = kept.to(dtype)
        if not kept.isfinite().all():
            raise InputError(
                f"Trajectory {item} in {records.source} holds values that are not finite in "
                f"{str(dtype).removeprefix('torch.')}."
            )
        noise[row], states[row] = kept[0], kept[1:]
    return {"noise": noise, "states": states}
