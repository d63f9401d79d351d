"""Reads arrays out of files piece by piece, so that memory holds no more than the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.checkpoint.model import FloatArray
from host.errors import InputError
from host.files import opened

_BLOCK = 1 << 20


def read_floats(path: Path, offset: int, shape: tuple[int, ...], dtype: str) -> FloatArray:
    """Reads numbers that lie one after another in a file.

    Args:
        path: The file.
        offset: Where they begin, bytes.
        shape: Of the result.
        dtype: ``F32``, ``F16`` or ``BF16``, little-endian.

    Returns:
        float32 of the shape.

    Raises:
        InputError: The file cannot be read or ends too early.
    """
    try:
        result = np.empty(shape, dtype=np.float32)
    except MemoryError:
        raise InputError(
            f"{path} has a tensor of {shape} numbers, more than the memory holds",
            "Use a machine with more memory, or a smaller model",
        ) from None
    flat = result.reshape(-1)
    itemsize = 4 if dtype == "F32" else 2
    with opened(path, buffering=0) as file:
        file.seek(offset)
        for at in range(0, flat.size, _BLOCK):
            part = flat[at : at + _BLOCK]
            raw = file.read(part.size * itemsize)
            if len(raw) != part.size * itemsize:
                raise InputError(f"{path} ends too early", "Get the file again")
            part[:] = _decode(raw, dtype)
    return result


def _decode(raw: bytes, dtype: str) -> NDArray[np.float32] | NDArray[np.float16]:
    if dtype == "F32":
        return np.frombuffer(raw, "<f4")
    if dtype == "F16":
        return np.frombuffer(raw, "<f2")
    # bfloat16 is the upper half of a float32.
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
