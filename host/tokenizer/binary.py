"""`tokenizer.bin`, the tokenizer as the device reads it in place (docs/FORMAT.md)."""

from __future__ import annotations

import struct

from host.errors import InputError
from host.tokenizer.spec import (
    MAX_VOCAB,
    NO_ID,
    Piece,
    PieceType,
    TokenizerSpec,
)

MAGIC = b"TTOK"
VERSION = 1
EMPTY = 0xFFFFFFFF
MAX_RUN = 1024
"""Most used slots in a row: what a look-up costs at worst."""

_HEADER = struct.Struct("<4sHHIIIIIiiiI20x")
_PIECE = struct.Struct("<IHBxI")
_PREFIX_SPACE, _BYTE_FALLBACK, _ADD_BOS = 1, 2, 4
_TYPES = {int(kind): kind for kind in PieceType}


def fnv1a(data: bytes) -> int:
    """FNV-1a, 32 bits (Fowler, Noll, Vo)."""
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def write_binary(spec: TokenizerSpec) -> bytes:
    """Returns the content of `tokenizer.bin`; the same spec gives the same bytes."""
    strings = b"".join(piece.text for piece in spec.pieces)
    slots = _hash_table(spec)
    pieces = bytearray()
    offset = 0
    for text, kind, rank in spec.pieces:
        pieces += _PIECE.pack(offset, len(text), kind, rank)
        offset += len(text)
    byte_ids = [EMPTY if index == NO_ID else index for index in spec.byte_ids]
    total = _HEADER.size + len(pieces) + 4 * len(slots) + 4 * 256 + len(strings)
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        _HEADER.size,
        total,
        spec.vocab_size,
        len(slots),
        len(strings),
        _PREFIX_SPACE * spec.add_prefix_space
        | _BYTE_FALLBACK * spec.byte_fallback
        | _ADD_BOS * spec.add_bos,
        spec.bos,
        spec.eos,
        spec.unk,
        max(len(piece.text) for piece in spec.pieces),
    )
    table = struct.pack(f"<{len(slots)}I", *slots)
    return header + bytes(pieces) + table + struct.pack("<256I", *byte_ids) + strings


def read_binary(data: bytes, name: str) -> TokenizerSpec:
    """Reads what `write_binary` wrote, checking all of it.

    Args:
        data: The whole file.
        name: What to call it in an error.

    Raises:
        InputError: It is not such a file, is of another version, or is damaged.
    """

    def damaged(reason: str) -> InputError:
        return InputError(f"{name} is damaged: {reason}", "Make the package again")

    if len(data) < _HEADER.size:
        raise damaged(f"{len(data)} bytes are less than its header")
    magic, version, header_size, total, count, n_slots, n_strings, flags, *rest = (
        _HEADER.unpack_from(data)
    )
    bos, eos, unk, longest = rest
    if magic != MAGIC:
        raise InputError(f"{name} is not a tokenizer.bin", "Make the package again")
    if version != VERSION or header_size != _HEADER.size:
        raise InputError(
            f"{name} has the format version {version}, and this program knows {VERSION}",
            "Make the package again, or install the newer program",
        )
    if not 1 <= count <= MAX_VOCAB:
        raise damaged(f"it states {count} pieces")
    if n_slots <= count or n_slots & (n_slots - 1) or n_slots > 8 * MAX_VOCAB:
        raise damaged(f"it states {n_slots} slots for {count} pieces")
    if total != len(data):
        raise damaged(f"it is {len(data)} bytes long and states {total}")
    slots_at = _HEADER.size + _PIECE.size * count
    byte_ids_at = slots_at + 4 * n_slots
    strings_at = byte_ids_at + 4 * 256
    if strings_at + n_strings != total:
        raise damaged("its sizes do not add up")
    if flags & ~(_PREFIX_SPACE | _BYTE_FALLBACK | _ADD_BOS) or any(data[44 : _HEADER.size]):
        raise damaged("bits that should be 0 are set")

    pieces = []
    for index, (offset, length, kind, rank) in enumerate(
        _PIECE.iter_unpack(data[_HEADER.size : slots_at])
    ):
        if kind not in _TYPES:
            raise damaged(f"piece {index} has the type {kind}")
        if offset + length > n_strings or data[_HEADER.size + _PIECE.size * index + 7]:
            raise damaged(f"piece {index} lies outside the strings")
        start = strings_at + offset
        pieces.append(Piece(data[start : start + length], _TYPES[kind], rank))
    if longest != max(len(piece.text) for piece in pieces):
        raise damaged(f"its longest piece is not {longest} bytes long")
    try:
        spec = TokenizerSpec(
            tuple(pieces),
            unk=unk,
            bos=bos,
            eos=eos,
            add_prefix_space=bool(flags & _PREFIX_SPACE),
            byte_fallback=bool(flags & _BYTE_FALLBACK),
            add_bos=bool(flags & _ADD_BOS),
        )
    except InputError as error:
        raise InputError(f"{name} is damaged. {error.message}", "Make the package again") from None
    byte_ids = [EMPTY if index == NO_ID else index for index in spec.byte_ids]
    if list(struct.unpack_from("<256I", data, byte_ids_at)) != byte_ids:
        raise damaged("its table of bytes does not lead to the byte pieces")
    slots = struct.unpack_from(f"<{n_slots}I", data, slots_at)
    if fault := _fault_of_table(spec, slots):
        raise damaged(fault)
    return spec


def _normal(spec: TokenizerSpec) -> dict[bytes, int]:
    """The normal pieces, each string with the lowest id that has it."""
    found: dict[bytes, int] = {}
    for index, piece in enumerate(spec.pieces):
        if piece.type is PieceType.NORMAL:
            found.setdefault(piece.text, index)
    return found


def _hash_table(spec: TokenizerSpec) -> list[int]:
    size = 1
    while size <= spec.vocab_size * 3 // 2:
        size *= 2
    hashed = [(fnv1a(text), index) for text, index in _normal(spec).items()]
    while True:
        slots = [EMPTY] * size
        for value, index in hashed:
            slot = value % size
            while slots[slot] != EMPTY:
                slot = (slot + 1) % size
            slots[slot] = index
        if _longest_run(slots) <= MAX_RUN:
            return slots
        if size >= 8 * MAX_VOCAB:
            raise InputError(
                "The tokenizer cannot be used: too many of its pieces have the same hash",
                "Use another model",
            )
        size *= 2


def _longest_run(slots: list[int] | tuple[int, ...]) -> int:
    """Most used slots in a row, going round the end; needs one empty slot."""
    longest = run = 0
    first_empty = slots.index(EMPTY)
    for slot in (*slots[first_empty:], *slots[:first_empty]):
        run = 0 if slot == EMPTY else run + 1
        longest = max(longest, run)
    return longest


def _fault_of_table(spec: TokenizerSpec, slots: tuple[int, ...]) -> str:
    if EMPTY not in slots or _longest_run(slots) > MAX_RUN:
        return "its hash table is too full"
    for index in slots:
        if index != EMPTY and not (
            index < spec.vocab_size and spec.pieces[index].type is PieceType.NORMAL
        ):
            return f"its hash table names the piece {index}"
    for text, wanted in _normal(spec).items():
        slot = fnv1a(text) % len(slots)
        while slots[slot] != EMPTY and spec.pieces[slots[slot]].text != text:
            slot = (slot + 1) % len(slots)
        if slots[slot] != wanted:
            return f"its hash table does not lead to the piece {wanted}"
    return ""
