"""Runs the engine built with sanitizers, in a process of its own; see test_sanitized.py.

Arguments: the library. Regions come from the sanitizer's allocator, exactly as large as asked for.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import cffi
import engine_library as el
from tiny_model import Shape, make_model

SHAPES = [
    Shape(),
    Shape(vocab=3, hidden=1, layers=1, heads=1, kv_heads=1, head_dim=2, ffn=1, context=7),
    Shape(vocab=133, hidden=132, layers=1, heads=2, kv_heads=1, head_dim=10, ffn=5000),
]


def allocate(ffi: cffi.FFI, size: int) -> Any:
    """Aligned memory with a guard right behind it."""
    ffi.cdef("int posix_memalign(void **memory, size_t alignment, size_t size);", override=True)
    memory = ffi.new("void **")
    assert ffi.dlopen(None).posix_memalign(memory, 64, size) == 0
    return ffi.cast("uint8_t *", memory[0])


class ExactEngine(el.Engine):
    """An engine whose regions end where the sanitizer's guard begins."""

    def _region(self, size: int) -> Any:
        memory = allocate(self.ffi, size)
        self.ffi.memmove(memory, b"\xa5" * size, size)
        return memory


def main(library: Path) -> None:
    ffi, lib = el.open_library(library)
    for number, shape in enumerate(SHAPES):
        rng = random.Random(number)
        model = make_model(shape, seed=number)
        for config in ({}, {"batch": 1, "chunk": 4096}, {"batch": 32, "parts": 3}):
            port = el.Port(model, mapped=lambda f, at, _n: (f + at // 4096) % 3 == 0)
            engine = ExactEngine(ffi, lib, model, port, check_streamed=True, **config)
            tokens = [rng.randrange(shape.vocab) for _ in range(shape.context)]
            assert engine.feed(tokens) == 0
            generator = ffi.new("struct tllm_rng *", {"state": number})
            for temperature, top_k, top_p in [(0, 0, 65536), (65536, 0, 50000), (655, 5, 0)]:
                sampling = ffi.new("struct tllm_sampling *", [temperature, top_k, top_p, 100000])
                token = lib.tllm_sample(engine.engine, sampling, generator, tokens, len(tokens))
                assert 0 <= token < shape.vocab
    if "--overrun" in sys.argv:
        lib.tllm_crc32(0, allocate(ffi, 64), 65)
    print("all ran")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
