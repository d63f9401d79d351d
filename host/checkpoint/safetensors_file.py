"""Reads safetensors files (github.com/huggingface/safetensors, "Format").

u64 length of the header; the header, a JSON object of each tensor's type, shape and place; the
tensors' bytes, without gaps. The safetensors library has no bfloat16 for numpy and maps the whole
file; this reader needs neither torch nor more memory than one tensor.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from host.checkpoint.files import read_floats
from host.checkpoint.model import FloatArray
from host.errors import InputError
from host.files import opened
from host.strict_json import JsonObject, parse_object

DTYPES = {"F32": 4, "F16": 2, "BF16": 2}
"""The types whose numbers can be read, and their bytes."""

_ALL_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
_MAX_HEADER = 8 << 20
_MAX_DIMENSIONS = 8
_MAX_NUMBER = 1 << 62
_REMEDY = "Get the file again"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        path: The file.
        dtype: Its type as the header names it.
        shape: Its shape.
        offset: Where it begins in the file, bytes.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> FloatArray:
        """Returns the tensor as float32.

        Raises:
            InputError: The file cannot be read any more.
        """
        return read_floats(self.path, self.offset, self.shape, self.dtype)


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Reads a file's header and checks all of it.

    Returns:
        The tensors by name.

    Raises:
        InputError: The file cannot be read, is truncated, or its header contradicts itself.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise _damaged(path, f"its header cannot be {length} bytes long")
        data = file.read(length)
    if len(data) != length or data[:1] != b"{":
        raise _damaged(path, "it does not begin with a header")
    header = parse_object(data, f"The header of {path.name}", _REMEDY)
    return _tensors(path, header, 8 + length, size - 8 - length)


def _tensors(path: Path, header: JsonObject, start: int, length: int) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    places: list[tuple[int, int]] = []
    for name in header:
        if name == "__metadata__":
            continue
        entry = header.child(name)
        entry.only(("dtype", "shape", "data_offsets"))
        dtype = entry.text("dtype")
        if dtype not in _ALL_BITS:
            raise entry.wrong(f"its type {dtype[:20]!r} is unknown")
        shape = _numbers(entry, "shape", _MAX_DIMENSIONS)
        offsets = _numbers(entry, "data_offsets", 2)
        if len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1] <= length:
            raise entry.wrong("its data_offsets are not inside the file")
        if math.prod(shape) * _ALL_BITS[dtype] != (offsets[1] - offsets[0]) * 8:
            raise entry.wrong("its data_offsets do not fit its shape and type")
        tensors[name] = StoredTensor(path, dtype, shape, start + offsets[0])
        places.append((offsets[0], offsets[1]))
    end = 0
    for first, last in sorted(places):
        if first != end:
            raise _damaged(path, "its tensors overlap or have gaps between them")
        end = last
    if end != length:
        raise _damaged(path, f"its tensors end {length - end} bytes before the file does")
    return tensors


def _numbers(entry: JsonObject, key: str, most: int) -> tuple[int, ...]:
    numbers = []
    for value in entry.items(key):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_NUMBER:
            raise entry.wrong(f"its {key} is not made of whole numbers")
        numbers.append(value)
    if len(numbers) > most:
        raise entry.wrong(f"its {key} has {len(numbers)} numbers")
    return tuple(numbers)


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is not a whole safetensors file: {reason}", _REMEDY)
