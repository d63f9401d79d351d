"""The engine behind cffi, with a port in Python that can be told to misbehave."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cffi
import pytest
from tiny_model import CHUNK

TINYLLM = Path(__file__).resolve().parents[2] / "firmware" / "lib" / "tinyllm"
EXPORTS_C = Path(__file__).with_name("exports.c")
EXPORTED = """
int64_t test_rsr(int64_t v, uint32_t n);
uint32_t test_bits32(uint32_t v);
uint32_t test_bits64(uint64_t v);
int32_t test_sat32(int64_t v);
"""
SANITIZED = [
    "-O1",
    "-g",
    "-fPIC",
    "-shared",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]
FAST, BULK, CONTEXT, CRC, IO, CANCELLED, ARG, TOO_LONG = -6, -7, -8, -4, -5, -9, -1, -11
STOP, DROP = 0, 1
END_STOP_TOKEN, END_CONTEXT, END_CANCELLED = 1, 3, 4


class Model(Protocol):
    """A model's files in the descriptor's order, and its descriptor."""

    @property
    def files(self) -> Sequence[tuple[str, bytes]]: ...

    def descriptor(self) -> bytes: ...


def sources() -> list[Path]:
    """The C files that the tests' library is made of."""
    return [*sorted(TINYLLM.glob("*.c")), EXPORTS_C]


def _declarations(header: Path) -> str:
    """What cffi can read of a header: no directives, attributes or inline bodies."""
    text = re.sub(r"/\*.*?\*/", "", header.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r'extern "C" \{', "", text)
    text = re.sub(r"#ifdef __cplusplus\n\}\n#endif", "", text)
    text = re.sub(r"#define (?!\w+ +\d+u?$).*(?:\\\n.*)*", "", text, flags=re.MULTILINE)
    text = re.sub(r"(#define \w+ +\d+)u$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"#(?!define \w+ +\d+$).*", "", text, flags=re.MULTILINE)
    text = re.sub(r"static inline [^{]*\{\n.*?\n\}", "", text, flags=re.DOTALL)
    return re.sub(r"TLLM_MUST_CHECK|_Static_assert\([^;]*\);", "", text)


def run_sanitized(
    gcc: str, program: Path, *arguments: str, paths: Sequence[Path] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs a Python program that opens a library built with `SANITIZED`, in a process of its own.

    Args:
        gcc: The compiler that built the library.
        program: The program's file.
        arguments: Its words.
        paths: Where it imports from, beside its own folder.
    """
    preload = subprocess.run(
        [gcc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(preload).is_absolute():
        pytest.skip("gcc's address sanitizer (libasan) is not installed")
    environment = {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    return subprocess.run(
        [sys.executable, str(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def open_library(path: Path) -> tuple[cffi.FFI, Any]:
    """cffi's view of a built library: (ffi, lib)."""
    ffi = cffi.FFI()
    for header in ("tinyllm.h", "fixed.h", "kernels.h", "ops.h", "tables.h"):
        ffi.cdef(_declarations(TINYLLM / header))
    ffi.cdef(EXPORTED)
    return ffi, ffi.dlopen(str(path))


@dataclass
class Port:
    """How the world answers. Counts and records what it is asked."""

    model: Model
    mapped: Callable[[int, int, int], bool] = lambda _file, _at, _len: False
    prefetches: bool = True
    fail_read: Callable[[int, int, int], int] = lambda _file, _at, _len: 0
    cancel_at: int = -1  # the call of yield that cancels
    flip: tuple[int, int] | None = None  # (file, offset) of a byte read wrong
    shuffle_parts: bool = False
    threads: bool = False
    reads: list[tuple[int, int, int]] = field(default_factory=list)
    prefetched: list[tuple[int, int, int]] = field(default_factory=list)
    finished: int = 0
    yields: int = 0
    pending: tuple[int, int, int, int] | None = None


class Engine:
    """One engine in regions of exactly the size it asks for."""

    def __init__(self, ffi: cffi.FFI, lib: Any, model: Model, port: Port, **config: Any) -> None:
        self.ffi, self.lib, self.port = ffi, lib, port
        self.descriptor = ffi.from_buffer(model.descriptor())
        storage = lib.tllm_descriptor_storage(self.descriptor, len(self.descriptor))
        assert storage > 0
        self.storage = ffi.new("uint64_t[]", storage // 8 + 1)
        self.facts = ffi.new("struct tllm_model *")
        assert not lib.tllm_descriptor_parse(
            self.descriptor, len(self.descriptor), self.facts, self.storage, storage
        )
        self.data = [ffi.from_buffer(data) for _, data in model.files]
        self.port_struct = self._make_port()
        self.config = ffi.new(
            "struct tllm_config *", {"model": self.facts, "port": self.port_struct, **config}
        )
        self.size = ffi.new("struct tllm_size *")
        assert lib.tllm_size(self.config, self.size) == 0
        self.engine = ffi.new("struct tllm_engine *")
        self.fast, self.bulk = self._region(self.size.fast), self._region(self.size.bulk)
        assert self.init(self.size.fast, self.size.bulk) == 0
        self.stages: list[tuple[int, int, int, int]] = []  # pos, layer, stage, crc
        self.trace = ffi.new("struct tllm_trace *", {"stage": self._on_stage()})

    def _region(self, size: int) -> Any:
        memory = self.ffi.new("uint8_t[]", size + 64)
        self._keep = [*getattr(self, "_keep", []), memory]
        start = int(self.ffi.cast("uintptr_t", memory))
        return memory + (-start % 64)

    def init(self, fast: int, bulk: int) -> int:
        return int(self.lib.tllm_init(self.engine, self.config, self.fast, fast, self.bulk, bulk))

    def _make_port(self) -> Any:
        ffi, port = self.ffi, self.port

        def address(pointer: Any) -> int:
            return int(ffi.cast("uintptr_t", pointer))

        def copy(file: int, at: int, dst: Any, length: int) -> None:
            assert at % CHUNK == 0
            assert address(dst) % 64 == 0
            assert at + length <= len(self.data[file])
            data = bytearray(ffi.buffer(self.data[file] + at, length))
            if port.flip is not None and port.flip[0] == file and 0 <= port.flip[1] - at < length:
                data[port.flip[1] - at] ^= 0x10
            ffi.memmove(dst, data, length)
            rounded = -(-length // 512) * 512
            ffi.memmove(dst + length, b"\xbd" * (rounded - length), rounded - length)

        def abandon() -> None:
            if port.pending is not None:
                ffi.memmove(
                    ffi.cast("uint8_t *", port.pending[3]),
                    b"\xcc" * port.pending[2],
                    port.pending[2],
                )
            port.pending = None

        @ffi.callback("int(void *, uint32_t, uint32_t, void *, uint32_t)")
        def read(_ctx: Any, file: int, at: int, dst: Any, length: int) -> int:
            dst = ffi.cast("uint8_t *", dst)
            if port.pending == (file, at, length, address(dst)):
                port.finished += 1
                port.pending = None
            abandon()
            port.reads.append((file, at, length))
            error = port.fail_read(file, at, length)
            if not error:
                copy(file, at, dst, length)
            return error

        @ffi.callback("void(void *, uint32_t, uint32_t, void *, uint32_t)")
        def prefetch(_ctx: Any, file: int, at: int, dst: Any, length: int) -> None:
            abandon()
            dst = ffi.cast("uint8_t *", dst)
            port.pending = (file, at, length, address(dst))
            port.prefetched.append((file, at, length))
            ffi.memmove(dst, b"\xaa" * length, length)

        @ffi.callback("const void *(void *, uint32_t, uint32_t, uint32_t)")
        def map_(_ctx: Any, file: int, at: int, length: int) -> Any:
            assert at + length <= len(self.data[file])
            return self.data[file] + at if port.mapped(file, at, length) else ffi.NULL

        @ffi.callback("void(void *, void (*)(void *, uint32_t, uint32_t), void *, uint32_t)")
        def parallel(_ctx: Any, fn: Any, arg: Any, parts: int) -> None:
            order = list(range(parts))
            if port.shuffle_parts:
                order = order[1:] + order[:1]
            if not port.threads:
                for part in order:
                    fn(arg, part, parts)
                return
            threads = [threading.Thread(target=fn, args=(arg, part, parts)) for part in order]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        @ffi.callback("int(void *)")
        def yield_(_ctx: Any) -> int:
            port.yields += 1
            return int(port.yields == port.cancel_at)

        members = {"read": read, "map": map_, "parallel": parallel, "yield": yield_}
        if port.prefetches:
            members["prefetch"] = prefetch
        self._callbacks = members
        return ffi.new("struct tllm_port *", members)

    def _on_stage(self) -> Any:
        @self.ffi.callback("void(void *, const struct tllm_activation *)")
        def stage(_ctx: Any, a: Any) -> None:
            self.stages.append((a.pos, a.layer, int(a.stage), self.lib.tllm_activation_crc(a)))

        self._stage = stage
        return stage

    def feed(self, tokens: Sequence[int], *, logits: bool = True) -> int:
        self.engine.trace = self.trace
        error = int(self.lib.tllm_feed(self.engine, list(tokens), len(tokens), logits))
        assert self.port.pending is None
        return error

    @property
    def n_past(self) -> int:
        return int(self.engine.n_past)

    @property
    def logits(self) -> list[int]:
        return list(self.ffi.unpack(self.engine.logits, self.facts.vocab))

    @property
    def fault(self) -> tuple[int, int, int]:
        fault = self.engine.fault
        return int(fault.file), int(fault.offset), int(fault.len)


class Session:
    """The engine's session and its buffers."""

    def __init__(self, engine: Engine, policy: int = STOP) -> None:
        self.engine, ffi = engine, engine.ffi
        self.tokens = ffi.new("uint32_t[]", engine.engine.context)
        self.turn_start = ffi.new("uint8_t[]", engine.engine.context)
        self.struct = ffi.new("struct tllm_session *")
        engine.lib.tllm_session_init(self.struct, engine.engine, self.tokens, self.turn_start)
        self.struct.policy = policy

    def prompt(self, *tokens: int) -> int:
        return int(self.engine.lib.tllm_session_prompt(self.struct, tokens, len(tokens)))

    def next(self) -> tuple[int, int, int]:
        """(answer, token, end)."""
        token = self.engine.ffi.new("uint32_t *", 999)
        end = self.engine.ffi.new("enum tllm_end *")
        answer = self.engine.lib.tllm_session_next(self.struct, token, end)
        return int(answer), int(token[0]), int(end[0])

    @property
    def held(self) -> list[int]:
        return [int(self.tokens[i]) for i in range(self.struct.n)]

    @property
    def turns(self) -> list[int]:
        return [i for i in range(self.struct.n) if self.turn_start[i]]
