"""The facts of a SentencePiece-BPE tokenizer, and the checks that every source of them passes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from host.errors import InputError

SPACE = "\u2581"
"""What stands for a space in pieces."""
MAX_VOCAB = 131072
MAX_PIECE_BYTES = 1008
"""What the board holds of one token's text; reading takes time in the square of it."""
MAX_RANK = 0xFFFFFFFF
NO_ID = -1


class PieceType(IntEnum):
    """SentencePiece's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    BYTE = 6


class Piece(NamedTuple):
    """One entry of the vocabulary.

    Attributes:
        text: UTF-8, a space being U+2581.
        type: What it is used for.
        rank: Order of merges, the smaller first; 0 where nothing merges into this piece.
    """

    text: bytes
    type: PieceType = PieceType.NORMAL
    rank: int = 0


@dataclass(frozen=True)
class TokenizerSpec:
    """A SentencePiece-BPE tokenizer without normalisation.

    Attributes:
        pieces: The vocabulary; a piece's index is its id.
        unk: Id of the unknown piece.
        bos: Id of the piece that begins a text, -1 for none.
        eos: Id of the piece that ends a text, -1 for none.
        add_prefix_space: Whether a text that is not empty is read with a space in front.
        byte_fallback: Whether a character without a piece becomes the pieces of its UTF-8 bytes.
        add_bos: Whether the model was trained with `bos` in front of each text.

    Raises:
        InputError: The facts contradict each other or are beyond what the format holds.
    """

    pieces: tuple[Piece, ...]
    unk: int
    bos: int = NO_ID
    eos: int = NO_ID
    add_prefix_space: bool = True
    byte_fallback: bool = True
    add_bos: bool = True

    def __post_init__(self) -> None:
        _check(self)

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return len(self.pieces)

    @property
    def byte_ids(self) -> tuple[int, ...]:
        """The id of each byte's piece, -1 for none; 256 of them."""
        ids = [NO_ID] * 256
        for index, piece in enumerate(self.pieces):
            if piece.type is PieceType.BYTE:
                ids[byte_value(piece.text)] = index
        return tuple(ids)

    def to_bin(self) -> bytes:
        """Returns the content of `tokenizer.bin` (docs/FORMAT.md)."""
        from host.tokenizer.binary import write_binary

        return write_binary(self)

    @classmethod
    def from_bin(cls, data: bytes, name: str = "tokenizer.bin") -> TokenizerSpec:
        """Reads the content of a `tokenizer.bin`, trusting nothing in it.

        Args:
            data: The whole file.
            name: What to call it in an error.

        Raises:
            InputError: It is not such a file, or is damaged.
        """
        from host.tokenizer.binary import read_binary

        return read_binary(data, name)


def byte_piece(value: int) -> bytes:
    """Returns the text of a byte's piece."""
    return b"<0x%02X>" % value


BYTE_VALUES = {byte_piece(value): value for value in range(256)}


def byte_value(text: bytes) -> int:
    """Returns the byte that a piece's text names, or -1 if it names none."""
    return BYTE_VALUES.get(text, NO_ID)


def check_size(index: int, size: int) -> None:
    """Checks a piece's size.

    Args:
        index: The piece's place.
        size: Its bytes.

    Raises:
        InputError: It is empty, or beyond what a board holds.
    """
    if not 1 <= size <= MAX_PIECE_BYTES:
        raise _refuse(f"piece {index} is {size} bytes long, and 1 to {MAX_PIECE_BYTES} are allowed")


def dense_ranks(keys: dict[str, float]) -> dict[str, int]:
    """Ranks the pieces that a merge can make.

    SentencePiece merges neighbours whose concatenation is a piece. A neighbour is a single
    character or a piece, so a piece that no two of these make up is never looked at.

    Args:
        keys: Of every normal piece its place in the order of merges, the smallest first.

    Returns:
        0, 1, 2 ... by key, equal for equal keys; 0 for pieces that nothing merges into.
    """
    mergeable = {text: key for text, key in keys.items() if any(splits(text, keys))}
    rank_of = {key: rank for rank, key in enumerate(sorted(set(mergeable.values())))}
    return {text: rank_of[mergeable[text]] if text in mergeable else 0 for text in keys}


def splits(text: str, normal: dict[str, float]) -> Iterable[tuple[str, str]]:
    """Yields the pairs of neighbours that SentencePiece would merge into a piece."""
    for cut in range(1, len(text)):
        left, right = text[:cut], text[cut:]
        if (cut == 1 or left in normal) and (cut == len(text) - 1 or right in normal):
            yield left, right


def _refuse(reason: str) -> InputError:
    return InputError(f"The tokenizer cannot be used: {reason}", "Get the tokenizer's file again")


def _check(spec: TokenizerSpec) -> None:
    count = len(spec.pieces)
    if not 1 <= count <= MAX_VOCAB:
        raise _refuse(f"it has {count} pieces, and 1 to {MAX_VOCAB} are supported")
    byte_pieces: set[bytes] = set()
    for index, (text, kind, rank) in enumerate(spec.pieces):
        check_size(index, len(text))
        if not 0 <= rank <= MAX_RANK:
            raise _refuse(f"piece {index} has the rank {rank}")
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            raise _refuse(f"piece {index} is not valid UTF-8") from None
        if kind is PieceType.UNKNOWN and index != spec.unk:
            raise _refuse(f"piece {index} is of type unknown, and unk is {spec.unk}")
        if kind is PieceType.BYTE:
            if byte_value(text) < 0:
                raise _refuse(f"piece {index} is of type byte and names none")
            if text in byte_pieces:
                raise _refuse(f"piece {index} is a second piece for the byte {text.decode()}")
            byte_pieces.add(text)
    if not (0 <= spec.unk < count and spec.pieces[spec.unk].type is PieceType.UNKNOWN):
        raise _refuse("it has no unknown piece")
    for role, token in (("BOS", spec.bos), ("EOS", spec.eos)):
        if token == NO_ID:
            continue
        if not (0 <= token < count and spec.pieces[token].type is PieceType.CONTROL):
            raise _refuse(f"its {role} token {token} is not a control piece")
    if spec.add_bos and spec.bos == NO_ID:
        raise _refuse("it begins texts with BOS and has no such piece")
    if len(byte_pieces) != (256 if spec.byte_fallback else 0):
        wanted = "all 256" if spec.byte_fallback else "none"
        raise _refuse(f"it has {len(byte_pieces)} byte pieces where {wanted} are wanted")
