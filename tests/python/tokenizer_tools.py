"""What the tokenizer's tests share: the C code behind cffi, vocabularies, texts."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cffi
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from host.tokenizer import Piece, PieceType, TokenizerSpec
from host.tokenizer.spec import SPACE

TINYLLM = Path(__file__).resolve().parents[2] / "firmware" / "lib" / "tinyllm"
TOKENIZER_C = TINYLLM / "tokenizer.c"
E_ARG, E_FORMAT, E_VERSION, E_UTF8, E_TOO_LONG, E_LIMIT = -1, -2, -3, -10, -11, -12

# Runs of spaces, U+2581 itself, combining marks, joined emoji, controls, what looks like a special
# piece, all four lengths of UTF-8 and the ends of their ranges.
FRAGMENTS = (
    *(" ", " ", "  ", "     ", "\u2581", "\u2581\u2581", "\u3000", "\u00a0", "\u200b", "\ufeff"),
    *("\0", "\t", "\n", "\r\n", "\x1b", "\x7f", "\u0085", "\u2028"),
    *("<s>", "</s>", "<unk>", "<0x0A>", "<0x", "\n<s>\n", " \u2047 ", "\ufffd"),
    *("e\u0301", "\u0301", "n\u0303o", "\u1100\u1161", "\u05d0\u05b8", "\u202e"),
    *("\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "\U0001f1e9"),
    *("\u007f", "\u0080", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff", "\U00010000"),
    *("\U0010ffff", "\u65e5\u672c\u8a9e", "\u043f\u0440\u0438\u0432\u0435\u0442", "stra\u00dfe"),
    *("the", " Once", "upon", "Lily", "ing", "'s", '"', "...", "1234", "aaaa", "ababab", "Hello"),
)


def random_texts(seed: int, count: int) -> list[str]:
    """Short texts of fragments, letters and any characters at all."""
    rng = random.Random(seed)

    def piece() -> str:
        kind = rng.random()
        if kind < 0.5:
            return rng.choice(FRAGMENTS)
        if kind < 0.8:
            return rng.choice("abcdefghijklmnopqrstuvwxyzABCTHE .,!?0123456789")
        code = rng.choice((0x100, 0x3000, 0x10000, 0x110000))
        code = rng.randrange(code)
        return chr(code) if not 0xD800 <= code < 0xE000 else "\u2581"

    return ["".join(piece() for _ in range(rng.randrange(1, 24))) for _ in range(count)]


def random_ids(seed: int, count: int, spec: TokenizerSpec) -> list[list[int]]:
    """Short sequences of tokens: bytes that rarely are UTF-8, control pieces, unk, all others."""
    rng = random.Random(seed)
    special = [i for i, p in enumerate(spec.pieces) if p.type != PieceType.BYTE][:8]
    spaced = [i for i, p in enumerate(spec.pieces) if p.text.startswith(SPACE.encode())]
    lead = [i for i in spec.byte_ids[0xC0:] if i >= 0] or special
    tail = [i for i in spec.byte_ids[0x80:0xC0] if i >= 0] or special

    def token() -> int:
        kind = rng.random()
        for bound, ids in ((0.1, special), (0.25, spaced), (0.4, lead), (0.65, tail)):
            if kind < bound:
                return rng.choice(ids)
        return rng.randrange(spec.vocab_size)

    return [[token() for _ in range(rng.randrange(1, 16))] for _ in range(count)]


# --- The oracle -----------------------------------------------------------------------------------


def model_proto(spec: TokenizerSpec) -> Any:
    """SentencePiece's own model of a vocabulary, with a score for each rank."""
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for text, kind, rank in spec.pieces:
        proto.pieces.add(piece=text.decode(), type=int(kind), score=-float(rank))
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = spec.byte_fallback
    proto.trainer_spec.vocab_size = spec.vocab_size
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = spec.add_prefix_space
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto


def processor_of(spec: TokenizerSpec) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=model_proto(spec).SerializeToString())


def without_bytes(spec: TokenizerSpec) -> TokenizerSpec:
    pieces = tuple(piece for piece in spec.pieces if piece.type != PieceType.BYTE)
    return replace(spec, pieces=pieces, byte_fallback=False)


def with_ties(spec: TokenizerSpec) -> TokenizerSpec:
    """The same pieces with a quarter of the ranks, so that place decides often."""
    pieces = tuple(Piece(text, kind, rank // 4) for text, kind, rank in spec.pieces)
    return replace(spec, pieces=pieces)


def small_spec(texts: Iterable[str], *, byte_fallback: bool = False) -> TokenizerSpec:
    """A vocabulary of these pieces, the earlier the smaller its rank."""
    pieces = [Piece(b"<unk>", PieceType.UNKNOWN)]
    pieces += [Piece(text, PieceType.CONTROL) for text in (b"<s>", b"</s>")]
    if byte_fallback:
        pieces += [Piece(b"<0x%02X>" % value, PieceType.BYTE) for value in range(256)]
    pieces += [Piece(text.encode(), PieceType.NORMAL, rank) for rank, text in enumerate(texts)]
    return TokenizerSpec(tuple(pieces), unk=0, bos=1, eos=2, byte_fallback=byte_fallback)


# --- The C code -----------------------------------------------------------------------------------


def declarations() -> str:
    """The tokenizer's part of tinyllm.h, without what cffi cannot read."""
    header = (TINYLLM / "tinyllm.h").read_text(encoding="utf-8")
    start, end = header.index("struct tllm_tokenizer {"), header.index("/* ---- session")
    part = header[start:end].replace("TLLM_MUST_CHECK", "")
    return re.sub(r"/\*.*?\*/", "", part, flags=re.DOTALL)


class CTokenizer:
    """The device's tokenizer, its file at an odd address and its buffers just large enough."""

    def __init__(self, library: Path, data: bytes) -> None:
        self.ffi = cffi.FFI()
        self.ffi.cdef(declarations())
        self.lib: Any = self.ffi.dlopen(str(library))
        self._data = self.ffi.new("uint8_t[]", b"\0" + data)
        self._tokenizer = self.ffi.new("struct tllm_tokenizer *")
        self.status = self.lib.tllm_tokenizer_init(self._tokenizer, self._data + 1, len(data))
        self.room = self._tokenizer.longest + 14

    def encode(self, text: str | bytes, max_out: int | None = None) -> list[int]:
        """Returns the ids.

        Raises:
            ValueError: With the error code.
        """
        data = text.encode() if isinstance(text, str) else text
        size = self.lib.tllm_encode_scratch(len(data))
        room = 4 * len(data) + 3 if max_out is None else max_out
        out = self.ffi.new("uint32_t[]", room)
        scratch = self.ffi.new("uint32_t[]", size // 4)
        count = self.lib.tllm_encode(self._tokenizer, data, len(data), out, room, scratch, size)
        if count < 0:
            raise ValueError(count)
        return list(self.ffi.unpack(out, count)) if count else []

    def encode_status(self, text: bytes, room: int, scratch: Any, size: int) -> int:
        out = self.ffi.new("uint32_t[]", room)
        return int(self.lib.tllm_encode(self._tokenizer, text, len(text), out, room, scratch, size))

    def stream(self, ids: Sequence[int], at_start: bool = True) -> list[str]:
        """Returns the text of each token, each whole UTF-8, and of the end."""
        decoder = self.ffi.new("struct tllm_decoder *")
        self.lib.tllm_decode_start(decoder, self._tokenizer, at_start)
        out = self.ffi.new("char[]", self.room)
        sizes, parts = [], []
        for token in ids:
            sizes.append(self.lib.tllm_decode(decoder, token, out, self.room))
            parts.append(bytes(self.ffi.buffer(out, max(sizes[-1], 0))))
        sizes.append(self.lib.tllm_decode_end(decoder, out, self.room))
        parts.append(bytes(self.ffi.buffer(out, max(sizes[-1], 0))))
        if min(sizes) < 0:
            raise ValueError(min(sizes))
        return [part.decode() for part in parts]

    def decode(self, ids: Sequence[int], at_start: bool = True) -> str:
        return "".join(self.stream(ids, at_start))
