"""Every kernel equals its reference, and the reference what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

COLUMNS = [1, 2, 7, 191, 192, 511, 512, 513, 1024, 1537, 65536]


def matvec(ffi: Any, kernel: Any, w: Any, x: Any, m: int, shift: int) -> Any:
    (rows, cols), batch = w.shape, len(x)
    y = np.full((batch, rows + 3), 77, np.int32)
    job = ffi.new(
        "struct tllm_matvec *",
        {
            "w": ffi.from_buffer("int8_t[]", w),
            "x": ffi.from_buffer("int16_t[]", x),
            "y": ffi.from_buffer("int32_t[]", y),
            "cols": cols,
            "batch": batch,
            "y_stride": rows + 3,
            "multiplier": m,
            "shift": shift,
        },
    )
    kernel(job, 1, rows - 1)
    return y


@pytest.mark.parametrize("batch", [1, 2, 8, 32])
@pytest.mark.parametrize("cols", COLUMNS)
@pytest.mark.parametrize("extreme", [False, True])
def test_matvec(library: tuple[Any, Any], cols: int, batch: int, extreme: bool) -> None:
    ffi, lib = library
    rng = np.random.default_rng(cols * 100 + batch)
    w = rng.integers(-128, 128, (4, cols)).astype(np.int8)
    x = rng.integers(-32767, 32768, (batch, cols)).astype(np.int16)
    if extreme:  # the greatest sums of either sign
        w[1:3], x[:] = -128, -32767
        w[2, ::2] *= -1
        x[batch // 2 :] = 32767
    m = (1 << 24) - 1
    shift = 24 + max(0, (cols - 1).bit_length() - 8)
    exact = (w.astype(object) @ x.T.astype(object)).T * m
    expected = np.full((batch, 7), 77, np.int64)
    expected[:, 1:4] = ((exact + (1 << (shift - 1))) >> shift)[:, 1:]
    assert abs(expected).max() < 2**30
    assert (matvec(ffi, lib.tllm_matvec_ref, w, x, m, shift) == expected).all()
    assert (matvec(ffi, lib.tllm_matvec_blocks, w, x, m, shift) == expected).all()


@pytest.mark.parametrize("n", [2, 6, 64, 96, 256])
def test_dot16(library: tuple[Any, Any], n: int) -> None:
    ffi, lib = library
    rng = np.random.default_rng(n)
    cases = [rng.integers(-32767, 32768, (2, n)).astype(np.int16) for _ in range(20)]
    cases += [np.full((2, n), 32767, np.int16), np.full((2, n), -32767, np.int16)]
    for a, b in cases:
        exact = int(a.astype(np.int64) @ b.astype(np.int64))
        pointers = ffi.from_buffer("int16_t[]", a), ffi.from_buffer("int16_t[]", b)
        assert lib.tllm_dot16_ref(*pointers, n) == exact
        assert lib.tllm_dot16_pairs(*pointers, n) == exact
