"""The integer operations of docs/NUMERICS.md sections 1 and 2, on numpy arrays.

Integers are held in int64. The bound that keeps each within 63 bits is in the specification; a
function that takes any integer checks what its caller could break.
"""

from __future__ import annotations

from math import isqrt
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from host.reference.tables import exp2n_table, sine_table

Ints: TypeAlias = npt.NDArray[np.int64]

ZERO_EXP: Final = -1024
"""Exponent of a vector of zeros."""

MAX32: Final = 2**31 - 1
_QUARTER: Final = 1 << 30

__all__ = [
    "MAX32",
    "ZERO_EXP",
    "Ints",
    "bit_length",
    "cos",
    "exp2n",
    "isqrt",
    "norm32",
    "rsr",
    "sat32",
    "scale",
    "sin",
    "to16",
]


def rsr(v: Ints, n: int | Ints) -> Ints:
    """Rounding shift right: v / 2^n to the nearest, ties towards plus infinity.

    floor(v / 2^n + 1/2) is floor(v / 2^n) plus the highest of the bits cut off, which, unlike
    adding 2^(n-1) first, no int64 can overflow.

    Args:
        v: Any int64.
        n: Shift, at least 0, broadcast against v; 63 and more give 0.
    """
    least, most = int(np.min(n)), int(np.max(n))
    if least < 0:
        raise ValueError("rsr shifts right only")
    # One bit more than wanted is left, and then rounded off.
    longer = v >> np.minimum(np.maximum(n, 1) - 1, 61)
    rounded: Ints = (longer >> 1) + (longer & 1)
    if least == 0:
        rounded = np.where(np.equal(n, 0), v, rounded)
    if most >= 63:
        rounded = np.where(np.less(n, 63), rounded, 0)
    return rounded


def sat32(v: Ints) -> Ints:
    """Clamps to [-(2^31 - 1), 2^31 - 1]."""
    return np.clip(v, -MAX32, MAX32)


def scale(v: Ints, s: int | Ints) -> Ints:
    """Returns v * 2^s rounded by `rsr` and clamped by `sat32`, for any int64 v and any s."""
    s = np.asarray(s, dtype=np.int64)
    if np.all(s <= 0):
        return sat32(rsr(v, -s))
    # What 2^31 - 1 clamps after the shift, 2^31 clamps before it; from s = 31 on all but 0 does.
    up = np.clip(v, -(1 << 31), 1 << 31) << np.clip(s, 0, 31)
    return sat32(np.where(s > 0, up, rsr(v, np.maximum(-s, 0))))


def bit_length(v: Ints) -> Ints:
    """Returns the bit length of |v|, 0 for 0, elementwise; |v| < 2^63.

    Raises:
        OverflowError: v holds -2^63.
    """
    rest = np.abs(v)
    if np.any(rest < 0):
        raise OverflowError("-2^63 has no absolute value in 64 bits")
    length = np.zeros_like(rest)
    for step in (32, 16, 8, 4, 2, 1):
        high = rest >> step
        more = high > 0
        length += np.where(more, step, 0)
        rest = np.where(more, high, rest)
    return length + rest


def norm32(v: Ints, e: int | Ints) -> tuple[Ints, Ints]:
    """Brings vectors to BFP32: mantissas of at most 2^29 in magnitude, one exponent each.

    Args:
        v: (..., n) mantissas, |v| < 2^63.
        e: (...) exponents.

    Returns:
        (..., n) mantissas and (...) exponents, ZERO_EXP where a vector is all zeros.
    """
    return _normalise(v, e, 29)


def to16(v: Ints, e: int | Ints) -> tuple[Ints, Ints]:
    """Brings vectors to BFP16: as `norm32`, with mantissas of at most 32767 in magnitude."""
    m, exponent = _normalise(v, e, 15)
    return np.clip(m, -32767, 32767), exponent


def _normalise(v: Ints, e: int | Ints, bits: int) -> tuple[Ints, Ints]:
    low = np.min(v, axis=-1)
    if np.any(low == np.iinfo(np.int64).min):
        raise OverflowError("-2^63 has no absolute value in 64 bits")
    peak = np.maximum(np.max(v, axis=-1), -low)
    k = bit_length(peak) - bits
    column = k[..., np.newaxis]
    m = rsr(v, np.maximum(column, 0)) << np.maximum(-column, 0)
    return m, np.where(peak == 0, ZERO_EXP, e + k)


def exp2n(d: Ints) -> Ints:
    """Returns 2^(-d / 65536) as Q30, for 0 <= d < 2^32, linear between 257 points."""
    table = exp2n_table()
    n = d >> 16
    i = (d >> 8) & 255
    left = table[i]
    between = left - rsr((left - table[i + 1]) * (d & 255), 8)
    return np.where(n < 31, rsr(between, np.minimum(n, 31)), 0)


def sin(phase: Ints) -> Ints:
    """Returns the sine as Q30 of a phase, 0 <= phase < 2^32, of which 2^32 are a turn."""
    quadrant = phase >> 30
    u = phase & (_QUARTER - 1)
    magnitude = _quarter_sine(np.where(quadrant & 1, _QUARTER - u, u))
    return np.where(quadrant < 2, magnitude, -magnitude)


def cos(phase: Ints) -> Ints:
    """Returns the cosine as Q30 of a phase as in `sin`."""
    return sin((phase + _QUARTER) & (2**32 - 1))


def _quarter_sine(u: Ints) -> Ints:
    """Sine of 0 <= u <= 2^30, of which 2^30 are a quarter turn."""
    table = sine_table()
    i = np.minimum(u >> 21, 511)
    # The last point, u = 2^30, is interval 511 at r = 2^21: all of the way to SIN[512].
    left: Ints = table[i]
    return left + rsr((table[i + 1] - left) * (u - (i << 21)), 21)
