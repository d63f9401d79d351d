"""Requests and their answers over a line that loses, spoils and delays: docs/PROTOCOL.md.

A request is sent again until its answer comes; the sequence number keeps the board from running
it twice. An answer too long for the line is had in parts.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Callable
from enum import IntEnum

from host.errors import BoardError, LinkError
from host.link.frames import MAX_ENCODED, Decoder, Frame, encode
from host.link.refusal import KEPT_BYTES, refusal_in
from host.link.transports import Transport

ANSWER = 0x80
EVENT = 0x40
WORK_S = 60.0  # silence that even a slow card does not explain

_RESEND_S = 0.5
_SOONEST_RESEND_S = 0.02
_ROUND_TRIPS = 4  # after so many usual ones a frame is taken for lost
_PATIENCE_S = 4.5
_NOISE_S = 30.0  # at least, with bytes coming and no frame whole
_COMING_S = 0.05  # a frame whose bytes came so recently is still coming
_PART_BYTES = (48, 24, 12)
_PARTS_AFTER = 2  # requests without an answer
_PART = struct.Struct("<BBHI")


class Request(IntEnum):
    """Types of requests."""

    HELLO = 0x01
    INFO = 0x02
    REBOOT = 0x03
    BAUD = 0x04
    STOP = 0x05
    PART = 0x06
    SESSION = 0x10
    SAMPLING = 0x11
    GENERATE = 0x12
    FEED = 0x13
    CAPTURE = 0x14
    SAMPLE = 0x15
    ENCODE = 0x16
    DECODE = 0x17
    STATS = 0x18
    REWIND = 0x19
    TEXT = 0x1A
    STAT = 0x20
    SUMS = 0x21
    OPEN = 0x22
    DATA = 0x23
    POLL = 0x24
    CLOSE = 0x25
    COMMIT = 0x26
    LIST = 0x27
    REMOVE = 0x28
    SPACE = 0x29
    READ_TEST = 0x30
    CHECK = 0x31


class Status(IntEnum):
    """Why a board refuses; -1 to -99 are the engine's own."""

    ARGUMENT = -1
    VERSION = -3
    NO_MODEL = -100
    NO_CARD = -101
    FILE_SYSTEM = -102
    FULL = -103
    UNKNOWN = -104
    BUSY = -105
    PAYLOAD = -106
    MISMATCH = -107
    NAME = -108
    STATE = -109
    CARD_READ = -110
    NO_MEMORY = -111
    OTHER_MODEL = -112


_WORDS = {
    Status.VERSION: "The board speaks another version of the protocol",
    Status.NO_MODEL: "The board has no model",
    Status.NO_CARD: "The board has no card, or cannot read it",
    Status.FILE_SYSTEM: "The card's file system refuses",
    Status.FULL: "The card is full",
    Status.UNKNOWN: "The board does not know this request",
    Status.BUSY: "The board is busy with another request",
    Status.PAYLOAD: "The board does not understand this request",
    Status.MISMATCH: "What arrived is not what was sent",
    Status.NAME: "The board does not accept this file name",
    Status.STATE: "The board is not in a state for this",
    Status.CARD_READ: "The card fails while it is read",
    Status.NO_MEMORY: "The model does not fit this board's memory",
    Status.OTHER_MODEL: "The card holds another model than this firmware was built for",
}
_NEXT: dict[int, str] = {
    Status.VERSION: "Flash the firmware of this version with `host flash`",
    Status.NO_MODEL: "Put one on its card with `host upload` or `host flash`",
    Status.NO_CARD: "Check that a card formatted as FAT32 is in the slot",
    Status.FULL: "Make room with `host upload --remove-old`, or use a larger card",
    Status.UNKNOWN: "Flash the firmware of this version with `host flash`",
    Status.PAYLOAD: "Flash the firmware of this version with `host flash`",
    Status.CARD_READ: "Look at it with `host doctor`, and try another card",
    Status.NO_MEMORY: "Use a smaller model or a shorter context",
    Status.OTHER_MODEL: "Run `host flash` to build the firmware for this model",
}


class Refused(BoardError):
    """The board answered a request with a negative status."""

    def __init__(self, status: int, text: str = "") -> None:
        self.status = status
        words = _WORDS.get(Status(status)) if status in set(Status) else None
        words = words or f"The board reports error {status}"
        has_advice = ": " in text  # the board's sentences say "what is wrong: what to do"
        advice = _NEXT.get(status, "") if not has_advice else ""
        super().__init__(text or words, advice)


class NoAnswer(LinkError):
    """The board said nothing for as long as it may take."""


class LineTooBad(LinkError):
    """Something comes now and then, but not what is waited for, in a time that anyone waits."""


class Pending:
    """A request on its way; `Exchange.post` makes it.

    Attributes:
        seq: Its sequence number.
        due: When to `poke` it.
    """

    def __init__(
        self,
        line: Exchange,
        kind: int,
        payload: bytes,
        patience: float | None,
        noisy: float | None,
        interval: float | None,
        on_event: Callable[[bytes], None] | None,
    ) -> None:
        self.seq = line.next_seq()
        self._is_kept = kind not in (Request.STOP, Request.PART, Request.TEXT)
        if self._is_kept:
            line.kept_seq = self.seq
        self._line, self._kind = line, kind
        self._frame = encode(Frame(kind, self.seq, payload))
        self._is_short = patience is None or patience < WORK_S
        self._patience = _PATIENCE_S if patience is None else patience
        self._noisy = max(_NOISE_S, 2 * self._patience) if noisy is None else noisy
        self._interval, self._on_event = interval, on_event
        self._started = self._heard = line.now()
        self._sent = 0  # times, the request alone
        self._turn = 0
        self._part_seq = 0
        self._part_size = 0
        self._crc = 0
        self._whole = 0
        self._got = b""
        self.due = self._latest = 0.0
        self._send()

    def poke(self) -> None:
        """Sends again what was not answered in time.

        Raises:
            BoardError: The board says why its program cannot run.
            NoAnswer: The line has been silent for too long.
            LineTooBad: Bytes come, but no frame has been whole for too long.
        """
        now, line = self._line.now(), self._line
        if self._kind == Request.HELLO and (refusal := refusal_in(line.said)):
            raise refusal
        if line.is_frame_coming and now < self._latest:
            self.due = max(self.due, now) + _COMING_S / 2
            return
        if now - max(self._heard, line.last_byte) >= self._patience:
            raise NoAnswer("The board does not answer", "Check the port, the cable and its power")
        if now - self._heard >= self._noisy:
            if line.last_byte <= self._started:
                raise NoAnswer(
                    "The board does not answer", "Check the port, the cable and its power"
                )
            raise LineTooBad(
                "The line loses nearly everything that is sent",
                "Use a shorter cable or a lower baud rate",
            )
        line.resent += 1
        self._turn += 1
        has_parts = self._is_kept and self._kind != Request.HELLO
        if self._got or (has_parts and self._sent >= _PARTS_AFTER and self._turn % 2):
            self._part_size = min(self._part_size + (self._turn % 3 == 0), len(_PART_BYTES) - 1)
            self._ask_part()
        else:
            self._send()

    def take(self, frame: Frame) -> tuple[int, bytes] | None:
        """Looks at a frame that came; returns status and rest of the answer once it is whole."""
        if frame.seq == self.seq and frame.type == self._kind | ANSWER and len(frame.payload) >= 4:
            if self._sent == 1 and self._turn == 0 and self._is_short:
                self._line.learn(self._line.now() - self._started)
            return _split(frame.payload)
        if frame.seq == self.seq and frame.type == self._kind | EVENT:
            self._hear()
            self._turn += 1  # what comes next is no round trip
            if self._on_event is not None:
                self._on_event(frame.payload)
        elif frame.type == Request.PART | ANSWER and frame.seq == self._part_seq:
            return self._take_part(frame.payload)
        return None

    def _send(self) -> None:
        self._sent += 1
        self._line.write(self._frame)
        self._wait(len(self._frame))

    def _wait(self, count: int) -> None:
        interval = self._line.resend_after if self._interval is None else self._interval
        self.due = self._line.now() + interval + self._line.seconds(count)
        self._latest = self.due + self._line.seconds(MAX_ENCODED)

    def _hear(self) -> None:
        self._heard = self._line.now()
        self._wait(0)

    def _ask_part(self) -> None:
        self._part_seq = self._line.next_seq()
        payload = struct.pack("<HB", len(self._got), _PART_BYTES[self._part_size])
        frame = encode(Frame(Request.PART, self._part_seq, payload))
        self._line.write(frame)
        self._wait(len(frame))

    def _take_part(self, payload: bytes) -> tuple[int, bytes] | None:
        self._part_seq = 0
        head = 4 + _PART.size
        if len(payload) < head or struct.unpack_from("<i", payload)[0] < 0:
            # Another request's, or none: ours has not arrived, or it runs.
            self._got = b""
            return None
        kind, seq, length, crc = _PART.unpack_from(payload, 4)
        if (kind, seq) != (self._kind | ANSWER, self.seq):
            self._got = b""
            return None
        self._hear()
        if (length, crc) != (self._whole, self._crc):
            self._whole, self._crc = length, crc
            if self._got:  # of an answer that is not there any more
                self._got = b""
                self._ask_part()
                return None
        self._got += payload[head:]
        if len(self._got) < length and len(payload) > head:
            self._ask_part()
            return None
        answer, self._got = self._got, b""
        if len(answer) != length or length < 4 or zlib.crc32(answer) != crc:
            return None
        return _split(answer)


def _split(payload: bytes) -> tuple[int, bytes]:
    return struct.unpack_from("<i", payload)[0], payload[4:]


class Exchange:
    """Frames to and from a board: one request after another, or some at once.

    Attributes:
        resent: Frames sent again.
        last_byte: When the line last brought anything.
        said: The last bytes that it brought.
        kept_seq: Of the last request whose answer the board keeps.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._decoder = Decoder()
        self._frames: deque[Frame] = deque()
        self._seq = 0
        self._round_trip: float | None = None
        self.resent = 0
        self.last_byte = float("-inf")
        self.said = b""
        self.kept_seq = 0

    def now(self) -> float:
        """The transport's clock, seconds."""
        return self._transport.now()

    def next_seq(self) -> int:
        """Sequence numbers: 1 to 255, again from 1, without the last that the board keeps."""
        self._seq = self._seq % 255 + 1
        if self._seq == self.kept_seq:  # the board would take a new request for that one
            self._seq = self._seq % 255 + 1
        return self._seq

    def write(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self._transport.write(data)

    def seconds(self, count: int) -> float:
        """What so many bytes take on the line; 0 where it has no rate."""
        baud = self._transport.baud
        return count * 10 / baud if baud else 0.0

    def post(
        self,
        kind: int,
        payload: bytes = b"",
        *,
        patience: float | None = None,
        noisy: float | None = None,
        interval: float | None = None,
        on_event: Callable[[bytes], None] | None = None,
    ) -> Pending:
        """Sends a request, and does not wait for its answer; the arguments are `request`'s."""
        return Pending(self, kind, payload, patience, noisy, interval, on_event)

    def request(
        self,
        kind: int,
        payload: bytes = b"",
        *,
        patience: float | None = None,
        noisy: float | None = None,
        interval: float | None = None,
        on_event: Callable[[bytes], None] | None = None,
    ) -> bytes:
        """Sends a request until it is answered; returns the answer behind its status.

        Args:
            kind: The request.
            payload: At most `MAX_PAYLOAD` bytes.
            patience: Seconds in which not a byte comes after which the board is given up; 4.5
                where omitted.
            noisy: Seconds in which bytes come and nothing whole; 30, or twice the patience.
            interval: Seconds after which the request is sent again; by the time that answers have
                taken so far where omitted.
            on_event: Called with each event's payload. A request with events whose loss matters
                is the caller's to repeat.

        Raises:
            Refused: The board answered with a negative status.
            BoardError: The board says why its program cannot run.
            LinkError: It did not answer.
        """
        pending = self.post(
            kind, payload, patience=patience, noisy=noisy, interval=interval, on_event=on_event
        )
        return self.wait(pending)

    def wait(self, pending: Pending) -> bytes:
        """Waits for the answer to a request that was posted, as `request` does."""
        while True:
            frame = self.next_frame(pending.due - self.now())
            answer = None if frame is None else pending.take(frame)
            if answer is not None:
                status, rest = answer
                if status < 0:
                    raise Refused(status, rest.decode(errors="replace"))
                return rest
            if self.is_drained and pending.due <= self.now():
                pending.poke()

    @property
    def is_drained(self) -> bool:
        """Whether no whole frame is left of what the line has brought."""
        return not self._frames

    @property
    def resend_after(self) -> float:
        """Seconds after which what was sent is taken for lost."""
        if self._round_trip is None:
            return _RESEND_S
        return min(_RESEND_S, max(_SOONEST_RESEND_S, _ROUND_TRIPS * self._round_trip))

    def learn(self, seconds: float) -> None:
        """Takes note of a round trip."""
        past = seconds if self._round_trip is None else self._round_trip
        self._round_trip = max(seconds, 0.8 * past + 0.2 * seconds)

    @property
    def is_frame_coming(self) -> bool:
        """Whether part of a frame is there and its bytes have not ceased to come."""
        return self._decoder.held > 0 and self.now() - self.last_byte < _COMING_S

    def next_frame(self, timeout: float) -> Frame | None:
        """The next whole frame, waiting at most `timeout` seconds for it."""
        end = self.now() + timeout
        while not self._frames:
            data = self._transport.read(max(0.0, end - self.now()))
            if data:
                self.last_byte = self.now()
                self.said = (self.said + data)[-KEPT_BYTES:]
            self._frames.extend(f for f in self._decoder.feed(data) if isinstance(f, Frame))
            if not self._frames and self.now() >= end:
                return None
        return self._frames.popleft()
