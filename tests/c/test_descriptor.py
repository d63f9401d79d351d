"""descriptor.bin is read as docs/FORMAT.md says, and nothing wrong in it is let through."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
from tiny_model import Shape, make_model

FORMAT, VERSION, CRC, LIMIT, ARG = -2, -3, -4, -12, -1
MODEL = make_model(Shape(layers=1))
GOOD = MODEL.descriptor()
FILES = 160
TENSORS = FILES + 48 * len(MODEL.files)


def parse(library: tuple[Any, Any], data: bytes, slack: int = 0) -> Any:
    """(error, model, what must stay alive) of a descriptor."""
    ffi, lib = library
    buffer = ffi.from_buffer(data)
    size = lib.tllm_descriptor_storage(buffer, len(data))
    if size < 0:
        return size, None, None
    storage = ffi.new("uint64_t[]", size // 8 + 2)
    model = ffi.new("struct tllm_model *")
    error = lib.tllm_descriptor_parse(buffer, len(data), model, storage, size + slack)
    return error, model, storage


def with_crc(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def patched(offset: int, form: str, value: Any) -> bytes:
    data = bytearray(GOOD)
    struct.pack_into(form, data, offset, value)
    return with_crc(bytes(data))


def test_every_field_arrives(library: tuple[Any, Any]) -> None:
    ffi, _ = library
    error, m, _storage = parse(library, GOOD)
    assert error == 0
    dimensions = (m.vocab, m.hidden, m.layers, m.heads, m.kv_heads, m.head_dim, m.ffn, m.context)
    assert dimensions == MODEL.shape.words()
    assert (m.bos, m.eos, m.add_bos, m.tokenizer_file) == (1, 2, True, len(MODEL.files) - 1)
    assert ffi.string(m.name) == b"tiny"
    assert bytes(m.fingerprint) == bytes(range(32))
    assert m.eps_m * 2.0**m.eps_e == pytest.approx(1e-5, rel=1e-6)
    assert m.attn_scale.m * 2.0**m.attn_scale.e == pytest.approx(1.4426950409 / 6**0.5)
    chunk = 0
    for i, (name, data) in enumerate(MODEL.files):
        f = m.files[i]
        found = (ffi.string(f.name).decode(), f.size, f.first_crc, f.crc)
        assert found == (name, len(data), chunk, zlib.crc32(data))
        assert m.crcs[chunk] == zlib.crc32(data[:4096])
        chunk += -(-len(data) // 4096)
    for i, tensor in enumerate(MODEL.tensors):
        t = m.tensors[i]
        assert (t.file, t.rows, t.cols, t.offset) == (i, *tensor.data.shape, 0)
        assert (t.scale.m, t.scale.e) == (tensor.m, tensor.e)
    assert m.rope_freq[0] == round(2**32 / 6.283185307179586)


def test_cut_after_any_byte_or_longer_it_is_refused(library: tuple[Any, Any]) -> None:
    for n in range(len(GOOD)):
        assert parse(library, GOOD[:n])[0] == FORMAT
    assert parse(library, GOOD + b"\0")[0] == FORMAT


def test_any_bit_flipped_is_noticed(library: tuple[Any, Any]) -> None:
    for i in range(len(GOOD)):
        data = bytearray(GOOD)
        data[i] ^= 1 << (i % 8)
        assert parse(library, bytes(data))[0] < 0


@pytest.mark.parametrize(
    ("offset", "form", "value", "error"),
    [
        (0, "<4s", b"TTOK", FORMAT),
        (4, "<H", 2, VERSION),
        (6, "<H", 164, FORMAT),
        (12, "<I", 3, FORMAT),
        (16, "<I", 0, LIMIT),
        (16, "<I", 131073, LIMIT),
        (20, "<I", 32769, LIMIT),
        (24, "<I", 1001, LIMIT),
        (24, "<I", 2, FORMAT),  # tensors for one
        (28, "<I", 0, LIMIT),
        (28, "<I", 0x80000001, LIMIT),
        (32, "<I", 3, FORMAT),  # does not divide 4
        (32, "<I", 0, LIMIT),
        (36, "<I", 7, FORMAT),
        (36, "<I", 258, FORMAT),  # rope table for 6
        (40, "<I", 65537, LIMIT),
        (44, "<I", 65536, LIMIT),
        (48, "<i", 97, FORMAT),
        (48, "<i", -1, FORMAT),  # none, and add_bos
        (52, "<i", -2, FORMAT),
        (56, "<I", 1 << 29, FORMAT),
        (60, "<i", -3, FORMAT),
        (60, "<i", -202, FORMAT),
        (64, "<I", 1 << 22, FORMAT),
        (68, "<i", 201, FORMAT),
        (72, "<I", 0xFFFFFFFF, FORMAT),
        (76, "<I", 0xFFFFFFFF, FORMAT),
        (84, "<I", 0xFFFFFFFF, FORMAT),
        (88, "<I", 8192, FORMAT),
        (92, "<I", 99, FORMAT),
        (92, "<I", 65536, FORMAT),
        (159, "<B", 65, FORMAT),  # a name without an end
        (FILES, "<B", ord("."), FORMAT),
        (FILES, "<B", ord("/"), FORMAT),
        (FILES, "<B", 0, FORMAT),
        (FILES, "<32s", b"a" * 32, FORMAT),
        (FILES + 32, "<I", 97 * 24 - 1, FORMAT),  # shorter than its tensor
        (FILES + 32, "<I", 0xFFFFFFFF, FORMAT),
        (FILES + 36, "<I", 1, FORMAT),
        (FILES + 44, "<I", 1, FORMAT),
        (TENSORS, "<H", 500, FORMAT),
        (TENSORS + 2, "<B", 2, FORMAT),
        (TENSORS + 3, "<B", 1, FORMAT),
        (TENSORS + 4, "<I", 98, FORMAT),
        (TENSORS + 8, "<I", 0, FORMAT),
        (TENSORS + 12, "<I", 1, FORMAT),
        (TENSORS + 12, "<I", 0xFFFFFFFF, FORMAT),
        (TENSORS + 16, "<I", 1 << 24, FORMAT),
        (TENSORS + 20, "<i", -201, FORMAT),
        (TENSORS + 24, "<I", 1, FORMAT),
        (TENSORS + 32 + 16, "<I", (1 << 23) + 1, FORMAT),  # a norm's scale is a power of two
    ],
)
def test_wrong_facts_are_refused(
    library: tuple[Any, Any], offset: int, form: str, value: Any, error: int
) -> None:
    assert parse(library, patched(offset, form, value))[0] == error


def test_storage_is_exact_and_aligned(library: tuple[Any, Any]) -> None:
    ffi, lib = library
    assert parse(library, GOOD, slack=-1)[0] == ARG
    size = lib.tllm_descriptor_storage(ffi.from_buffer(GOOD), 160)
    storage = ffi.new("uint64_t[]", size // 8 + 2)
    unaligned = ffi.cast("uint8_t *", storage) + 4
    model = ffi.new("struct tllm_model *")
    assert (
        lib.tllm_descriptor_parse(ffi.from_buffer(GOOD), len(GOOD), model, unaligned, size) == ARG
    )
