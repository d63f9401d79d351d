"""Reads llama2.c's tokenizer `.bin`, which its tokenizer.py exports from a SentencePiece model.

i32 longest piece; then for each piece f32 score, i32 length, its bytes, spaces as themselves. The
first 259 pieces are fixed: unknown, BOS, EOS, the 256 bytes.
"""

from __future__ import annotations

import math
import struct

from host.errors import InputError
from host.tokenizer.spec import (
    MAX_PIECE_BYTES,
    SPACE,
    Piece,
    PieceType,
    TokenizerSpec,
    byte_piece,
    dense_ranks,
)

_UNK, _BOS, _EOS = 0, 1, 2
_SPECIALS = (
    (_UNK, {"<unk>"}, "<unk>", PieceType.UNKNOWN),
    (_BOS, {"\n<s>\n", "<s>"}, "<s>", PieceType.CONTROL),
    (_EOS, {"\n</s>\n", "</s>"}, "</s>", PieceType.CONTROL),
)
_FIRST_BYTE = 3
_FIRST_NORMAL = _FIRST_BYTE + 256
_ENTRY = struct.Struct("<fi")


def read_llama2c(data: bytes, name: str) -> TokenizerSpec:
    """Reads a llama2.c tokenizer.

    Args:
        data: The whole file.
        name: What to call it in an error.

    Raises:
        InputError: The file is truncated or not of this format.
    """

    def wrong(reason: str) -> InputError:
        return InputError(f"{name} is not a llama2.c tokenizer: {reason}", "Get the file again")

    if len(data) < 4:
        raise wrong(f"it has {len(data)} bytes")
    (longest,) = struct.unpack_from("<i", data)
    if not 1 <= longest <= MAX_PIECE_BYTES:
        raise wrong(f"it states that its longest piece has {longest} bytes")
    texts: list[str] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        index = len(texts)
        if at + _ENTRY.size > len(data):
            raise wrong(f"it breaks off in piece {index}")
        score, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        if not 1 <= length <= longest:
            raise wrong(f"piece {index} is {length} bytes long")
        if at + length > len(data):
            raise wrong(f"it breaks off in piece {index}")
        if not math.isfinite(score):
            raise wrong(f"piece {index} has the score {score}")
        try:
            texts.append(data[at : at + length].decode("utf-8"))
        except UnicodeDecodeError:
            raise wrong(f"piece {index} is not valid UTF-8") from None
        scores.append(score)
        at += length
    if len(texts) < _FIRST_NORMAL:
        raise wrong(f"it has {len(texts)} pieces, and {_FIRST_NORMAL} are there in each")

    pieces = []
    for index, known, text, kind in _SPECIALS:
        if texts[index] not in known:
            raise wrong(f"piece {index} is not {text}")
        pieces.append(Piece(text.encode(), kind))
    for value in range(256):
        if texts[_FIRST_BYTE + value].encode() != byte_piece(value):
            raise wrong(f"piece {_FIRST_BYTE + value} is not {byte_piece(value).decode()}")
        pieces.append(Piece(byte_piece(value), PieceType.BYTE))
    normal: dict[str, float] = {}
    spaced = [text.replace(" ", SPACE) for text in texts[_FIRST_NORMAL:]]
    for text, score in zip(spaced, scores[_FIRST_NORMAL:], strict=True):
        normal.setdefault(text, -score)
    ranks = dense_ranks(normal)
    pieces += [Piece(text.encode(), PieceType.NORMAL, ranks[text]) for text in spaced]
    return TokenizerSpec(tuple(pieces), unk=_UNK, bos=_BOS, eos=_EOS)
