"""Scalar arithmetic against Python's integers and double precision."""

from __future__ import annotations

import math
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

LIMIT32 = 2**31 - 1
INT64 = st.integers(-(2**63), 2**63 - 1)
VECTOR = st.lists(st.integers(-LIMIT32, LIMIT32), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def lib(library: tuple[Any, Any]) -> Any:
    return library[1]


@pytest.fixture(scope="module")
def ffi(library: tuple[Any, Any]) -> Any:
    return library[0]


def rounded(v: int, n: int) -> int:
    """The nearest integer to v / 2^n, ties up, from exact integers."""
    nearest: int = (2 * v + 2**n) // 2 ** (n + 1)
    return nearest


@given(v=INT64, n=st.integers(0, 62))
def test_rsr_is_the_nearest_ties_up(lib: Any, v: int, n: int) -> None:
    assert lib.test_rsr(v, n) == rounded(v, n)


@given(v=INT64, n=st.integers(63, 2**32 - 1))
def test_rsr_beyond_62_is_zero(lib: Any, v: int, n: int) -> None:
    assert lib.test_rsr(v, n) == 0


@given(v=INT64, s=st.integers(-2000, 2000))
def test_scale_saturates_and_never_wraps(lib: Any, v: int, s: int) -> None:
    exact = v << s if s > 0 else (rounded(v, -s) if s > -63 else 0)
    assert lib.tllm_scale_by(v, s) == max(-LIMIT32, min(LIMIT32, exact))


@given(v=st.integers(-(2**33), 2**33), s=st.integers(-40, 40))
def test_scale_of_small_values(lib: Any, v: int, s: int) -> None:
    exact = v << s if s > 0 else rounded(v, -s)
    assert lib.tllm_scale_by(v, s) == max(-LIMIT32, min(LIMIT32, exact))


@given(v=st.integers(0, 2**64 - 1))
def test_bit_lengths_and_square_root(lib: Any, v: int) -> None:
    assert lib.test_bits64(v) == v.bit_length()
    assert lib.test_bits32(v >> 32) == (v >> 32).bit_length()
    assert lib.tllm_isqrt(v) == math.isqrt(v)


@pytest.mark.parametrize("v", [0, 1, 3, 4, 2**62 - 1, 2**62, (2**31) ** 2 - 1, 2**64 - 1])
def test_square_root_at_the_edges(lib: Any, v: int) -> None:
    assert lib.tllm_isqrt(v) == math.isqrt(v)


@given(v=INT64)
def test_sat32(lib: Any, v: int) -> None:
    assert lib.test_sat32(v) == max(-LIMIT32, min(LIMIT32, v))


@given(values=VECTOR, down=st.integers(0, 31), e=st.integers(-300, 300))
def test_norm32(ffi: Any, lib: Any, values: list[int], down: int, e: int) -> None:
    values = [v >> down for v in values]
    m = ffi.new("int32_t[]", values)
    new_e = lib.tllm_norm32(m, len(values), e)
    greatest = max(abs(v) for v in values)
    if greatest == 0:
        assert (new_e, list(m)) == (-1024, values)
        return
    k = greatest.bit_length() - 29
    assert new_e == e + k
    assert list(m) == [rounded(v, k) if k >= 0 else v << -k for v in values]
    assert 2**28 <= max(abs(v) for v in m) <= 2**29


@given(values=VECTOR, down=st.integers(0, 31), e=st.integers(-300, 300))
def test_to16(ffi: Any, lib: Any, values: list[int], down: int, e: int) -> None:
    values = [v >> down for v in values]
    out = ffi.new("int16_t[]", len(values))
    new_e = lib.tllm_to16(ffi.new("int32_t[]", values), len(values), e, out)
    greatest = max(abs(v) for v in values)
    if greatest == 0:
        assert (new_e, list(out)) == (-1024, values)
        return
    k = greatest.bit_length() - 15
    assert new_e == e + k
    exact = [rounded(v, k) if k >= 0 else v << -k for v in values]
    assert list(out) == [max(-32767, min(32767, v)) for v in exact]
    assert max(abs(v) for v in out) >= 2**14


@given(d=st.integers(0, 40 << 16))
def test_exp2n_is_2_to_the_minus_d(lib: Any, d: int) -> None:
    exact = 2.0 ** (30 - d / 65536)
    # A line between entries is off by at most 2^30 (ln 2 / 256)^2 / 8 = 984, halved each octave.
    bound = 2**30 * (math.log(2) / 256) ** 2 / 8 * 2.0 ** -(d >> 16) + 2
    assert abs(lib.tllm_exp2n(d) - exact) <= bound


def test_exp2n_ends(lib: Any) -> None:
    assert lib.tllm_exp2n(0) == 2**30
    assert lib.tllm_exp2n(31 * 65536 - 1) == 1
    assert lib.tllm_exp2n(31 * 65536) == lib.tllm_exp2n(2**32 - 1) == 0


@settings(max_examples=500)
@given(phase=st.integers(0, 2**32 - 1))
def test_sincos(ffi: Any, lib: Any, phase: int) -> None:
    s, c = ffi.new("int32_t *"), ffi.new("int32_t *")
    lib.tllm_sincos(phase, s, c)
    angle = 2 * math.pi * phase / 2**32
    bound = 2**30 * (math.pi / 1024) ** 2 / 8 + 2  # a line between entries: 1,265
    assert abs(s[0] - 2**30 * math.sin(angle)) <= bound
    assert abs(c[0] - 2**30 * math.cos(angle)) <= bound


@pytest.mark.parametrize(
    ("phase", "sine", "cosine"),
    [(0, 0, 1), (2**30, 1, 0), (2**31, 0, -1), (3 * 2**30, -1, 0)],
)
def test_quarter_turns_are_exact(ffi: Any, lib: Any, phase: int, sine: int, cosine: int) -> None:
    s, c = ffi.new("int32_t *"), ffi.new("int32_t *")
    lib.tllm_sincos(phase, s, c)
    assert (s[0], c[0]) == (sine * 2**30, cosine * 2**30)


# --- Tables ---------------------------------------------------------------------------------------


def test_exp2n_table_is_nearest(lib: Any) -> None:
    """x = round(2^(30 - i/256)) means (2x - 1)^256 <= 2^(31 * 256 - i) < (2x + 1)^256."""
    for i, x in enumerate(lib.tllm_exp2n_table):
        power = 2 ** (31 * 256 - i)
        assert (2 * x - 1) ** 256 <= power < (2 * x + 1) ** 256


def test_sine_table_is_nearest(lib: Any) -> None:
    """Halving angles from cos 0 = 1 in integers of 200 bits, then adding them up."""
    one = 1 << 200
    c, s = 0, one  # of a quarter turn
    for _ in range(9):
        c, s = math.isqrt((one + c) * one // 2), math.isqrt((one - c) * one // 2)
    x, y = one, 0
    for entry in lib.tllm_sin_table:
        assert entry == (y + (1 << 169)) >> 170
        x, y = (x * c - y * s) >> 200, (y * c + x * s) >> 200


def test_log2e_is_nearest() -> None:
    header = Path(__file__).parents[2] / "firmware" / "lib" / "tinyllm" / "fixed.h"
    text = header.read_text(encoding="utf-8")
    assert f"TLLM_LOG2E_M  {round(math.log2(math.e) * 2**23)}u" in text


def test_tables_are_as_made() -> None:
    script = Path(__file__).parents[2] / "tools" / "make_tables.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0


@given(data=st.binary(max_size=300), cut=st.integers(0, 300))
def test_crc32_is_that_of_zlib(lib: Any, data: bytes, cut: int) -> None:
    crc = lib.tllm_crc32(
        lib.tllm_crc32(0, data[:cut], len(data[:cut])), data[cut:], len(data[cut:])
    )
    assert crc == zlib.crc32(data)
