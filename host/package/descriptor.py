"""`descriptor.bin`: a model's facts as the engine reads them (docs/FORMAT.md)."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from host.errors import InputError
from host.package.facts import FileEntry, ModelFacts, Scale, TensorEntry, check_facts
from host.package.layout import CHUNK_BYTES, DESCRIPTOR, DType

MAGIC = b"TLLM"
VERSION = 1
_HEADER = struct.Struct("<4sHHII8IiiIiIi4III32s32s")
_FILE = struct.Struct("<32s4I")
_TENSOR = struct.Struct("<HBB4Ii2I")
_CRC = struct.Struct("<I")
_ADD_BOS = 1
_REMEDY = "Make the package again"


def pack_descriptor(model: ModelFacts) -> bytes:
    """Returns the content of `descriptor.bin`; the same facts give the same bytes.

    Raises:
        InputError: The facts are not valid.
    """
    check_facts(model)
    body = b"".join(
        (
            *(
                _FILE.pack(file.name.encode(), file.size, file.first_crc, file.crc32, 0)
                for file in model.files
            ),
            *(
                _TENSOR.pack(
                    tensor.file,
                    tensor.dtype,
                    0,
                    tensor.rows,
                    tensor.cols,
                    tensor.offset,
                    tensor.scale.m,
                    tensor.scale.e,
                    0,
                    0,
                )
                for tensor in model.tensors
            ),
            model.rope_freq.astype("<u4").tobytes(),
            model.crcs.astype("<u4").tobytes(),
        )
    )
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        _HEADER.size,
        _HEADER.size + len(body) + _CRC.size,
        _ADD_BOS * model.add_bos,
        model.vocab,
        model.hidden,
        model.layers,
        model.heads,
        model.kv_heads,
        model.head_dim,
        model.ffn,
        model.context,
        model.bos,
        model.eos,
        model.eps_m,
        model.eps_e,
        model.attn_scale.m,
        model.attn_scale.e,
        len(model.files),
        len(model.tensors),
        len(model.rope_freq),
        len(model.crcs),
        CHUNK_BYTES,
        model.tokenizer_file,
        model.fingerprint,
        model.name.encode(),
    )
    return header + body + _CRC.pack(zlib.crc32(header + body))


def parse_descriptor(data: bytes, name: str = DESCRIPTOR) -> ModelFacts:
    """Reads the content of a `descriptor.bin`, trusting nothing in it.

    Args:
        data: The whole file.
        name: What to call it in an error.

    Raises:
        InputError: It is not a descriptor, is of another version, is damaged, or states what the
            engine does not support.
    """
    if len(data) < _HEADER.size + _CRC.size or data[:4] != MAGIC:
        raise InputError(f"{name} is not a model's descriptor", _REMEDY)
    header = _HEADER.unpack_from(data)
    _, version, header_bytes, total, flags, *rest = header
    vocab, hidden, layers, heads, kv_heads, head_dim, ffn, context, *rest = rest
    bos, eos, eps_m, eps_e, attn_m, attn_e, *rest = rest
    n_files, n_tensors, n_rope, n_crcs, chunk_bytes, tokenizer, fingerprint, model_name = rest
    if version != VERSION:
        raise InputError(
            f"{name} has the format version {version}, and this program knows {VERSION}",
            "Make the package again, or install the newer program",
        )
    if total != len(data):
        raise _damaged(name, f"it is {len(data)} bytes long and states {total}")
    if _CRC.unpack_from(data, total - _CRC.size)[0] != zlib.crc32(data[: -_CRC.size]):
        raise _damaged(name, "its checksum is wrong")
    files_at = _HEADER.size
    tensors_at = files_at + n_files * _FILE.size
    rope_at = tensors_at + n_tensors * _TENSOR.size
    crcs_at = rope_at + n_rope * 4
    if header_bytes != _HEADER.size or crcs_at + n_crcs * 4 + _CRC.size != total:
        raise _damaged(name, "its sizes do not add up")
    if chunk_bytes != CHUNK_BYTES or flags & ~_ADD_BOS or tokenizer != n_files - 1:
        raise _damaged(name, "its header has a value that this version does not allow")

    model = ModelFacts(
        name=_padded_text(model_name, name),
        fingerprint=fingerprint,
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        context=context,
        bos=bos,
        eos=eos,
        add_bos=bool(flags & _ADD_BOS),
        eps_m=eps_m,
        eps_e=eps_e,
        attn_scale=Scale(attn_m, attn_e),
        files=_files(data[files_at:tensors_at], name),
        tensors=_tensors(data[tensors_at:rope_at], name),
        rope_freq=np.frombuffer(data, "<u4", n_rope, rope_at).astype(np.uint32),
        crcs=np.frombuffer(data, "<u4", n_crcs, crcs_at).astype(np.uint32),
    )
    check_facts(model)
    return model


def _files(data: bytes, name: str) -> tuple[FileEntry, ...]:
    files = []
    for file_name, size, first_crc, crc32, zero in _FILE.iter_unpack(data):
        if zero:
            raise _damaged(name, "bits that should be 0 are set")
        files.append(FileEntry(_padded_text(file_name, name), size, first_crc, crc32))
    return tuple(files)


def _tensors(data: bytes, name: str) -> tuple[TensorEntry, ...]:
    tensors = []
    for file, dtype, pad, rows, cols, offset, m, e, *zeros in _TENSOR.iter_unpack(data):
        if pad or any(zeros):
            raise _damaged(name, "bits that should be 0 are set")
        if dtype not in (DType.INT8, DType.INT16):
            raise _damaged(name, f"a tensor is of type {dtype}")
        tensors.append(TensorEntry(file, DType(dtype), rows, cols, offset, Scale(m, e)))
    return tuple(tensors)


def _padded_text(field: bytes, name: str) -> str:
    text, _, padding = field.partition(b"\0")
    if len(text) == len(field) or any(padding):
        raise _damaged(name, "a name is not ended and padded with zeros")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged(name, "a name is not valid UTF-8") from None


def _damaged(name: str, reason: str) -> InputError:
    return InputError(f"{name} is damaged: {reason}", _REMEDY)
