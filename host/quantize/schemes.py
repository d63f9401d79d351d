"""Float tensors to integers: pure functions behind one interface (docs/FORMAT.md, "Quantization").

All of them work through a tensor block by block, so that beside it only the integers are held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from host.package.facts import Scale

FloatArray = NDArray[np.float32]

_BLOCK = 1 << 13
"""Elements at a time: few enough for the cache, and for BLAS to stay on one thread."""
_LEAST_NORMAL = 2.0**-126


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor as integers.

    Attributes:
        values: int8 or int16, of the float tensor's shape.
        scale: What an element of 1 stands for.
        snr_db: Signal to quantization noise, dB; None where there is no noise, or no signal.
        clipped: Share of the elements that were clamped, 0 to 1.
    """

    values: NDArray[np.int8] | NDArray[np.int16]
    scale: Scale
    snr_db: float | None
    clipped: float


class Scheme(Protocol):
    """How a tensor becomes integers."""

    @property
    def name(self) -> str:
        """What quantization_scales.json calls it."""

    def quantize(self, weights: FloatArray) -> Quantized:
        """Quantizes one tensor, all of whose values are finite."""


@dataclass(frozen=True)
class Int8PerTensor:
    """Symmetric int8, one scale a tensor: the largest magnitude becomes 127."""

    name: str = "int8-per-tensor"

    def quantize(self, weights: FloatArray) -> Quantized:
        """Quantizes one tensor, all of whose values are finite."""
        scale = float(np.float32(_largest(weights) / 127))
        return _round(weights, scale if scale >= _LEAST_NORMAL else 1.0, np.int8)


@dataclass(frozen=True)
class Int16PowerOfTwo:
    """Symmetric int16 whose scale is the least power of two that keeps all within 32,767."""

    name: str = "int16-power-of-two"

    def quantize(self, weights: FloatArray) -> Quantized:
        """Quantizes one tensor, all of whose values are finite."""
        largest = _largest(weights)
        # largest = f * 2^e with 1/2 <= f < 1, so largest / 2^(e - 15) is below 2^15.
        exponent = math.frexp(largest)[1] - 15
        if round(math.ldexp(largest, -exponent)) > 32767:
            exponent += 1
        scale = math.ldexp(1.0, exponent)
        return _round(weights, scale if largest and scale >= _LEAST_NORMAL else 1.0, np.int16)


def _blocks(values: NDArray[np.generic]) -> Iterator[slice]:
    for at in range(0, values.size, _BLOCK):
        yield slice(at, at + _BLOCK)


def _largest(weights: FloatArray) -> float:
    return float(max(-weights.min(), weights.max()))


def _round(weights: FloatArray, scale: float, dtype: type[np.int8] | type[np.int16]) -> Quantized:
    most = float(np.iinfo(dtype).max)
    flat = weights.reshape(-1)
    values: NDArray[Any] = np.empty(flat.shape, dtype=dtype)
    signal = noise = 0.0
    clipped = 0
    for block in _blocks(flat):
        # In double, a quotient of two float32 is never rounded onto a tie that it is not.
        exact = flat[block].astype(np.float64)
        rounded = np.rint(exact / scale)
        clipped += int(np.count_nonzero(np.abs(rounded) > most))
        np.clip(rounded, -most, most, out=rounded)
        values[block] = rounded
        signal += float(exact @ exact)
        rounded *= scale
        exact -= rounded
        noise += float(exact @ exact)
    snr_db = 10 * math.log10(signal / noise) if signal and noise else None
    return Quantized(
        values.reshape(weights.shape), Scale.nearest(scale), snr_db, clipped / max(1, flat.size)
    )
