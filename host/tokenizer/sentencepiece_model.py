"""Reads SentencePiece's `tokenizer.model`.

The file is one protobuf message, sentencepiece_model.proto's ModelProto. Of it some ten fields
matter, so that a bounded reader of the wire format stands here rather than two dependencies.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from host.errors import InputError
from host.strict_json import plain
from host.tokenizer.spec import (
    NO_ID,
    Piece,
    PieceType,
    TokenizerSpec,
    check_size,
    dense_ranks,
)

_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
_BPE = 2
_USER_DEFINED, _UNUSED = 4, 5
_UNK_SURFACE = " \u2047 "
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_Value = int | bytes
_Fields = dict[int, list[tuple[int, _Value]]]


def read_sentencepiece(data: bytes, name: str, add_bos: bool = True) -> TokenizerSpec:
    """Reads a model of type BPE that does not normalise text.

    Args:
        data: The whole file.
        name: What to call it in an error.
        add_bos: Whether the model wants its BOS in front of texts; the file does not say.

    Raises:
        InputError: The file is damaged or asks for what is not supported.
    """
    try:
        return _read(data, name, add_bos)
    except _DamagedError as error:
        raise InputError(
            f"{name} is not a whole SentencePiece model: {error}", "Get the file again"
        ) from None


class _DamagedError(Exception):
    pass


def _read(data: bytes, name: str, add_bos: bool) -> TokenizerSpec:
    model = _fields(data)
    trainer = _fields(b"".join(_all_bytes(model, 2)))
    normalizer = _fields(b"".join(_all_bytes(model, 3)))
    denormalizer = _fields(b"".join(_all_bytes(model, 5)))
    _refuse_unsupported(name, trainer, normalizer, denormalizer)

    texts, scores, kinds = [], [], []
    for index, message in enumerate(_all_bytes(model, 1)):
        piece = _fields(message)
        kind = _integer(piece, 3, PieceType.NORMAL)
        if kind == _USER_DEFINED:
            raise _unsupported(name, "user-defined pieces")
        if kind == _UNUSED:
            raise _unsupported(name, "unused pieces")
        if kind not in set(PieceType):
            raise _DamagedError(f"piece {index} has the type {kind}")
        score = _float(piece, 2)
        if not math.isfinite(score):
            raise _DamagedError(f"piece {index} has the score {score}")
        encoded = _bytes(piece, 1)
        check_size(index, len(encoded))
        try:
            texts.append(encoded.decode("utf-8"))
        except UnicodeDecodeError:
            raise _DamagedError(f"piece {index} is not valid UTF-8") from None
        scores.append(score)
        kinds.append(PieceType(kind))
    if not texts:
        raise _DamagedError("it has no pieces")

    normal: dict[str, float] = {}
    special: dict[str, int] = {}
    for index, (text, kind, score) in enumerate(zip(texts, kinds, scores, strict=True)):
        if text in normal or text in special:
            raise _DamagedError(f"piece {index} is defined twice")
        if kind == PieceType.NORMAL:
            normal[text] = -score
        elif len(text) == 1 and kind != PieceType.UNKNOWN:
            # SentencePiece would find it in text.
            raise _unsupported(name, "control pieces of a single character")
        else:
            special[text] = index
    ranks = dense_ranks(normal)

    def control(field: int, default: bytes) -> int:
        index = special.get(_bytes(trainer, field, default).decode("utf-8", "replace"), NO_ID)
        return index if index >= 0 and kinds[index] == PieceType.CONTROL else NO_ID

    bos = control(46, b"<s>")
    return TokenizerSpec(
        tuple(
            Piece(text.encode(), kind, ranks[text] if kind == PieceType.NORMAL else 0)
            for text, kind in zip(texts, kinds, strict=True)
        ),
        unk=kinds.index(PieceType.UNKNOWN) if PieceType.UNKNOWN in kinds else NO_ID,
        bos=bos,
        eos=control(47, b"</s>"),
        add_prefix_space=bool(_integer(normalizer, 3, 1)),
        byte_fallback=bool(_integer(trainer, 35, 0)),
        add_bos=add_bos and bos != NO_ID,
    )


def _refuse_unsupported(
    name: str, trainer: _Fields, normalizer: _Fields, denormalizer: _Fields
) -> None:
    model_type = _integer(trainer, 3, 1)
    if model_type != _BPE:
        raise _unsupported(name, f"model type {_MODEL_TYPES.get(model_type, model_type)}")
    if _integer(trainer, 24, 0):
        raise _unsupported(name, "treat_whitespace_as_suffix")
    if _bytes(trainer, 44, _UNK_SURFACE.encode()) != _UNK_SURFACE.encode():
        raise _unsupported(name, "an unk_surface of its own")
    if _bytes(normalizer, 2):
        rule = _bytes(normalizer, 1).decode("utf-8", "replace") or "unnamed"
        raise _unsupported(name, f"normalizer {plain(rule)}")
    if _integer(normalizer, 4, 1):
        raise _unsupported(name, "remove_extra_whitespaces")
    if not _integer(normalizer, 5, 1):
        raise _unsupported(name, "escape_whitespaces off")
    if _bytes(denormalizer, 2):
        raise _unsupported(name, "a denormalizer")


def _unsupported(name: str, what: str) -> InputError:
    return InputError(
        f"{name} has {what}, which is not supported",
        "Use a model with a SentencePiece-BPE tokenizer, such as Llama's",
    )


# --- The wire format (protobuf.dev/programming-guides/encoding) -----------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise _DamagedError(f"it breaks off, or has no number, at byte {at} of a message")


def _entries(data: bytes) -> Iterator[tuple[int, int, _Value]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        value: _Value
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire in (_FIXED64, _BYTES, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
            if wire == _BYTES:
                size, at = _varint(data, at)
            if size > len(data) - at:
                raise _DamagedError(f"it breaks off at byte {at} of a message")
            value = data[at : at + size]
            at += size
        else:
            raise _DamagedError(f"byte {at} of a message is of no known kind")
        if field == 0:
            raise _DamagedError(f"byte {at} of a message is of no known field")
        yield field, wire, value


def _fields(data: bytes) -> _Fields:
    found: _Fields = {}
    for field, wire, value in _entries(data):
        found.setdefault(field, []).append((wire, value))
    return found


def _last(fields: _Fields, field: int, wire: int) -> _Value | None:
    if field not in fields:
        return None
    found, value = fields[field][-1]
    if found != wire:
        raise _DamagedError(f"field {field} of a message is of the wrong kind")
    return value


def _integer(fields: _Fields, field: int, default: int) -> int:
    value = _last(fields, field, _VARINT)
    return value if isinstance(value, int) else default


def _bytes(fields: _Fields, field: int, default: bytes = b"") -> bytes:
    value = _last(fields, field, _BYTES)
    return value if isinstance(value, bytes) else default


def _float(fields: _Fields, field: int) -> float:
    value = _last(fields, field, _FIXED32)
    return float(struct.unpack("<f", value)[0]) if isinstance(value, bytes) else 0.0


def _all_bytes(fields: _Fields, field: int) -> list[bytes]:
    values = []
    for wire, value in fields.get(field, []):
        if wire != _BYTES or not isinstance(value, bytes):
            raise _DamagedError(f"field {field} of the file is of the wrong kind")
        values.append(value)
    return values
