"""The LMDB of ODE trajectories that CausVid and Self-Forcing train on.

`latents_i_data` is trajectory i as raw float16, from noise to data, of shape (M + 1, frames, C, H,
W), `prompts_i_data` its prompt, `latents_shape` and `prompts_shape` their shapes with the number of
trajectories first, in words. An image is one frame. What conditioned a trajectory beside its prompt
lies under names of the same form, which their reader does not look at.

Source: `ODERegressionLMDBDataset`, utils/dataset.py of guandeh17/Self-Forcing, 33593df, and
causvid/data.py of tianweiy/CausVid, ca21150.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import lmdb
import numpy as np

from dsno.diffusion.conditions import GUIDANCE_SCALE, PROMPT
from dsno.support.errors import InputError
from dsno.trajectories.exchange.about import About
from dsno.trajectories.exchange.layout import Layout, Part
from dsno.trajectories.exchange.state_arrays import Arrays
from dsno.trajectories.prompts import Prompts

FILE = "data.mdb"
PAGE = 4096
"""Bytes of a page: a record takes whole ones."""


class OdeLmdb(Layout):
    """One LMDB for all trajectories."""

    name: ClassVar[str] = "lmdb"
    is_one_file: ClassVar[bool] = True
    dtypes: ClassVar[tuple[str, ...]] = ("float16",)

    def refusal(self, about: About) -> str:
        """Why it cannot express such trajectories."""
        m = about.manifest
        if m.prompts is None:
            return "trajectories without text, as its readers take a prompt for each"
        if len(m.sample_shape) != 3:
            return f"samples of shape {m.sample_shape}, as its readers take channels x H x W"
        return ""

    def file(self, index: int, count: int) -> str:
        """Name of the one file."""
        return FILE

    def size(self, about: About, count: int, prompts: Prompts | None) -> int:
        """Bytes that a file of so many trajectories takes at most."""
        text = 0 if prompts is None else max(len(text.encode()) for text in prompts.texts)
        record = -(-(about.state_bytes(1) + 16) // PAGE) * PAGE
        # Branches take less than another tenth; short records lie many on a page, half full.
        return int(count * (record + 2 * (text + 512)) * 1.1) + 2**20

    def write(
        self, path: Path, about: About, parts: Iterable[Part], prompts: Prompts | None
    ) -> None:
        """Write an LMDB, a transaction a shard."""
        assert prompts is not None
        m = about.manifest
        size = self.size(about, m.count, prompts)
        with (
            contextlib.closing(
                lmdb.open(str(path), subdir=False, lock=False, map_size=2 * size, meminit=False)
            ) as environment,
        ):
            for part in parts:
                with environment.begin(write=True) as put:
                    states = _records(part.arrays)
                    for row, item in enumerate(part.items):
                        text = prompts.texts[part.arrays[PROMPT][row]]
                        put.put(_key("latents", item), states[row].tobytes())
                        put.put(_key("prompts", item), text.encode())
                        for name in (PROMPT, GUIDANCE_SCALE):
                            if name in part.arrays:
                                put.put(_key(name, item), part.arrays[name][row].tobytes())
            with environment.begin(write=True) as put:
                shape = (m.count, len(m.times) + 1, 1, *m.sample_shape)
                put.put(b"latents_shape", " ".join(map(str, shape)).encode())
                put.put(b"prompts_shape", str(m.count).encode())

    def read(self, path: Path, about: About, items: range, prompts: Prompts | None) -> Arrays:
        """The arrays of some trajectories."""
        assert prompts is not None
        m, specs = about.manifest, about.arrays(len(items))
        shape = (len(m.times) + 1, *m.sample_shape)
        states = np.empty((len(items), *shape), np.float16)
        conditions = {name: specs[name] for name in (PROMPT, GUIDANCE_SCALE) if name in specs}
        found = {name: np.empty(shape, dtype) for name, (dtype, shape) in conditions.items()}
        with _opened(path) as get:
            for row, item in enumerate(items):
                states[row] = _array(get, "latents", item, np.dtype(np.float16), shape)
                for name, (dtype, _) in conditions.items():
                    found[name][row] = _array(get, name, item, dtype, ())
                index = int(found[PROMPT][row])
                if not 0 <= index < len(prompts.texts):
                    raise InputError(f"Trajectory {item} has prompt {index} of {m.prompts}.")
                if bytes(get(_key("prompts", item)) or b"") != prompts.texts[index].encode():
                    raise InputError(f"The prompt of trajectory {item} is not prompt {index}.")
        before = {"noise": states[:, 0]} if len(m.times) == 1 else {"path": states[:, :-1]}
        return {"latent": states[:, -1], **before, **found}


def _key(name: str, item: int) -> bytes:
    return f"{name}_{item}_data".encode()


def _records(arrays: Arrays) -> np.ndarray[Any, Any]:
    """States (n, M + 1, 1, *shape) from noise to data."""
    before = arrays["noise"][:, None] if "noise" in arrays else arrays["path"]
    return np.concatenate([before, arrays["latent"][:, None]], 1)[:, :, None]


def _array(
    get: Any, name: str, item: int, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    data = get(_key(name, item))
    size = int(np.prod(shape)) * dtype.itemsize
    if data is None or len(data) != size:
        held = "nothing" if data is None else f"{len(data):,} bytes"
        raise InputError(f"Entry {_key(name, item).decode()} has {held}, expected {size:,} bytes.")
    return np.frombuffer(data, dtype).reshape(shape)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """What gets an entry's bytes, valid in the block.

    Raises:
        InputError: if it is no LMDB, or its file is shorter than it says.
    """
    try:
        environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
        with contextlib.closing(environment), environment.begin(buffers=True) as transaction:
            # Reading a page beyond the end of the file would kill the process, not raise.
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if path.stat().st_size < needed:
                raise InputError(f"It is truncated, and has {needed:,} bytes when whole.")
            yield transaction.get
    except lmdb.Error as error:
        raise InputError(f"It is not an LMDB ({error}).") from None
