"""The tables of docs/NUMERICS.md section 2, each entry the integer nearest to its real value.

They are computed with 60 decimal digits. A real value closer than 10^-40 to the middle between two
integers, where that would not decide the rounding, does not occur: `nearest` checks each.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

LOG2E_M: Final = 12102203
"""Mantissa of log2(e) = 12102203 * 2^-23."""

LOG2E_E: Final = -23

_DIGITS = 60
_UNDECIDED = Decimal("1e-40")


def nearest(value: Decimal) -> int:
    """Returns the integer nearest to a value whose error is well below 10^-40.

    Raises:
        ArithmeticError: The value is too close to the middle of two integers to tell.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        low = int(value.to_integral_value(rounding="ROUND_FLOOR"))
        middle = value - low - Decimal("0.5")
        if abs(middle) < _UNDECIDED:
            raise ArithmeticError(f"{value} lies between two integers")
        return low + (middle > 0)


def pi() -> Decimal:
    """Returns pi to 60 digits, by Machin's formula 16 atan(1/5) - 4 atan(1/239)."""
    with localcontext() as context:
        context.prec = _DIGITS + 6
        return 16 * _atan_of_inverse(5) - 4 * _atan_of_inverse(239)


def sine(angle: Decimal) -> Decimal:
    """Returns the sine of 0 <= angle < 2 to 60 digits, by its power series."""
    with localcontext() as context:
        context.prec = _DIGITS + 6
        term, total, n = angle, angle, 1
        while abs(term) > Decimal(10) ** -(_DIGITS + 4):
            term *= -angle * angle / ((n + 1) * (n + 2))
            total += term
            n += 2
        return total


@cache
def sine_table() -> npt.NDArray[np.int64]:
    """Returns SIN, (513,): 2^30 sin(pi/2 * i / 512)."""
    with localcontext() as context:
        context.prec = _DIGITS
        step = pi() / 1024
        # sin(pi/2) is exactly 1, which a series can only come near.
        values = [nearest(2**30 * sine(step * i)) for i in range(512)] + [2**30]
    return _constant(values)


@cache
def exp2n_table() -> npt.NDArray[np.int64]:
    """Returns EXP2N, (257,): 2^30 * 2^(-i/256)."""
    with localcontext() as context:
        context.prec = _DIGITS
        values = [nearest(2**30 * Decimal(2) ** (Decimal(-i) / 256)) for i in range(257)]
    return _constant(values)


def _atan_of_inverse(n: int) -> Decimal:
    power, total, k = Decimal(1) / n, Decimal(0), 0
    while power > Decimal(10) ** -(_DIGITS + 4):
        total += power / (2 * k + 1) * (-1) ** k
        power /= n * n
        k += 1
    return total


def _constant(values: list[int]) -> npt.NDArray[np.int64]:
    table = np.array(values, dtype=np.int64)
    table.flags.writeable = False
    return table
