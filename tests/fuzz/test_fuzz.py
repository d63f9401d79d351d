"""Runs each fuzzer for a bounded time from its corpus; a finding is kept under tests/regression.

To look for longer:  build as `_build` does, then  TLLM_FUZZ_PACKAGE=DIR ./fuzz_device CORPUS
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from host.package.config import PackageConfig
from host.package.facts import Scale
from host.package.layout import DType
from host.package.writer import PackageWriter
from host.tokenizer.spec import Piece, PieceType, TokenizerSpec, byte_piece

HERE = Path(__file__).resolve().parent
FIRMWARE = HERE.parents[1] / "firmware"
FLAGS = ("-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
SECONDS = 8


def tiny_package(folder: Path) -> Path:
    """A model of 2 layers with random weights, small enough to boot thousands of times."""
    control = [
        Piece(b"<unk>", PieceType.UNKNOWN),
        *(Piece(t, PieceType.CONTROL) for t in (b"<s>", b"</s>")),
    ]
    words = ["\u2581", "a", "b", "e", "n", "o", "é", "\u2581a", "on", "\u2581on", "日", "日本"]
    normal = [Piece(word.encode(), PieceType.NORMAL, rank) for rank, word in enumerate(words)]
    codes = [Piece(byte_piece(i), PieceType.BYTE) for i in range(256)]
    spec = TokenizerSpec((*control, *codes, *normal), unk=0, bos=1, eos=2)
    config = PackageConfig(
        name="tiny",
        vocab_size=spec.vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=24,
        max_position_embeddings=32,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        add_bos_token=True,
        source="random",
    )
    folder.mkdir()
    rng = np.random.default_rng(1)
    writer = PackageWriter(folder, config)
    for place in writer.places:
        if place.dtype is DType.INT16:
            norm = rng.integers(8000, 32767, place.cols).astype(np.int16)
            writer.add_tensor(place, norm, Scale.power_of_two(-14), None, 0.0)
        else:
            matrix = rng.integers(-127, 128, (place.rows, place.cols)).astype(np.int8)
            writer.add_tensor(place, matrix, Scale.nearest(0.004), None, 0.0)
    writer.finish("int8-per-tensor", spec.to_bin())
    return folder


def _request(kind: int, payload: bytes) -> bytes:
    return bytes([kind, len(payload)]) + payload


def _typed(text: str) -> bytes:
    raw = text.encode()
    return bytes([0x40, len(raw)]) + raw


def _seeds(package: Path) -> dict[str, list[bytes]]:
    """Inputs that reach far, for a fuzzer to start from."""
    print_ = (package / "descriptor.bin").read_bytes()[96:128]
    head = print_[3::-1]
    data = (package / "layer00_q_proj.bin").read_bytes()
    whole = struct.pack("<III", len(data), np.uint32(0), 0)
    scripts = [
        _typed("Once on a\r/stats\r/temp 0.5\r/reset\r/n 3\rab\r/stop\r"),
        _request(0x01, b"\1\0") + _request(0x02, b"") + _request(0x18, b""),
        _request(0x13, struct.pack("<B3I", 6, 1, 5, 9))
        + _request(0x15, b"")
        + _request(0x13, b"\1"),
        _request(0x14, struct.pack("<BHI", 3, 1, 7)) + _request(0x19, bytes(4)),
        _request(0x11, struct.pack("<4IQ", 65536, 40, 60000, 70000, 1))
        + _request(0x12, b"\x10\0\0\0on a")
        + _request(0x12, b"\0\0\0\0"),
        _request(0x16, b"on a b") + _request(0x17, struct.pack("<3I", 1, 260, 200)),
        _request(0x22, head + whole + b"q.bin")
        + _request(0x23, struct.pack("<IHI", 0, 0, 0) + data[:64])
        + _request(0x24, b"")
        + _request(0x25, b""),
        _request(0x26, print_) + _request(0x27, b"\0\0") + _request(0x28, b"12345678/q.bin"),
        _request(0x21, struct.pack("<IHB", 0, 4, 0) + b"12345678/q.bin") + _request(0x20, b"a/b"),
        _request(0x30, struct.pack("<II", 512, 4000)) + _request(0x31, struct.pack("<II", 0, 99)),
        _request(0x04, struct.pack("<I", 921600)) + _request(0x05, b"") + _request(0x03, b""),
    ]
    return {
        "frame": [b"\0\x05\x01\x02\x03\x04\0", b"text\0\0"],
        "device": [bytes([kind, 9]) + s for s in scripts for kind in (0, 2)],
        "descriptor": [(package / "descriptor.bin").read_bytes()],
        "tokenizer": [(package / "tokenizer.bin").read_bytes()],
        "text": [b"on a \xc3\xa9 b", "日本 é".encode(), b"\xff"],
    }


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_package(tmp_path_factory.mktemp("fuzz") / "package")


def _build(compile_c: Callable[..., Path], clang: str, name: str) -> Path:
    libraries = ["tinyllm"] if name in ("descriptor", "tokenizer") else ["tinyllm", "device"]
    sources = [HERE / f"fuzz_{name}.c"]
    for library in libraries:
        sources += sorted((FIRMWARE / "lib" / library).glob("*.c"))
    if name in ("device", "text"):
        sources.append(HERE / "ram_board.c")
    return compile_c(f"fuzz_{name}", clang, FLAGS, sources)


@pytest.mark.parametrize("name", ["frame", "device", "descriptor", "tokenizer", "text"])
def test_nothing_crashes_hangs_or_reads_out_of_bounds(
    compile_c: Callable[..., Path],
    clang: str,
    package: Path,
    tmp_path: Path,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    fuzzer = _build(compile_c, clang, name)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, seed in enumerate(_seeds(package)[name]):
        (corpus / f"seed{index}").write_bytes(seed)
    kept = HERE / "corpus" / name
    options = [
        "-seed=1",
        f"-max_total_time={os.environ.get('TLLM_FUZZ_SECONDS', SECONDS)}",
        "-max_len=20000",
        "-timeout=20",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
        f"-artifact_prefix={tmp_path}/",
    ]
    ended = subprocess.run(
        [fuzzer, *options, corpus, *([kept] if kept.is_dir() else [])],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=os.environ | {"TLLM_FUZZ_PACKAGE": str(package)},
    )
    assert ended.returncode == 0, ended.stderr[-6000:]
    runs = re.search(r"number_of_executed_units: (\d+)", ended.stderr)
    assert runs is not None
    assert int(runs.group(1)) > 50, "it has hardly looked"
    record_property("inputs", runs.group(1))
