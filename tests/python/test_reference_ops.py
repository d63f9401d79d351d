"""The reference's vector operations against double precision, and at the ends of their ranges."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.reference import ops
from host.reference.fixed import ZERO_EXP, Ints
from host.reference.ops import Block, Cached

Doubles = npt.NDArray[np.float64]

SEEDS = st.integers(0, 2**32 - 1)
NO_EPS = (0, 0)


def block32(values: Doubles) -> Block:
    """(B, n) doubles as BFP32: more exact than anything tested with it."""
    _, e = np.frexp(np.max(np.abs(values), axis=1))
    return Block(np.rint(np.ldexp(values, 45 - e[:, np.newaxis])).astype(np.int64), e - 45).norm32()


def block16(values: Doubles) -> Block:
    return block32(values).to16()


def real(block: Block) -> Doubles:
    return np.ldexp(block.m.astype(np.float64), block.e[:, np.newaxis])


def random(seed: int, *shape: int) -> Doubles:
    """Values of widely different sizes, whose exponents differ from row to row."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) * np.exp(rng.standard_normal(shape))
    return values * np.exp2(rng.integers(-20, 20, shape[:-1]))[..., np.newaxis]


def assert_close(found: Block, expected: Doubles, steps: float) -> None:
    """Each row within a share of its greatest value: a step is 2^-15 of that."""
    peak = np.max(np.abs(expected), axis=1, keepdims=True)
    assert np.all(np.abs(real(found) - expected) <= steps * 2.0**-15 * peak)


# --- matvec ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 512, 513, 8192, 65536])
def test_matvec_at_the_ends_of_its_range(n: int) -> None:
    weights = np.full((2, n), -128, dtype=np.int8)
    weights[1, ::2] = 127
    x = Block(np.full((2, n), -32767, dtype=np.int64), np.array([3, -7]))
    x.m[1, 1::2] = 32767
    m = 2**24 - 1
    y = ops.matvec(weights, m, -30, x)
    shift = 24 + max(0, math.ceil(math.log2(n)) - 8)
    for row in range(2):
        for i in range(2):
            products = zip(weights[i].tolist(), x.m[row].tolist(), strict=True)
            total = sum(w * v for w, v in products)
            assert y.m[row, i] == (total * m + (1 << (shift - 1))) >> shift
    assert np.all(np.abs(y.m) < 2**30)
    assert y.e.tolist() == [3 - 30 + shift, -7 - 30 + shift]


@given(SEEDS, st.integers(1, 700), st.integers(1, 4))
def test_matvec_is_the_product(seed: int, n: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(-127, 128, (5, n)).astype(np.int8)
    x = block16(random(seed, batch, n))
    y = ops.matvec(weights, 12345678, -31, x)
    exact = x.m @ weights.astype(np.int64).T
    expected = np.ldexp((exact * 12345678).astype(np.float64), x.e[:, np.newaxis] - 31)
    assert np.all(np.abs(real(y) - expected) <= np.ldexp(0.5, y.e)[:, np.newaxis])


def test_matvec_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    weights = rng.integers(-127, 128, (50, 40)).astype(np.int8)
    x = block16(random(1, 3, 40))
    whole = ops.matvec(weights, 2**23, 0, x)
    monkeypatch.setattr(ops, "_WEIGHTS_AT_ONCE", 7 * 40)
    assert np.array_equal(ops.matvec(weights, 2**23, 0, x).m, whole.m)


# --- rms_norm -------------------------------------------------------------------------------------


def root_mean_square(r: Block, eps: float) -> Doubles:
    mean: Doubles = np.mean(real(r) ** 2, axis=1, keepdims=True)
    return np.sqrt(mean + eps)


@given(SEEDS, st.integers(1, 400), st.sampled_from([NO_EPS, (2**31 + 12345, -48), (2**30, 40)]))
def test_rms_norm_is_near_the_real_one(seed: int, n: int, eps: tuple[int, int]) -> None:
    r = block32(random(seed, 3, n))
    gain = np.random.default_rng(seed).integers(-32767, 32768, n).astype(np.int16)
    found = ops.rms_norm(r, gain, -14, eps)
    expected = real(r) / root_mean_square(r, math.ldexp(*eps)) * np.ldexp(gain.astype(float), -14)
    # Half a step of the result, and 2^-22 of the greatest r, which the gain may have made small.
    slack = np.max(np.abs(real(r)), axis=1, keepdims=True) * 2.0**-21
    slack = (
        slack / root_mean_square(r, math.ldexp(*eps)) * 2.0 + np.ldexp(1.0, found.e)[:, np.newaxis]
    )
    assert np.all(np.abs(real(found) - expected) <= slack)
    assert np.max(np.abs(found.m)) <= 32767


@pytest.mark.parametrize("n", [1, 3, 4096, 32768])
@pytest.mark.parametrize("fill", [2**28, 2**29, -(2**29)])
def test_rms_norm_at_the_ends_of_its_range(n: int, fill: int) -> None:
    gain = np.full(n, 32767, dtype=np.int16)
    flat = Block(np.full((1, n), fill, dtype=np.int64), np.array([11]))
    peaked = Block(np.zeros((1, n), dtype=np.int64), np.array([-60]))
    peaked.m[0, -1] = fill
    for r in (flat, peaked):
        found = ops.rms_norm(r, gain, -15, NO_EPS)
        expected = real(r) / root_mean_square(r, 0) * 32767 / 32768
        assert_close(found, expected, 1.0)


def test_rms_norm_where_epsilon_rules() -> None:
    tiny = Block(np.full((1, 8), 2**28, dtype=np.int64), np.array([-128]))
    gain = np.full(8, 16384, dtype=np.int16)
    found = ops.rms_norm(tiny, gain, -14, (2**30, 10))
    assert_close(found, np.full((1, 8), 2.0**-100 / 2.0**20), 1.0)


def test_rms_norm_where_epsilon_and_the_mean_square_carry() -> None:
    # Both are just below 2^58, brought to just below 2^62: their sum takes one bit more.
    r = Block(np.full((1, 4), 2**29 - 64, dtype=np.int64), np.array([0]))
    eps = (2**32 - 1, 26)
    assert math.ldexp(*eps) == pytest.approx(np.mean(real(r) ** 2), rel=1e-6)
    found = ops.rms_norm(r, np.full(4, 16384, dtype=np.int16), -14, eps)
    assert_close(found, np.full((1, 4), math.sqrt(0.5)), 1.0)


def test_rms_norm_of_nothing_is_nothing() -> None:
    r = Block(np.array([[0, 0], [2**28, 0]], dtype=np.int64), np.array([ZERO_EXP, 0]))
    found = ops.rms_norm(r, np.array([5, 5], dtype=np.int16), 0, (2**30, -40))
    assert found.m[0].tolist() == [0, 0]
    assert found.e[0] == ZERO_EXP
    assert found.m[1, 0] != 0


# --- add ------------------------------------------------------------------------------------------


@given(SEEDS)
def test_add_is_near_the_real_sum(seed: int) -> None:
    a, b = block32(random(seed, 3, 9)), block32(random(seed + 1, 3, 9))
    found = ops.add(a, b)
    peak = np.maximum(np.max(np.abs(real(a)), axis=1), np.max(np.abs(real(b)), axis=1))
    error = np.abs(real(found) - (real(a) + real(b)))
    assert np.all(error <= peak[:, np.newaxis] * 2.0**-27)


def test_add_of_zeros_and_of_what_cancels() -> None:
    a = Block(np.array([[2**28, -5]], dtype=np.int64), np.array([4]))
    zero = Block(np.zeros((1, 2), dtype=np.int64), np.array([ZERO_EXP]))
    assert np.array_equal(real(ops.add(a, zero)), real(a))
    assert np.array_equal(real(ops.add(zero, a)), real(a))
    nothing = ops.add(a, Block(-a.m, a.e))
    assert (nothing.m.tolist(), nothing.e.tolist()) == ([[0, 0]], [ZERO_EXP])


# --- rope -----------------------------------------------------------------------------------------


@given(SEEDS, st.integers(0, 65500), st.integers(1, 4), st.sampled_from([1, 3, 8]))
def test_rope_turns_each_pair(seed: int, first: int, heads: int, half: int) -> None:
    freq = np.random.default_rng(seed).integers(0, 2**32, half, dtype=np.uint32)
    v = block32(random(seed, 5, heads * 2 * half))
    found = ops.rope(v, first, freq)
    turns = (np.arange(first, first + 5)[:, np.newaxis] * freq.astype(np.int64)) % 2**32
    unit = np.exp(2j * np.pi * turns / 2**32)[:, np.newaxis]
    pairs = real(v).reshape(5, heads, 2, half)
    turned = (pairs[:, :, 0] + 1j * pairs[:, :, 1]) * unit
    expected = np.stack([turned.real, turned.imag], axis=2).reshape(5, -1)
    # The table's error, 1.2e-6 of each of the two.
    error = np.abs(real(found) - expected)
    assert np.all(error <= 2.5e-6 * np.max(np.abs(real(v)), axis=1, keepdims=True))
    assert np.array_equal(found.e, v.e)


# --- attention ------------------------------------------------------------------------------------


def cached(values: Doubles, groups: int) -> tuple[Cached, Doubles]:
    block = block16(values)
    shape = (len(values), groups, -1)
    return Cached(block.m.reshape(shape), block.e), real(block).reshape(shape)


@given(SEEDS, st.integers(1, 12), st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 6, 32]))
def test_attention_is_near_the_real_one(
    seed: int, batch: int, groups: int, share: int, d: int
) -> None:
    rng = np.random.default_rng(seed)
    length = batch + int(rng.integers(0, 20))
    q = block16(rng.standard_normal((batch, groups * share * d)) * 2)
    keys, real_keys = cached(rng.standard_normal((length, groups * d)) * 3, groups)
    values, real_values = cached(random(seed, length, groups * d), groups)
    scale = math.log2(math.e) / math.sqrt(d)
    m = round(scale * 2**23) if scale >= 1 else round(scale * 2**25)
    m, e = (m, -23) if scale >= 1 else (m, -25)
    found = ops.attention(q, keys, values, (m, e))
    heads = real(q).reshape(batch, groups, share, d)
    for b in range(batch):
        held = length - batch + b + 1
        for group in range(groups):
            scores = heads[b, group] @ real_keys[:held, group].T / math.sqrt(d)
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            expected = p / p.sum(axis=1, keepdims=True) @ real_values[:held, group]
            got = real(found)[b].reshape(groups, share, d)[group]
            # A score is right to 2^-16 octaves or so; the values' common exponent costs 2^-14.
            peak = np.max(np.abs(real_values[:held]))
            assert np.all(np.abs(got - expected) <= 4e-5 * peak)


@pytest.mark.parametrize("length", [1, 2, 3, 1000, 65535])
def test_attention_at_the_ends_of_its_range(length: int) -> None:
    d = 256
    most = np.full((1, d), 32767, dtype=np.int64)
    keys = Cached(np.full((length, 1, d), -32767, dtype=np.int64), np.zeros(length, dtype=np.int64))
    values = Cached(-keys.m, np.zeros(length, dtype=np.int64))
    for e_q in (-1100, -40, 0, 40):
        found = ops.attention(Block(most, np.array([e_q])), keys, values, (2**24 - 1, -27))
        # All scores are equal, so the mean of equal values is wanted.
        assert np.allclose(real(found), 32767, rtol=2**-28, atol=0)


def test_attention_over_zeros() -> None:
    q = Block(np.array([[3, 4]], dtype=np.int64), np.array([0]))
    zeros = Cached(np.zeros((4, 1, 2), dtype=np.int64), np.full(4, ZERO_EXP))
    found = ops.attention(q, zeros, zeros, (2**23, -23))
    assert not found.m.any()
    one = Cached(zeros.m.copy(), zeros.e.copy())
    one.m[1], one.e[1] = 32767, -15
    # Four equal weights, one value that is not zero.
    assert np.allclose(real(ops.attention(q, zeros, one, (2**23, -23))), 32767 / 32768 / 4)


def test_attention_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    q = block16(rng.standard_normal((9, 8)))
    keys, _ = cached(rng.standard_normal((15, 4)), 2)
    values, _ = cached(random(5, 15, 4), 2)
    whole = ops.attention(q, keys, values, (2**23, -24))
    monkeypatch.setattr(ops, "_SCORES_AT_ONCE", 30)
    parts = ops.attention(q, keys, values, (2**23, -24))
    assert np.array_equal(parts.m, whole.m)
    assert np.array_equal(parts.e, whole.e)


# --- swiglu ---------------------------------------------------------------------------------------


@given(SEEDS)
def test_swiglu_is_near_the_real_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    g = block32(rng.standard_normal((3, 50)) * np.exp2(rng.integers(-8, 6, (3, 1))))
    u = block32(random(seed, 3, 50))
    found = ops.swiglu(g, u)
    silu = real(g) / (1 + np.exp(-real(g)))
    # The sigmoid has 15 bits; half a step of the result.
    slack = np.abs(silu * real(u)) * 2.0**-15
    slack += np.max(np.abs(real(g)), axis=1, keepdims=True) * 2.0**-28 * np.abs(real(u))
    slack += np.ldexp(1.0, found.e)[:, np.newaxis]
    assert np.all(np.abs(real(found) - silu * real(u)) <= slack)


def extremes(e: int) -> Block:
    row = [2**29, -(2**29), 2**28, -(2**28), 1, -1, 0]
    return Block(np.array([row], dtype=np.int64), np.array([e]))


@pytest.mark.parametrize("e", [-900, -60, -29, -20, 0, 30])
def test_swiglu_at_the_ends_of_its_range(e: int) -> None:
    g = extremes(e)
    found = real(ops.swiglu(g, Block(np.full((1, 7), 2**29, dtype=np.int64), np.array([-29]))))[0]
    x = real(g)[0]
    with np.errstate(over="ignore"):
        silu = x / (1 + np.exp(-x))
    assert np.all(np.abs(found - silu) <= np.max(np.abs(silu)) * 2.0**-14)


# --- Types ----------------------------------------------------------------------------------------


def test_a_block_has_an_exponent_for_each_row() -> None:
    m: Ints = np.zeros((2, 3), dtype=np.int64)
    with pytest.raises(ValueError, match="exponents"):
        Block(m, np.zeros(3, dtype=np.int64))


def test_the_largest_exact_product_is_exact() -> None:
    a = np.full((1, 65536), 2**15, dtype=np.int64)
    b = np.full((1, 65536), 2**15 - 1, dtype=np.int64)
    b[0, 12345] -= 1
    assert ops.product(a, b)[0, 0] == 65536 * 2**15 * (2**15 - 1) - 2**15
