"""Quantizers against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from host.quantize import Int8PerTensor, Int16PowerOfTwo
from host.quantize.schemes import FloatArray

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TENSORS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=1, max_dims=2, min_side=1, max_side=6), elements=FLOATS
)
LEAST_NORMAL = Fraction(2) ** -126


def nearest(weight: float, scale: Fraction, most: int) -> int:
    """Ties to even, as `round` has it for fractions."""
    return max(-most, min(most, round(Fraction(weight) / scale)))


def array(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float32)


@settings(max_examples=200)
@given(TENSORS)
@example(array(0.0))
@example(array(1e-45))
@example(array(3.4028235e38, -3.4028235e38, 1.0))
@example(array(127.0, 0.5, 1.5, 2.5, -0.5, -126.5))
def test_int8_is_the_specification(weights: FloatArray) -> None:
    quantized = Int8PerTensor().quantize(weights)
    largest = max(abs(Fraction(float(w))) for w in weights.flat)
    scale = Fraction(float(np.float32(float(largest)) / np.float32(127)))
    if scale < LEAST_NORMAL:
        scale = Fraction(1)
    assert Fraction(quantized.scale.value) == scale
    assert quantized.values.dtype == np.int8
    assert quantized.values.shape == weights.shape
    assert quantized.values.ravel().tolist() == [
        nearest(float(w), scale, 127) for w in weights.flat
    ]


@settings(max_examples=200)
@given(TENSORS)
@example(array(0.0))
@example(array(1e-45, -1e-45))
@example(array(1.0))
@example(array(0.99999994))
@example(array(32767.5 / 32768))
@example(array(3.4028235e38))
def test_int16_is_the_specification(weights: FloatArray) -> None:
    quantized = Int16PowerOfTwo().quantize(weights)
    largest = max(abs(Fraction(float(w))) for w in weights.flat)
    scale = Fraction(quantized.scale.value)
    assert quantized.scale.m == 1 << 23
    assert quantized.values.dtype == np.int16
    assert quantized.values.ravel().tolist() == [
        nearest(float(w), scale, 32767) for w in weights.flat
    ]
    if scale == 1 and round(largest) < 16384:
        assert largest == 0 or largest / LEAST_NORMAL < 32768
    else:
        assert round(largest / scale) <= 32767
        assert round(largest / (scale / 2)) > 32767
    assert quantized.clipped == 0


@pytest.mark.parametrize("shape", [(1, 1), (8191, 1), (8192,), (8193, 2), (300, 191)])
def test_noise_is_measured_over_all_blocks(shape: tuple[int, ...]) -> None:
    weights = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    quantized = Int8PerTensor().quantize(weights)
    exact = weights.astype(np.float64)
    error = exact - quantized.values * quantized.scale.value
    expected = 10 * math.log10((exact**2).sum() / (error**2).sum()) if error.any() else None
    assert quantized.snr_db == (expected and pytest.approx(expected, abs=1e-9))
    assert np.abs(error).max() <= quantized.scale.value * 0.5000001


def test_no_noise_and_no_signal_have_no_ratio() -> None:
    assert Int8PerTensor().quantize(array(127, -3)).snr_db is None
    assert Int8PerTensor().quantize(array(0, 0)).snr_db is None


def test_a_double_rounding_would_be_seen() -> None:
    """Quotients that float32 rounds onto a tie which they are not."""
    rng = np.random.default_rng(5)
    weights = rng.standard_normal(200_000).astype(np.float32)
    scale = np.float32(np.abs(weights).max() / np.float32(127))
    ties = ((np.arange(-127, 127) + 0.5) * np.float64(scale)).astype(np.float32)
    weights = np.concatenate((weights, np.nextafter(ties, np.float32(9)), ties)).astype(np.float32)
    values = Int8PerTensor().quantize(weights).values
    exact = [nearest(float(w), Fraction(float(scale)), 127) for w in weights[-508:]]
    assert values[-508:].tolist() == exact
    careless = np.rint(weights[-508:] / scale).astype(int).tolist()
    assert careless != exact
