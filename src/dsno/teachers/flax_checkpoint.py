"""Flax checkpoints without flax: the arrays of a msgpack file, read strictly.

A training state is a msgpack map; its entry `ema_params` is a tree of maps with arrays as leaves.
Only maps, names and plain arrays are accepted there, and every length is checked against the bytes
that are there, so a damaged or lying file costs no more memory than its size.

How flax writes arrays: msgpack extension 1 holds a packed (shape, dtype name, row-major bytes); an
array beyond 1 GiB is a map with `__msgpack_chunked_array__`, its `shape` and its `chunks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import torch
from torch import Tensor

from dsno.support.errors import InputError
from dsno.support.files import require_regular

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
}
PARAMETERS = "ema_params"
CHUNKED = "__msgpack_chunked_array__"
# Far above any real checkpoint; what they keep out is a file that costs more memory than its size.
MAX_ENTRIES, MAX_DEPTH, MAX_DIMS, MAX_NAME = 20_000, 8, 8, 256


def read_flax(path: Path) -> dict[str, Tensor]:
    """The arrays of a flax checkpoint's `ema_params`, by dotted name; the rest is skipped.

    Raises:
        InputError: if the file is missing, damaged, truncated, or holds anything but arrays there.
    """
    reader = _Reader(path)
    tree: Any = None
    try:
        require_regular(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            unpacker = msgpack.Unpacker(
                file,
                ext_hook=reader.extension,
                object_pairs_hook=reader.map,
                max_buffer_size=size,
                max_ext_len=size,
                max_map_len=MAX_ENTRIES,
                max_str_len=MAX_NAME,
                max_array_len=0,
                max_bin_len=0,
            )
            for _ in range(unpacker.read_map_header()):
                if unpacker.unpack() != PARAMETERS:
                    unpacker.skip()
                elif tree is None:
                    tree = unpacker.unpack()
                else:
                    raise reader.error(f"{PARAMETERS!r} occurs twice")
            if unpacker.tell() != size:
                raise reader.error(f"{size - unpacker.tell()} bytes follow its end")
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"The checkpoint {path} cannot be read ({error.strerror or error}); check its path."
        ) from None
    except msgpack.OutOfData:
        raise reader.error("it ends too early") from None
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise reader.error(str(error) or "it is not msgpack") from None
    if not isinstance(tree, dict):
        raise reader.error(f"it has no map {PARAMETERS!r}")
    return _flatten(tree, reader)


class _Reader:
    """The strict decoder of one file: what it does with maps and extensions, and its errors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = 0

    def error(self, what: str) -> InputError:
        return InputError(
            f"The checkpoint {self.path} is not a progressive-distillation checkpoint or is damaged"
            f" ({what.rstrip('.')}); fetch it again."
        )

    def map(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        """A map with text keys, each once."""
        self.entries += len(pairs)
        if self.entries > MAX_ENTRIES:
            raise self.error(f"it has more than {MAX_ENTRIES:,} entries")
        tree = dict(pairs)
        if len(tree) != len(pairs):
            raise self.error("a name occurs twice")
        if not all(isinstance(key, str) for key in tree):
            raise self.error("a name is not text")
        return self._whole(tree) if CHUNKED in tree else tree

    def extension(self, code: int, data: bytes) -> Tensor:
        """An array: a packed (shape, dtype name, bytes)."""
        if code != 1:
            raise self.error(f"its extension type {code} is not an array")
        packed = msgpack.unpackb(data, raw=True, max_array_len=MAX_DIMS, max_map_len=0)
        if not isinstance(packed, list) or len(packed) != 3:
            raise self.error("an array is not (shape, type, bytes)")
        shape, name, content = packed
        dtype = DTYPES.get(name.decode("ascii", "replace")) if isinstance(name, bytes) else None
        if dtype is None:
            raise self.error(f"arrays of type {_shown(name)} are not read")
        if not isinstance(content, bytes):
            raise self.error("an array's content is not bytes")
        count = self._count(shape)
        if count * dtype.itemsize != len(content):
            raise self.error(f"an array of shape {shape} has {len(content)} bytes")
        return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)

    def _count(self, shape: Any) -> int:
        """Entries of an array of that shape."""
        fits = isinstance(shape, list) and len(shape) <= MAX_DIMS
        if not fits or not all(type(n) is int and n > 0 for n in shape):
            raise self.error(f"{_shown(shape)} is not the shape of an array")
        return math.prod(shape)

    def _whole(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """A chunked array, put together; under one name, as a map must return a map."""
        if set(tree) != {CHUNKED, "shape", "chunks"}:
            raise self.error("a chunked array lacks its shape or chunks")
        shape, chunks = self._numbered(tree["shape"]), self._numbered(tree["chunks"])
        count = self._count(shape)
        if not chunks or not all(isinstance(c, Tensor) and c.ndim == 1 for c in chunks):
            raise self.error("a chunk of a chunked array is not a flat array")
        dtypes = {c.dtype for c in chunks}
        if len(dtypes) > 1 or sum(c.numel() for c in chunks) != count:
            raise self.error(f"the chunks of an array of shape {shape} do not make it up")
        return {CHUNKED: torch.cat(chunks).reshape(shape)}

    def _numbered(self, tree: Any) -> list[Any]:
        """The entries "0", "1", ... of a map."""
        if not isinstance(tree, dict) or set(tree) != {str(i) for i in range(len(tree))}:
            raise self.error("a chunked array's chunks are not numbered from 0")
        return [tree[str(i)] for i in range(len(tree))]


def _shown(value: Any) -> str:
    """A value of a damaged file, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."


def _flatten(tree: Mapping[str, Any], reader: _Reader) -> dict[str, Tensor]:
    """A tree of arrays as dotted names; names of modules have dots of their own."""
    flat: dict[str, Tensor] = {}
    waiting: list[tuple[str, int, Any]] = [(name, 1, value) for name, value in tree.items()]
    while waiting:
        name, depth, value = waiting.pop()
        if isinstance(value, dict) and CHUNKED in value:
            value = value[CHUNKED]
        if isinstance(value, dict):
            if depth == MAX_DEPTH:
                raise reader.error(f"it is nested more than {MAX_DEPTH} maps deep")
            waiting += [(f"{name}.{key}", depth + 1, inner) for key, inner in value.items()]
        elif not isinstance(value, Tensor):
            raise reader.error(f"{_shown(name)} is not an array")
        elif name in flat:
            raise reader.error(f"{_shown(name)} occurs twice")
        else:
            flat[name] = value
    return flat
