"""The constants of a model that the engine takes from its package (docs/NUMERICS.md, section 2)."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from host.package.facts import Scale

_DIGITS = 60
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def rope_frequencies(theta: float, head_dim: int) -> NDArray[np.uint32]:
    """Returns uint32 (head_dim / 2): turns a position, round(theta^(-2i/d) / (2 pi) * 2^32).

    Args:
        theta: Base of the rotary embedding (Su et al. 2021), positive.
        head_dim: Elements of a head, even.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        log = Decimal(theta).ln()
        turns = [(-log * 2 * i / head_dim).exp() / (2 * _PI) for i in range(head_dim // 2)]
        values = [int((turn * 2**32).to_integral_value()) % 2**32 for turn in turns]
    return np.array(values, dtype=np.uint32)


def attention_scale(head_dim: int) -> Scale:
    """Returns the scale nearest to log2(e) / sqrt(head_dim)."""
    with localcontext() as context:
        context.prec = _DIGITS
        return Scale.nearest(Fraction(1 / (Decimal(2).ln() * Decimal(head_dim).sqrt())))


def epsilon(value: float) -> tuple[int, int]:
    """Returns (m, e) of RMSNorm's epsilon: m * 2^e with 2^30 <= m < 2^32 and e even, or zeros.

    Args:
        value: Not negative.
    """
    if value == 0:
        return 0, 0
    exact = Fraction(value)
    e = 2 * ((exact.numerator.bit_length() - exact.denominator.bit_length() - 32) // 2)
    while exact / Fraction(2) ** e >= 1 << 32:
        e += 2
    m = round(exact / Fraction(2) ** e)
    return (m, e) if m < 1 << 32 else (m >> 2, e + 2)
