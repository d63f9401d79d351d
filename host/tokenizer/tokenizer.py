"""The tokenizer itself, written from docs/FORMAT.md: what the device does, in Python."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from host.errors import InputError
from host.tokenizer.spec import NO_ID, SPACE, PieceType, TokenizerSpec, byte_value

UNKNOWN_TEXT = " \u2047 "
_REPLACEMENT = "\ufffd"
_CHARACTERS_A_TOKEN = 8  # a guess


class Tokenizer:
    """SentencePiece BPE without normalisation.

    Args:
        spec: The vocabulary and its rules.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec
        self._byte_ids = spec.byte_ids
        self._ids: dict[str, int] = {}
        for index, piece in enumerate(spec.pieces):
            if piece.type is PieceType.NORMAL:
                self._ids.setdefault(piece.text.decode(), index)
        self._ranks = {text: spec.pieces[index].rank for text, index in self._ids.items()}

    def encode(self, text: str | bytes) -> list[int]:
        """Returns the ids of a text, without BOS.

        Args:
            text: Any text; as bytes, UTF-8.

        Raises:
            InputError: It is not valid UTF-8.
        """
        try:
            checked = (text.encode() if isinstance(text, str) else text).decode()
        except UnicodeError:
            raise InputError("The text is not valid UTF-8", "Save it as UTF-8") from None
        if not checked:
            return []
        prefix = SPACE if self.spec.add_prefix_space else ""
        ids: list[int] = []
        unknown_before = False
        for symbol in self._merge(prefix + checked.replace(" ", SPACE)):
            index = self._ids.get(symbol, NO_ID)
            if index == NO_ID and self.spec.byte_fallback:
                ids.extend(self._byte_ids[byte] for byte in symbol.encode())
                continue
            if index != NO_ID or not unknown_before:
                ids.append(index if index != NO_ID else self.spec.unk)
            unknown_before = index == NO_ID
        return ids

    def encode_start(self, text: str, count: int) -> list[int]:
        """Returns the first ids of a text, at most `count`, looking at little more of it.

        Raises:
            InputError: It is not valid UTF-8.
        """
        size = _CHARACTERS_A_TOKEN * count
        while True:
            ids = self.encode(text[:size])
            if len(ids) > 2 * count or size >= len(text):
                return ids[:count]
            size *= 2

    def decode(self, ids: Iterable[int], at_start: bool = True) -> str:
        """Returns the text of some ids.

        Args:
            ids: Tokens.
            at_start: Whether they begin a text, so that its prefix space is left out.

        Raises:
            InputError: An id is not in the vocabulary.
        """
        decoder = Decoder(self.spec, at_start)
        return "".join(decoder.feed(index) for index in ids) + decoder.end()

    def _merge(self, text: str) -> list[str]:
        """Splits a text into characters and merges neighbours, the smallest rank first.

        A merged pair becomes its left member; an agenda entry whose members have changed since is
        known by the length it was made for.
        """
        symbols = list(text)
        count = len(symbols)
        before = list(range(-1, count - 1))
        after = list(range(1, count + 1))

        def pair(left: int, right: int) -> tuple[int, int, int, int] | None:
            if left < 0 or right >= count:
                return None
            both = symbols[left] + symbols[right]
            rank = self._ranks.get(both)
            return None if rank is None else (rank, left, right, len(both))

        agenda = [entry for left in range(count) if (entry := pair(left, left + 1))]
        heapify(agenda)
        while agenda:
            _, left, right, length = heappop(agenda)
            if not symbols[left] or not symbols[right]:
                continue
            if len(symbols[left]) + len(symbols[right]) != length:
                continue
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[left] < count:
                before[after[left]] = left
            for entry in (pair(before[left], left), pair(left, after[left])):
                if entry:
                    heappush(agenda, entry)
        return [symbol for symbol in symbols if symbol]


class Decoder:
    """Turns tokens into text one by one, in whole characters.

    Args:
        spec: The vocabulary and its rules.
        at_start: Whether the tokens begin a text, so that its prefix space is left out.
    """

    def __init__(self, spec: TokenizerSpec, at_start: bool = True) -> None:
        self._spec = spec
        self._strip = at_start and spec.add_prefix_space
        self._held = b""

    def feed(self, token: int) -> str:
        """Returns what is certain of the text once this token is known.

        Raises:
            InputError: The id is not in the vocabulary.
        """
        if not 0 <= token < self._spec.vocab_size:
            raise InputError(
                f"The token {token} is not in the vocabulary of {self._spec.vocab_size}",
                "Use the model that the tokens are from",
            )
        piece = self._spec.pieces[token]
        if piece.type is PieceType.BYTE:
            self._strip = False
            return self._feed_byte(byte_value(piece.text))
        held = self.end()
        if piece.type is PieceType.CONTROL:
            return held
        strip, self._strip = self._strip, False
        if piece.type is PieceType.UNKNOWN:
            return held + UNKNOWN_TEXT
        text = piece.text.decode()
        return held + (text.removeprefix(SPACE) if strip else text).replace(SPACE, " ")

    def end(self) -> str:
        """Returns what is still held, each byte of it as U+FFFD."""
        held, self._held = self._held, b""
        return _REPLACEMENT * len(held)

    def _feed_byte(self, value: int) -> str:
        self._held += bytes([value])
        text = ""
        while self._held and not _begins_character(self._held):
            if _is_utf8(self._held):
                text += self._held.decode()
                self._held = b""
            else:
                text += _REPLACEMENT
                self._held = self._held[1:]
        return text


def _begins_character(data: bytes) -> bool:
    """Whether one to three more bytes would make it UTF-8; if any do, the least or greatest do."""
    return any(_is_utf8(data + last * more) for last in (b"\x80", b"\xbf") for more in (1, 2, 3))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
