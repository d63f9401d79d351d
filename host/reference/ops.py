"""The operations of docs/NUMERICS.md section 3, for several tokens at once.

A block of B vectors of n elements is one `Block`: (B, n) mantissas in int64 and (B,) exponents.
Each row has its own exponent, so that no token's result depends on the others in its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from host.reference.fixed import Ints, bit_length, cos, exp2n, isqrt, norm32, rsr, scale, sin, to16
from host.reference.tables import LOG2E_E, LOG2E_M

Weights: TypeAlias = npt.NDArray[np.int8]

_WEIGHTS_AT_ONCE: Final = 1 << 20
_SCORES_AT_ONCE: Final = 1 << 19


@dataclass(frozen=True)
class Block:
    """Vectors in block floating point: the value of an element is ``m[b, i] * 2^e[b]``."""

    m: Ints
    e: Ints

    def __post_init__(self) -> None:
        if self.m.ndim != 2 or self.e.shape != self.m.shape[:1]:
            raise ValueError(f"A block of {self.m.shape} with exponents {self.e.shape}")

    def norm32(self) -> Block:
        """Returns the block as BFP32."""
        return Block(*norm32(self.m, self.e))

    def to16(self) -> Block:
        """Returns the block as BFP16."""
        return Block(*to16(self.m, self.e))


def product(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64] | Weights) -> Ints:
    """Returns the exact integer product a @ b.T, computed in float64.

    A float64 holds each integer up to 2^53 exactly, so sums whose terms' magnitudes add up to no
    more than that are exact in whatever order, and with whatever fused steps, BLAS takes them.

    Args:
        a: (B, n) integers.
        b: (rows, n) integers; n * max |a| * max |b| <= 2^53.
    """
    exact: Ints = (a.astype(np.float64) @ b.astype(np.float64).T).astype(np.int64)
    return exact


def matvec(weights: Weights, m: int, e: int, x: Block) -> Block:
    """Multiplies a matrix with each vector.

    Args:
        weights: (rows, n) int8, n <= 65536.
        m: Mantissa of the weights' scale m * 2^e.
        e: Exponent of the scale.
        x: (B, n) BFP16.

    Returns:
        (B, rows), |y| < 2^30, not normalised.
    """
    rows, n = weights.shape
    shift = 24 + max(0, (n - 1).bit_length() - 8)
    step = max(1, _WEIGHTS_AT_ONCE // n)
    y = np.empty((len(x.m), rows), dtype=np.int64)
    left = x.m.astype(np.float64)
    for start in range(0, rows, step):
        right = weights[start : start + step].astype(np.float64)
        # |sum| <= 65536 * 128 * 32767 < 2^38: exact, see `product`.
        total = (left @ right.T).astype(np.int64)
        y[:, start : start + step] = rsr(total * m, shift)
    return Block(y, x.e + e + shift)


def rms_norm(r: Block, gain: npt.NDArray[np.int16], gain_e: int, eps: tuple[int, int]) -> Block:
    """Divides each vector by its root mean square and multiplies by the gain.

    Args:
        r: (B, n) BFP32, n <= 32768.
        gain: (n,) int16, value ``gain * 2^gain_e``.
        gain_e: Exponent of the gain.
        eps: (em, ee), what is added to the mean square: em * 2^ee, em = 0 for nothing.

    Returns:
        (B, n) BFP16.
    """
    a = rsr(r.m, 6)
    sums = np.sum(a * a, axis=1)
    inverse = np.zeros(len(a), dtype=np.int64)
    e = np.zeros(len(a), dtype=np.int64)
    for row, (total, e_r) in enumerate(zip(sums.tolist(), r.e.tolist(), strict=True)):
        if total:
            inverse[row], p = _inverse_root(total, a.shape[1], 2 * (e_r + 6), eps)
            e[row] = (e_r + 6) + 24 - 61 - p // 2 + 15 + gain_e
    t = rsr(a * inverse[:, np.newaxis], 24)
    return Block(*to16(rsr(t * gain.astype(np.int64), 15), e))


def _inverse_root(total: int, n: int, e: int, eps: tuple[int, int]) -> tuple[int, int]:
    """Returns whole I and p with 1 / sqrt(total * 2^e / n + eps) near I * 2^(-61 - p / 2)."""
    k = _even_shift(total)
    mean = (total << k) // n
    k2 = _even_shift(mean)
    p_mean = e - k - k2
    mean <<= k2
    em, ee = eps
    if em:
        addend, p_addend = em << 30, ee - 30
        p = max(p_mean, p_addend)
        mean = (mean >> min(63, p - p_mean)) + (addend >> min(63, p - p_addend))
    else:
        p = p_mean
    if mean >= 1 << 62:
        mean >>= 2
        p += 2
    return (1 << 61) // isqrt(mean), p


def _even_shift(v: int) -> int:
    """Returns the even k with 2^60 <= v * 2^k < 2^62."""
    return (62 - v.bit_length()) & ~1


def add(a: Block, b: Block) -> Block:
    """Adds two (B, n) BFP32 blocks."""
    e = np.maximum(a.e, b.e)
    total = rsr(a.m, (e - a.e)[:, np.newaxis]) + rsr(b.m, (e - b.e)[:, np.newaxis])
    return Block(*norm32(total, e))


def rope(v: Block, first: int, freq: npt.NDArray[np.uint32]) -> Block:
    """Turns the pairs (i, i + d/2) of each head by the position's angle.

    Args:
        v: (B, heads * d) BFP32; row b is at position first + b.
        first: Position of the first row.
        freq: (d / 2,) turns a position, as a fraction of 2^32.

    Returns:
        (B, heads * d), exponents kept, not normalised.
    """
    batch, half = len(v.m), len(freq)
    positions = np.arange(first, first + batch, dtype=np.int64)[:, np.newaxis]
    # Positions are below 2^16 and frequencies below 2^32.
    phase = (positions * freq.astype(np.int64)) & (2**32 - 1)
    c, s = cos(phase)[:, np.newaxis], sin(phase)[:, np.newaxis]
    pairs = v.m.reshape(batch, -1, 2, half)
    x, y = pairs[:, :, 0], pairs[:, :, 1]
    turned = np.stack([rsr(x * c - y * s, 30), rsr(y * c + x * s, 30)], axis=2)
    return Block(turned.reshape(batch, -1), v.e)


@dataclass(frozen=True)
class Cached:
    """The keys or the values of one layer at positions 0 to T - 1."""

    m: Ints
    """(T, groups, d) BFP16 mantissas."""
    e: Ints
    """(T,) exponents."""


def attention(q: Block, keys: Cached, values: Cached, attn_scale: tuple[int, int]) -> Block:
    """Attends from each of the last B positions to those up to itself.

    Args:
        q: (B, heads * d) BFP16; row b is at position T - B + b.
        keys: T positions, those of q included.
        values: The same positions.
        attn_scale: (m, e), the scale log2(e) / sqrt(d).

    Returns:
        (B, heads * d), |y| <= 2^30, not normalised.
    """
    batch, (length, groups, d) = len(q.m), keys.m.shape
    heads = q.m.shape[1] // d
    split = q.m.reshape(batch, groups, heads // groups, d)
    y = np.empty_like(split)
    e = np.empty(batch, dtype=np.int64)
    step = max(1, _SCORES_AT_ONCE // length)
    for start in range(0, batch, step):
        rows = slice(start, min(start + step, batch))
        held = length - batch + rows.stop
        visible = np.arange(held) <= np.arange(held - (rows.stop - start), held)[:, np.newaxis]
        peak = np.maximum.accumulate(values.e[:held])[held - (rows.stop - start) :]
        e[rows] = peak - 14
        z_shift = q.e[rows, np.newaxis] + keys.e[:held] + (attn_scale[1] + 16)
        w_shift = np.maximum(peak[:, np.newaxis] - values.e[:held], 0)
        for group in range(groups):
            for head in range(split.shape[2]):
                # |D| <= 256 * 32767^2 < 2^38, m < 2^24.
                dots = product(split[rows, group, head], keys.m[:held, group])
                z = scale(dots * attn_scale[0], z_shift)
                p = _weights(z, visible)
                o = _weighted_sum(rsr(p, w_shift), values.m[:held, group])
                y[rows, group, head] = _divide(o, np.sum(p, axis=1))
    return Block(y.reshape(batch, -1), e)


def _weights(z: Ints, visible: npt.NDArray[np.bool_]) -> Ints:
    """Returns 2^(z - max z) as Q30 where visible, else 0."""
    peak = np.max(np.where(visible, z, np.iinfo(np.int64).min), axis=1, keepdims=True)
    return np.where(visible, exp2n(np.where(visible, peak - z, 0)), 0)


def _weighted_sum(w: Ints, v: Ints) -> Ints:
    """Returns w @ v exactly for (B, T) weights of at most 2^30 and (T, d) values of 16 bits.

    The halves' sums are at most 65536 * 2^15 * 2^15 = 2^46, exact in float64; in all 2^61 at most.
    """
    low = w & 0x7FFF
    return (product(w >> 15, v.T) << 15) + product(low, v.T)


def _divide(o: Ints, total: Ints) -> Ints:
    """Returns (B, d) sums over their (B,) totals, times 2^14."""
    a = bit_length(total) - 31
    inverse = (1 << 61) // (total >> a)
    return rsr(rsr(o, (a + 15)[:, np.newaxis]) * inverse[:, np.newaxis], 32)


def swiglu(g: Block, u: Block) -> Block:
    """Returns silu(g) * u, (B, n) BFP16, of two BFP32 blocks."""
    z = scale(g.m * LOG2E_M, (g.e + LOG2E_E + 16)[:, np.newaxis])
    t = exp2n(np.abs(z))
    s = (2**32 - 1) // rsr((1 << 30) + t, 14)
    sigmoid = np.where(g.m >= 0, s << 14, rsr(s * t, 16))
    a = Block(*norm32(rsr(g.m * sigmoid, 30), g.e))
    return Block(*to16(rsr(a.m * u.m, 29), a.e + u.e + 29))
