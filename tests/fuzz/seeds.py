"""Tiny models with random weights, and inputs made from them that reach far."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from cobs import cobs

from host.link.frames import MAX_ENCODED, MAX_PAYLOAD
from host.package.config import PackageConfig
from host.package.facts import Scale
from host.package.layout import DType
from host.package.writer import PackageWriter
from host.tokenizer.spec import Piece, PieceType, TokenizerSpec, byte_piece

_CONTROL = (
    Piece(b"<unk>", PieceType.UNKNOWN),
    Piece(b"<s>", PieceType.CONTROL),
    Piece(b"</s>", PieceType.CONTROL),
)
_BYTES = tuple(Piece(byte_piece(i), PieceType.BYTE) for i in range(256))
_WORDS = ("\u2581", "a", "b", "e", "n", "o", "é", "\u2581a", "on", "\u2581on", "日", "日本")
_NORMAL = tuple(Piece(word.encode(), PieceType.NORMAL, rank) for rank, word in enumerate(_WORDS))

TOKENIZER = TokenizerSpec((*_CONTROL, *_BYTES, *_NORMAL), unk=0, bos=1, eos=2)
SMALL_TOKENIZER = TokenizerSpec(
    (*_CONTROL, *_NORMAL), unk=0, bos=1, eos=2, byte_fallback=False, add_prefix_space=False
)
CONFIG = PackageConfig(
    name="tiny",
    vocab_size=TOKENIZER.vocab_size,
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
SMALL_CONFIG = replace(
    CONFIG,
    vocab_size=SMALL_TOKENIZER.vocab_size,
    hidden_size=3,
    num_hidden_layers=1,
    num_attention_heads=1,
    head_dim=2,
    intermediate_size=5,
    max_position_embeddings=6,
    tie_word_embeddings=True,
)


def write_package(
    folder: Path, config: PackageConfig = CONFIG, spec: TokenizerSpec = TOKENIZER
) -> Path:
    """Writes a package small enough to boot thousands of times."""
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


def write_seeds(name: str, package: Path, folder: Path) -> None:
    """Writes the inputs that a fuzzer starts from."""
    small = write_package(folder / "small", SMALL_CONFIG, SMALL_TOKENIZER)
    inputs = {
        "frame": lambda: _frames(),
        "device": lambda: _device_scripts(package),
        "card": lambda: _cards(),
        "descriptor": lambda: _descriptors(package, small),
        "tokenizer": lambda: [TOKENIZER.to_bin(), SMALL_TOKENIZER.to_bin(), _full_table()],
        "text": lambda: [b"on a \xc3\xa9 b", "日本 é".encode(), b"\xff", b"o" * 300, b"\0 "],
    }[name]()
    for path in small.iterdir():
        path.unlink()
    small.rmdir()
    for index, data in enumerate(inputs):
        (folder / f"seed{index}").write_bytes(data)


def _crc(data: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(data))


def _frames() -> list[bytes]:
    # A payload as long as it may be, one byte longer, and more than a frame holds.
    bodies = [b"\2\1" + b"7" * n for n in (MAX_PAYLOAD, MAX_PAYLOAD + 1)]
    longest = [b"\0" + cobs.encode(body + _crc(body)) + b"\0" for body in bodies]
    # As many bytes as fit, the last one a code that leads beyond them.
    beyond = b"\0" + b"\x01" * (MAX_ENCODED - 1) + b"\2\0"
    return [b"text\0\0", b"\0" + b"\x01" * (MAX_ENCODED + 1) + b"\0", beyond, *longest]


def _descriptors(package: Path, small: Path) -> list[bytes]:
    whole = (package / "descriptor.bin").read_bytes()
    # A rotary frequency too few; the odd last byte has the other counts made to fit.
    fewer = whole[:80] + struct.pack("<I", CONFIG.head_dim // 2 - 1) + whole[84:-1] + b"\1"
    return [whole, (small / "descriptor.bin").read_bytes(), fewer]


def _full_table() -> bytes:
    """A hash table without an empty slot, in which a search would not end."""
    whole = SMALL_TOKENIZER.to_bin()
    vocab, slots = struct.unpack_from("<2I", whole, 12)
    first = 64 + 12 * vocab
    table = whole[first : first + 4 * slots]
    full = table.replace(b"\xff" * 4, struct.pack("<I", vocab - 1))
    return whole[:first] + full + whole[first + len(table) :]


# --- fuzz_device.c's scripts ----------------------------------------------------------------------


def _request(kind: int, payload: bytes = b"") -> bytes:
    return bytes([kind, len(payload)]) + payload


def _long(kind: int, payload: bytes) -> bytes:
    return _request(0x40 | kind, payload)


def _typed(text: str) -> bytes:
    raw = text.encode()
    return bytes([0x80, len(raw)]) + raw


def _wait(milliseconds: int) -> bytes:
    return bytes([0xC0, milliseconds // 2])


def _upload(head: bytes, data: bytes, name: bytes) -> bytes:
    """A whole file of at most a chunk, in pieces of 192 bytes."""
    crc = zlib.crc32(data)
    script = _request(0x22, head + struct.pack("<III", len(data), crc, 0) + name)
    for at in range(0, len(data), 192):
        script += _request(0x23, struct.pack("<IHI", 0, at, crc) + data[at : at + 192])
    return script + _request(0x24) + _request(0x25)


def _device_scripts(package: Path) -> list[bytes]:
    fingerprint = (package / "descriptor.bin").read_bytes()[96:128]
    head, folder = fingerprint[3::-1], fingerprint[:4].hex().encode()
    files = sorted(package.glob("*.bin"))
    whole = b"".join(
        _upload(head, path.read_bytes(), path.name.encode())
        for path in files
        if path.stat().st_size <= 4096
    )
    block = struct.pack("<IHI", 0, 0, 0) + b"7"  # with 17 times 11 bytes: 177 bytes of data
    scripts = [
        _typed("Once on a\r/stats\r/temp 0.5\r/reset\r/n 3\rab\r/stop\r"),
        _typed("/help\r/info\r/top-k 3\r/top-p 0.9\r/penalty 1.1\r/seed 7\r/context drop\r"),
        b"".join(_typed("x" * 128) for _ in range(17)) + _typed("\r/info\r"),  # more than a line
        _typed("a\bb\x15\x1b[Ad\x03") + _wait(300) + _typed("\r/reboot\r") + _wait(500),
        _request(0x01, b"\1\0") + _request(0x01, b"\2\0") + _request(0x02) + _request(0x18),
        _request(0x13, struct.pack("<B3I", 6, 1, 5, 9)) + _request(0x15) + _request(0x13, b"\1"),
        _long(0x13, struct.pack("<BI", 2, 1)) + _request(0x10, bytes(6)),
        _request(0x13, struct.pack("<B32I", 1, *[5] * 32)) + _request(0x15),  # the whole context
        _request(0x14, struct.pack("<BHI", 3, 1, 7)) + _request(0x19, bytes(4)),
        _request(0x11, struct.pack("<4IQ", 65536, 40, 60000, 70000, 1))
        + _request(0x12, b"\x10\0\0\0\0\0\0\0on a")
        + _wait(100)
        + _request(0x05)
        + _request(0x1A, b"\x30\0\0\0\0\xff")
        + _request(0x06, b"\0\0\xff"),
        _request(0x12, bytes(8)) + _wait(500),
        _request(0x16, b"on a b") + _request(0x17, struct.pack("<3I", 1, 260, 200)),
        _long(0x16, b"on a b ") + _long(0x17, struct.pack("<3I", 1, 260, 200)),
        _upload(head, b"q" * 200, b"q.bin") + _request(0x28, folder + b"/q.bin"),
        _request(0x22, head + struct.pack("<III", 177, zlib.crc32(b"7" * 177), 0) + b"q.bin")
        + _long(0x23, block)
        + _request(0x25),
        # Of the window's last chunk a piece that is longer than the chunk has left.
        _request(0x22, head + struct.pack("<III", 40_000, 0, 0) + b"q.bin")
        + _request(0x23, struct.pack("<IHI", 7, 4032, 0) + b"7" * 128),
        whole + _request(0x26, fingerprint) + _request(0x27, b"\0\0"),
        _request(0x26, fingerprint) + _request(0x27, b"\0\0") + _request(0x28, b"12345678/q.bin"),
        _request(0x21, struct.pack("<IHB", 0, 4, 0) + folder + b"/q.bin") + _request(0x20, b"a/b"),
        _request(0x30, struct.pack("<II", 512, 4000)) + _request(0x31, struct.pack("<II", 0, 99)),
        _request(0x04, struct.pack("<I", 921600)) + _request(0x05) + _wait(510) + _wait(510),
        _request(0x29) + _request(0x03),
    ]
    # As it should be, an empty card, a failed read and a reset, and reads that fail from one on.
    ways = (b"\0\0", b"\x01\0", b"\x8a\x14", b"\x49\x01", b"\x48\x30")
    return [way + script for script in scripts for way in ways]


# --- fuzz_card.c's changes ------------------------------------------------------------------------


def _change(file: int, at: int, data: bytes) -> bytes:
    return struct.pack("<BHB", file, at, len(data)) + data


def _cards() -> list[bytes]:
    changes = [
        b"",
        _change(0, 44, b"\x08\0\0\0"),  # context
        _change(0, 56, bytes(8)),  # eps
        _change(0, 100, b"?"),  # fingerprint
        _change(0, 192, b"\xff\xff"),  # a file's size
        _change(0, 1000, b""),
        _change(1, 12, b"\x0e"),  # the tokenizer's vocabulary
        _change(1, 40, b"\xff"),
        _change(1, 7000, b""),
        _change(2, 3000, b"\x55"),
        _change(5, 5000, b"\0"),
        _change(6, 4, b"\xff\xff\xff\xff"),  # a slot's sequence
        _change(7, 8, b"\x12\x34"),
        _change(6, 63, b"") + _change(7, 70, b"1"),
    ]
    hows = (b"\x02\xff", b"\x07\xff", b"\x07\x80", b"\x01\x60")
    words = [_change(0, at, word) for at in range(4, 96, 4) for word in (b"\xff\xff", b"\xff" * 4)]
    return [how + change for change in changes for how in hows] + [b"\2\xff" + w for w in words]
