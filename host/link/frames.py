"""Frames of the link, without any input or output: bytes to frames and back.

docs/PROTOCOL.md says what a frame is. COBS: Cheshire and Baker, "Consistent Overhead Byte
Stuffing", IEEE/ACM Transactions on Networking 7(2), 1999.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from cobs import cobs

MAX_PAYLOAD = 4128
MAX_ENCODED = 4160
_HEAD_BYTES = 2
_CRC_BYTES = 4
_ZERO = b"\0"


@dataclass(frozen=True)
class Frame:
    """One frame: its type, its sequence number (0..255) and up to `MAX_PAYLOAD` bytes."""

    type: int
    seq: int
    payload: bytes = b""


def encode(frame: Frame) -> bytes:
    """Returns the bytes that carry a frame, with the zero in front and the one behind.

    Raises:
        ValueError: The payload is longer than `MAX_PAYLOAD`.
    """
    if len(frame.payload) > MAX_PAYLOAD:
        raise ValueError(f"a payload has at most {MAX_PAYLOAD} bytes, not {len(frame.payload)}")
    body = bytes((frame.type, frame.seq)) + frame.payload
    crc = zlib.crc32(body).to_bytes(_CRC_BYTES, "little")
    return _ZERO + bytes(cobs.encode(body + crc)) + _ZERO


def _parse(encoded: bytes | bytearray) -> Frame | None:
    if len(encoded) > MAX_ENCODED:
        return None
    try:
        body = cobs.decode(bytes(encoded))
    except cobs.DecodeError:
        return None
    if not _HEAD_BYTES + _CRC_BYTES <= len(body) <= _HEAD_BYTES + MAX_PAYLOAD + _CRC_BYTES:
        return None
    content, crc = body[:-_CRC_BYTES], int.from_bytes(body[-_CRC_BYTES:], "little")
    if zlib.crc32(content) != crc:
        return None
    return Frame(content[0], content[1], content[_HEAD_BYTES:])


@dataclass
class Decoder:
    """Separates what a line brings into frames and console text, however it is cut up.

    Never raises and holds at most `MAX_ENCODED` + 1 bytes. A frame that is damaged is counted in
    `damaged` and dropped.
    """

    damaged: int = 0
    _in_frame: bool = False
    _held: bytearray = field(default_factory=bytearray)

    @property
    def held(self) -> int:
        """Bytes of an unfinished frame that are kept."""
        return len(self._held)

    def feed(self, data: bytes) -> Iterator[Frame | bytes]:
        """Takes bytes from the line; yields frames, and console text as bytes, in their order."""
        parts = data.split(_ZERO)
        for index, part in enumerate(parts):
            if not self._in_frame:
                if part:
                    yield part
            else:
                room = MAX_ENCODED + 1 - len(self._held)
                self._held += part[:room]
            if index < len(parts) - 1:
                frame = self._zero()
                if frame is not None:
                    yield frame

    def _zero(self) -> Frame | None:
        if not self._in_frame:
            self._in_frame = True
            return None
        encoded, self._held = self._held, bytearray()
        if not encoded:
            return None
        frame = _parse(encoded)
        # The zero behind a damaged frame may be the one in front of the next.
        self._in_frame = frame is None
        self.damaged += frame is None
        return frame
