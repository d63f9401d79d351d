"""The reference's integer operations against exact integers and double precision."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.reference import fixed, tables
from host.reference.fixed import MAX32, ZERO_EXP, Ints

INT64 = st.integers(-(2**63), 2**63 - 1)
MANTISSA = st.integers(-(2**62), 2**62)


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


def exact_rsr(v: int, n: int) -> int:
    return math.floor(Fraction(v, 2**n) + Fraction(1, 2)) if 0 < n < 63 else v * (n == 0)


def exact_scale(v: int, s: int) -> int:
    return max(-MAX32, min(MAX32, exact_rsr(v, -s) if s <= 0 else v * 2**s))


@given(st.lists(INT64, min_size=1, max_size=8), st.integers(0, 70))
def test_rsr_rounds_to_the_nearest_with_ties_upwards(v: list[int], n: int) -> None:
    expected = [exact_rsr(x, n) for x in v]
    assert fixed.rsr(ints(*v), n).tolist() == expected
    assert fixed.rsr(ints(*v), np.full(len(v), n)).tolist() == expected


def test_rsr_of_ties_and_extremes() -> None:
    assert fixed.rsr(ints(-3, -1, 1, 3), 1).tolist() == [-1, 0, 1, 2]
    highest, lowest = 2**63 - 1, -(2**63)
    assert fixed.rsr(ints(highest, lowest), 1).tolist() == [2**62, -(2**62)]
    assert fixed.rsr(ints(highest, lowest), 62).tolist() == [2, -2]
    assert fixed.rsr(ints(highest, lowest), 63).tolist() == [0, 0]
    mixed = fixed.rsr(ints(5, 5, 5, 5), ints(0, 1, 62, 63))
    assert mixed.tolist() == [5, 3, 0, 0]
    with pytest.raises(ValueError, match="right only"):
        fixed.rsr(ints(1, 1), ints(1, -1))


@given(st.lists(st.tuples(INT64, st.integers(-1100, 1100)), min_size=1, max_size=8))
def test_scale_saturates_and_never_wraps(cases: list[tuple[int, int]]) -> None:
    v, s = ints(*(v for v, _ in cases)), ints(*(s for _, s in cases))
    assert fixed.scale(v, s).tolist() == [exact_scale(*case) for case in cases]
    assert fixed.scale(v, cases[0][1]).tolist() == [exact_scale(x, cases[0][1]) for x, _ in cases]


def test_scale_at_the_edge_of_saturation() -> None:
    assert fixed.scale(ints(1, -1, 0, 2**30, -(2**30)), 31).tolist() == [
        MAX32,
        -MAX32,
        0,
        MAX32,
        -MAX32,
    ]
    assert fixed.scale(ints(2**30 - 1, 2**30), 1).tolist() == [2**31 - 2, MAX32]
    assert fixed.scale(ints(-(2**63), 2**63 - 1), 0).tolist() == [-MAX32, MAX32]


@given(INT64.filter(lambda v: v != -(2**63)))
def test_bit_length(v: int) -> None:
    assert fixed.bit_length(ints(v)).tolist() == [v.bit_length()]


def test_what_has_no_absolute_value_is_refused() -> None:
    with pytest.raises(OverflowError):
        fixed.bit_length(ints(0, -(2**63)))
    with pytest.raises(OverflowError):
        fixed.norm32(ints(2**40, -(2**63)), 0)


@given(st.lists(MANTISSA, min_size=1, max_size=6), st.integers(-500, 500))
def test_normalised_vectors(v: list[int], e: int) -> None:
    for normalise, bits in ((fixed.norm32, 29), (fixed.to16, 15)):
        m, exponent = normalise(ints(*v), e)
        largest = max(map(abs, v))
        if largest == 0:
            assert (m.tolist(), int(exponent)) == ([0] * len(v), ZERO_EXP)
            continue
        k = int(exponent) - e
        assert k == largest.bit_length() - bits
        limit = 32767 if bits == 15 else 2**29
        assert 2 ** (bits - 1) <= np.max(np.abs(m)) <= limit
        for given_value, mantissa in zip(v, m.tolist(), strict=True):
            # At most half a step from the value; a whole one where 32768 was clamped to 32767.
            error = abs(Fraction(given_value) - Fraction(mantissa) * Fraction(2) ** k)
            assert error <= Fraction(2) ** k * (1 if abs(mantissa) == 32767 else Fraction(1, 2))


def test_what_rounds_to_32768_is_clamped() -> None:
    # Both are 32767.75 steps.
    for v in (131071, -131071):
        m, e = fixed.to16(ints(v), 0)
        assert (m.tolist(), int(e)) == ([math.copysign(32767, v)], 2)
    m, e = fixed.norm32(ints(2**31 - 1), 0)
    assert (m.tolist(), int(e)) == ([2**29], 2)


def test_rows_are_normalised_apart() -> None:
    rows = np.array([[0, 0], [1, -3], [2**50, 5]], dtype=np.int64)
    m, e = fixed.norm32(rows, np.array([7, 7, -9]))
    assert e.tolist() == [ZERO_EXP, 7 - 27, -9 + 22]
    assert m.tolist() == [[0, 0], [2**27, -3 * 2**27], [2**28, 0]]


def test_exp2n_entries_are_the_nearest_integers() -> None:
    table = tables.exp2n_table().tolist()
    assert len(table) == 257
    for i, entry in enumerate(table):
        # |entry - 2^(30 - i/256)| < 1/2, both sides doubled and raised to the power of 256.
        assert (2 * entry - 1) ** 256 < 2 ** (31 * 256 - i) < (2 * entry + 1) ** 256


def test_sine_entries_are_the_nearest_integers() -> None:
    table = tables.sine_table().tolist()
    assert len(table) == 513
    for i, entry in enumerate(table):
        # A double is good for 10^-6 here, and none of the values is that close to a tie.
        value = math.sin(math.pi / 2 * i / 512) * 2**30
        assert abs(entry - value) < 0.5 - 1e-6


def test_log2e_is_the_nearest_scale() -> None:
    assert math.ldexp(tables.LOG2E_M, tables.LOG2E_E) == pytest.approx(
        math.log2(math.e), abs=2**-24
    )
    assert 2**23 <= tables.LOG2E_M < 2**24


def test_a_value_between_two_integers_is_not_guessed() -> None:
    from decimal import Decimal

    assert tables.nearest(Decimal("-2.6")) == -3
    assert tables.nearest(Decimal("2.4")) == 2
    with pytest.raises(ArithmeticError):
        tables.nearest(Decimal("2.5"))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_exp2n_is_near_the_real_exponential(d: list[int]) -> None:
    found = fixed.exp2n(ints(*d)).tolist()
    for x, y in zip(d, found, strict=True):
        real = 2.0 ** (30 - x / 65536)
        # Linear between points 1/256 apart: (ln 2 / 256)^2 / 8 of the value, and three roundings.
        assert abs(y - real) <= real * 9.2e-7 + 2


def test_exp2n_never_rises_and_ends_at_zero() -> None:
    d = np.arange(0, 33 << 16, 7, dtype=np.int64)
    y = fixed.exp2n(d)
    assert y[0] == 2**30
    assert np.all(np.diff(y) <= 0)
    assert np.all(y[d >= 31 << 16] == 0)
    assert fixed.exp2n(ints((31 << 16) - 1, 31 << 16, 2**32 - 1)).tolist() == [1, 0, 0]


@given(st.integers(0, 2**32 - 1))
def test_sine_and_cosine_are_near_the_real_ones(phase: int) -> None:
    angle = phase / 2**32 * 2 * math.pi
    # Linear between points pi/1024 apart: (pi/1024)^2 / 8 = 1.2e-6, and roundings of 2^-30.
    assert int(fixed.sin(ints(phase))[0]) / 2**30 == pytest.approx(math.sin(angle), abs=1.2e-6)
    assert int(fixed.cos(ints(phase))[0]) / 2**30 == pytest.approx(math.cos(angle), abs=1.2e-6)


def test_quarter_turns_are_exact() -> None:
    quarters = np.arange(4, dtype=np.int64) << 30
    assert fixed.sin(quarters).tolist() == [0, 2**30, 0, -(2**30)]
    assert fixed.cos(quarters).tolist() == [2**30, 0, -(2**30), 0]


@given(st.integers(0, 2**31 - 1))
def test_half_a_turn_later_the_sign_is_another(phase: int) -> None:
    for wave in (fixed.sin, fixed.cos):
        now, later = wave(ints(phase, phase + 2**31)).tolist()
        assert later == -now
