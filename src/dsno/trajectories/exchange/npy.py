"""Arrays in numpy's format, read only if they are what is expected, and never a pickle."""

from __future__ import annotations

import io
import math
from typing import IO, Any

import numpy as np

from dsno.support.errors import InputError

HEADER = 128
"""Bytes of the header before an array of few dimensions."""


def npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """An array as an .npy file has it."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
    return file.getvalue()


def read_npy(
    file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], name: str, most: int
) -> np.ndarray[Any, Any]:
    """An array of known type and shape; nothing is allocated for a header that says another.

    Args:
        file: at the beginning of the array.
        dtype: its type.
        shape: its shape.
        name: what to call it, for the error.
        most: bytes that the file has, at most.

    Raises:
        InputError: if the file holds anything else, or less than its header says.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(file)
        else:
            header = np.lib.format.read_array_header_2_0(file)
    except Exception as error:  # whatever a damaged header makes of numpy's parser
        raise InputError(f"{name} is not an .npy array ({error}).") from None
    found, is_fortran, stored = header
    if stored.hasobject:
        raise InputError(f"{name} holds pickled Python objects, which are never loaded.")
    if (found, stored) != (shape, dtype) or (is_fortran and len(shape) > 1):
        raise InputError(f"{name} is {stored} of shape {found}, expected {dtype} of shape {shape}.")
    size = math.prod(shape) * dtype.itemsize
    data = file.read(size) if size <= most else b""
    if len(data) != size:
        raise InputError(f"{name} is shorter than the {size:,} bytes of its array.")
    return np.frombuffer(data, dtype).reshape(shape)
