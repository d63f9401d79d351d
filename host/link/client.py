"""The host's side of docs/PROTOCOL.md: one `Device`, one method a request.

What the board refuses comes out as a `Refused` with its status and its own words.
"""

from __future__ import annotations

import contextlib
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from host.errors import BoardError, InputError, LinkError
from host.link.exchange import (
    EVENT,
    WORK_S,
    Exchange,
    LineTooBad,
    NoAnswer,
    Refused,
    Request,
    Status,
)
from host.link.frames import MAX_PAYLOAD, Frame, encode
from host.link.talk import Talk
from host.link.transports import Transport
from host.strict_json import parse_fields

__all__ = [
    "ABSENT",
    "BAUD_RATES",
    "CHUNK_BYTES",
    "PIECE_BYTES",
    "Ack",
    "Captured",
    "Device",
    "End",
    "Entry",
    "Fed",
    "Generated",
    "Hello",
    "LineTooBad",
    "NoAnswer",
    "Refused",
    "Request",
    "Status",
    "stages_of",
]

PROTOCOL_VERSION = 2
CHUNK_BYTES = 4096
PIECE_BYTES = 64
ABSENT = 0xFFFFFFFF
BAUD_RATES = (2_000_000, 921_600, 460_800, 115_200)

_TRIES = 8
_HELLO_S = 0.15
_RATE_KEPT_S = 25.0  # a board leaves a rate at which it hears nothing after 20 s
_TRIALS = 6  # HELLOs at a new rate
_TRIALS_LOST = 1
_BAUD_TRIES = 6
_OF_A_MODEL = ("vocab", "context")  # the numbers in INFO that something is computed from
_OF_A_BOARD = ("psram_bytes", "fast_bytes", "bulk_bytes", "fast_free", "bulk_free")
_MOST_ENTRIES = 1 << 16  # LIST counts them in 16 bits


class End(IntEnum):
    """Why an answer ended."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    CONTEXT = 3
    CANCELLED = 4


@dataclass(frozen=True)
class Hello:
    """What a board says of itself first."""

    version: int
    max_payload: int
    window_bytes: int
    text: str


@dataclass(frozen=True)
class Generated:
    """How an answer went. Times in seconds; `missing` bytes of its text were lost for good."""

    end: End
    prompt_tokens: int
    tokens: int
    prompt_s: float
    answer_s: float
    reading_s: float
    read_bytes: int
    missing: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answer each second; the first one counts towards the prompt's time."""
        return (self.tokens - 1) / self.answer_s if self.tokens > 1 and self.answer_s > 0 else 0.0

    @property
    def reading_share(self) -> float:
        """Part of the time that went into reading the card, 0..1."""
        total = self.prompt_s + self.answer_s
        return min(1.0, self.reading_s / total) if total > 0 else 0.0


@dataclass(frozen=True)
class Fed:
    """The answer to FEED.

    Attributes:
        n_past: Positions that are evaluated now.
        crcs: One row of CRC-32s for each position asked for.
    """

    n_past: int
    crcs: list[list[int]]


@dataclass(frozen=True)
class Captured:
    """One stage's activation: n mantissas and their exponent."""

    mantissas: npt.NDArray[np.int64]
    exponent: int


@dataclass(frozen=True)
class Entry:
    """A line of LIST: a file and its bytes, or a folder (None), its model, if it is current."""

    name: str
    size: int | None
    model: str = ""
    is_current: bool = False


@dataclass(frozen=True)
class Ack:
    """How far an upload is: chunks written, and 64-byte pieces held of those after them."""

    written: int
    held: tuple[int, ...]

    @staticmethod
    def parse(payload: bytes) -> Ack | None:
        """Reads an ack; None if it is too short."""
        if len(payload) < 13:
            return None
        written, first, more = struct.unpack_from("<IQB", payload)
        if len(payload) < 13 + 8 * more:
            return None
        return Ack(written, (first, *struct.unpack_from(f"<{more}Q", payload, 13)))


def stages_of(layers: int, *, head: bool) -> list[tuple[int, int]]:
    """The stages of one position in the order of FEED's CRCs: (stage, layer)."""
    stages = [(0, 0)]
    stages += [(stage, layer) for layer in range(layers) for stage in range(1, 12)]
    return [*stages, (12, 0), (13, 0)] if head else stages


class Device:
    """A board at the other end of a transport. Use it as a context manager.

    Args:
        transport: The line; it is closed with the device.
        patience: Seconds to wait for the first answer: a board may be booting.
    """

    def __init__(self, transport: Transport, patience: float = 10.0) -> None:
        self._transport = transport
        self._patience = patience
        self._line = Exchange(transport)
        self._first_baud = transport.baud
        self._session = 0
        try:
            self.hello = self._connect()
        except BaseException:
            transport.close()
            raise

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the line as it was found."""
        try:
            if self._transport.baud != self._first_baud and self._first_baud is not None:
                with contextlib.suppress(LinkError, BoardError):
                    self.set_baud(self._first_baud)
        finally:
            self._transport.close()

    @property
    def baud(self) -> int | None:
        """Bits a second of the line now; None where there is no such thing."""
        return self._transport.baud

    def reconnect(self) -> None:
        """Finds the board again after it was silent: it may have restarted, at its first rate."""
        if self._transport.baud != self._first_baud:
            self._patience = max(self._patience, _RATE_KEPT_S)
        self.hello = self._connect()

    def now(self) -> float:
        """The transport's clock, seconds."""
        return self._transport.now()

    @property
    def resent(self) -> int:
        """Frames that were sent again."""
        return self._line.resent

    @property
    def resend_after(self) -> float:
        """Seconds after which what was sent is taken for lost."""
        return self._line.resend_after

    def request(
        self,
        kind: Request,
        payload: bytes = b"",
        *,
        patience: float | None = None,
        noisy: float | None = None,
        interval: float | None = None,
        on_event: Callable[[bytes], None] | None = None,
    ) -> bytes:
        """Sends a request until it is answered: `Exchange.request`."""
        return self._line.request(
            kind, payload, patience=patience, noisy=noisy, interval=interval, on_event=on_event
        )

    def _connect(self) -> Hello:
        # A frame cut off on this line ends at the first zero; a lone zero may begin one.
        self._transport.write(b"\0\0")
        rates: list[int | None] = [None]
        if self._first_baud is not None:
            rates = [self._first_baud, *(r for r in BAUD_RATES if r != self._first_baud)]
        for index, rate in enumerate(rates):
            if rate is not None and rate != self._transport.baud:
                try:
                    self._transport.set_baud(rate)
                except LinkError:  # the adapter cannot do it
                    continue
            with contextlib.suppress(NoAnswer, LineTooBad):
                return self._say_hello(1.5 if index else self._patience)
        where = f" at {self._first_baud} baud" if self._first_baud else ""
        raise NoAnswer(
            f"Nothing answers on this port{where}",
            "Check that the board is powered, has the firmware (`host flash`) and is not in boot "
            "mode, and look with `host doctor`",
        )

    def _say_hello(self, patience: float) -> Hello:
        payload = struct.pack("<H", PROTOCOL_VERSION)
        end = self.now() + patience
        while True:
            try:
                left = max(0.3, end - self.now())
                rest = self.request(
                    Request.HELLO, payload, interval=_HELLO_S, patience=left, noisy=left
                )
                break
            except Refused as exc:
                if exc.status != Status.BUSY or self.now() >= end:
                    raise
                self.stop()
        if len(rest) < 8:
            raise LinkError("What answers is not this protocol", "Flash it with `host flash`")
        version, max_payload, window = struct.unpack_from("<HHI", rest)
        if version != PROTOCOL_VERSION:
            raise BoardError(
                f"The board speaks version {version} of the protocol, this tool {PROTOCOL_VERSION}",
                "Flash the firmware of this version with `host flash`",
            )
        return Hello(
            version, min(max_payload, MAX_PAYLOAD), window, rest[8:].decode(errors="replace")
        )

    # --- the board --------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """The facts of docs/PROTOCOL.md: state, model, fingerprint, memory, card.

        Raises:
            LinkError: What should be a number is none.
        """
        facts = _json(self.request(Request.INFO))
        needed = _OF_A_MODEL if facts.get("state") == "ready" else ()
        for name in (*_OF_A_MODEL, *_OF_A_BOARD):
            number = facts.get(name, None if name in needed else 0)
            if type(number) is not int or number < 0 or (name in needed and not number):
                raise LinkError(
                    f"The board says {str(number)[:40]!r} for its {name}",
                    "Flash it with `host flash`",
                )
        return facts

    def stats(self) -> dict[str, Any]:
        """Counters of the board."""
        return _json(self.request(Request.STATS))

    def reboot(self) -> None:
        """Restarts the board and waits until it answers again."""
        self.request(Request.REBOOT)
        if self._transport.baud is not None and self._first_baud is not None:
            self._transport.set_baud(self._first_baud)
        self.hello = self._say_hello(self._patience)

    def stop(self) -> None:
        """Ends what the board is doing."""
        with contextlib.suppress(Refused):
            self.request(Request.STOP)

    def set_baud(self, baud: int) -> bool:
        """Changes both ends to another rate; False, and the old rate, where that does not work."""
        before = self._transport.baud
        if before is None or before == baud:
            return before == baud
        for _ in range(_BAUD_TRIES):
            try:
                answered = self._ask_baud(baud)
            except Refused:
                return False
            self._transport.set_baud(baud)
            reached, lost = self._try_line()
            if reached and (lost <= _TRIALS_LOST or baud < before):
                return True
            if reached:
                self._leave_baud(baud, before)
                return False
            self._transport.set_baud(before)
            self.hello = self._say_hello(_RATE_KEPT_S)
            if answered:
                return False
        return False

    def _ask_baud(self, baud: int) -> bool:
        """Has the board change; False where no answer came, which says nothing of the board."""
        try:
            self.request(
                Request.BAUD, struct.pack("<I", baud), interval=0.1, patience=0.3, noisy=0.3
            )
        except LinkError:
            return False
        return True

    def _leave_baud(self, baud: int, before: int) -> None:
        """Goes back from a rate at which the board has settled, and frames come now and then."""
        for _ in range(_BAUD_TRIES):
            self._ask_baud(before)
            self._transport.set_baud(before)
            if self._try_line()[0]:
                return
            self._transport.set_baud(baud)
        self._transport.set_baud(before)
        self.hello = self._say_hello(_RATE_KEPT_S)

    def _try_line(self) -> tuple[int, int]:
        """Says HELLO some times; returns how many were answered, and the frames sent again."""
        before = self.resent
        payload = struct.pack("<H", PROTOCOL_VERSION)
        for count in range(_TRIALS):
            try:
                self.request(Request.HELLO, payload, interval=_HELLO_S, patience=0.8, noisy=0.8)
            except (LinkError, Refused):
                return count, self.resent - before + _TRIALS
        return _TRIALS, self.resent - before

    # --- the model --------------------------------------------------------------------------------

    def session_reset(self, *, drop: bool = False) -> int:
        """Forgets all tokens; `drop` says what is to happen at the context's end."""
        self._session = secrets.randbits(32) | 1
        return _u32(self.request(Request.SESSION, struct.pack("<BBI", 0, drop, self._session)))

    def sampling(self, temperature: int, top_k: int, top_p: int, penalty: int, seed: int) -> None:
        """Sets the parameters of docs/NUMERICS.md section 5 (Q16) and the generator's seed."""
        payload = struct.pack("<IIIIQ", temperature, top_k, top_p, penalty, seed)
        self.request(Request.SAMPLING, payload)

    def generate(self, text: str, n: int, emit: Callable[[str], None]) -> Generated:
        """Appends a prompt (empty: goes on) and streams the answer.

        An interrupt (Ctrl-C) stops the answer, which then ends with `End.CANCELLED`; a second one
        is the caller's. What the line loses of the text is had again from the board; where that
        fails, U+FFFD stands for it and the bytes are counted in `missing`.

        Args:
            text: The prompt, at most `MAX_PAYLOAD` - 8 bytes of UTF-8.
            n: Tokens of the answer at most; 0 for no limit.
            emit: Called with whole characters as they come.
        """
        payload = struct.pack("<II", n, self._session) + text.encode()
        if len(payload) > self.hello.max_payload:
            raise BoardError(
                f"The prompt has {len(payload) - 8:,} bytes, and the board takes "
                f"{self.hello.max_payload - 8:,} at once",
                "Give a shorter one",
            )
        talk = Talk(self._line, payload, emit)
        end, prompt, tokens, prompt_us, answer_us, read_us, read = talk.run()
        if end not in set(End):
            raise LinkError(f"The board ends an answer with {end}", "Flash it with `host flash`")
        return Generated(
            End(end), prompt, tokens, prompt_us / 1e6, answer_us / 1e6, read_us / 1e6, read,
            talk.text.missing,
        )  # fmt: skip

    def feed(
        self,
        tokens: Sequence[int],
        *,
        logits: bool = False,
        each: bool = False,
        stages: bool = False,
        layers: int = 0,
    ) -> Fed:
        """Evaluates tokens at the next positions and returns the CRC-32s asked for.

        Args:
            tokens: One batch or more.
            logits: The logits' CRC of the last position.
            each: The logits' CRC of each position.
            stages: The CRCs of all stages of each position.
            layers: The model's layers; needed with `stages`.
        """
        flags = logits | each << 1 | stages << 2
        payload = struct.pack(f"<B{len(tokens)}I", flags, *tokens)
        widths = _widths(len(tokens), layers, logits=logits, each=each, stages=stages)
        expected = 4 * (1 + sum(widths))
        rest = self.request(Request.FEED, payload, patience=WORK_S)
        if len(rest) != expected:
            raise LinkError(
                f"The board answers with {len(rest)} bytes where {expected} are expected",
                "Flash the firmware of this version with `host flash`",
            )
        values = list(struct.unpack(f"<{len(rest) // 4}I", rest))
        rows, at = [], 1
        for width in widths:
            rows.append(values[at : at + width])
            at += width
        return Fed(values[0], rows)

    def capture(self, stage: int, layer: int, token: int, n_past: int) -> Captured:
        """Evaluates one token at n_past and returns a stage's activation."""
        payload = struct.pack("<BHI", stage, layer, token)
        for _ in range(_TRIES):
            pieces: dict[int, bytes] = {}

            def event(data: bytes, pieces: dict[int, bytes] = pieces) -> None:
                if len(data) >= 4:
                    pieces[_u32(data)] = data[4:]

            rest = self.request(Request.CAPTURE, payload, patience=WORK_S, on_event=event)
            n, width, exponent = _unpack("<IBi", rest)
            if width not in (2, 4):
                raise LinkError("The board's answer has another form", "Flash it anew")
            data = b"".join(pieces[index] for index in sorted(pieces))
            if len(data) == n * width:
                mantissas = np.frombuffer(data, f"<i{width}").astype(np.int64)
                return Captured(mantissas, exponent)
            self.rewind(n_past)  # an event was lost, and only the answer would be sent again
        raise LinkError("The line loses too much", "Use a shorter cable or a lower -b")

    def rewind(self, n_past: int) -> None:
        """Forgets the positions from n_past on."""
        self.request(Request.REWIND, struct.pack("<I", n_past))

    def sample(self) -> int:
        """Draws a token from the last logits and appends it."""
        return int(_unpack("<i", self.request(Request.SAMPLE))[0])

    def encode(self, text: str) -> list[int]:
        """The board's tokens of a text."""
        rest = self.request(Request.ENCODE, text.encode())
        return list(struct.unpack(f"<{len(rest) // 4}I", rest[: len(rest) // 4 * 4]))

    def decode(self, tokens: Sequence[int]) -> str:
        """The board's text of tokens."""
        rest = self.request(Request.DECODE, struct.pack(f"<{len(tokens)}I", *tokens))
        return rest.decode(errors="replace")

    # --- the card ---------------------------------------------------------------------------------

    def stat(self, name: str) -> tuple[int | None, int | None]:
        """Sizes of a file and of its unfinished ``.part``; None for what is not there."""
        size, part = _unpack("<II", self.request(Request.STAT, name.encode()))
        return (None if size == ABSENT else size, None if part == ABSENT else part)

    def sums(self, name: str, chunks: int, *, part: bool = False) -> Iterator[int]:
        """CRC-32s of a file's 4,096-byte chunks, asked for as they are used."""
        for first in range(0, chunks, 64):
            n = min(64, chunks - first)
            payload = struct.pack("<IHB", first, n, part) + name.encode()
            rest = self.request(Request.SUMS, payload, patience=WORK_S)
            yield from struct.unpack(f"<{len(rest) // 4}I", rest[: len(rest) // 4 * 4])
            if len(rest) // 4 < n:
                return

    def open(self, fingerprint: str, name: str, size: int, crc: int, keep: int) -> int:
        """Opens a file for writing; returns the seq that its acks carry."""
        payload = struct.pack("<IIII", int(fingerprint[:8], 16), size, crc, keep) + name.encode()
        pending = self._line.post(Request.OPEN, payload, patience=WORK_S)
        self._line.wait(pending)
        return pending.seq

    def send_data(self, seq: int, chunk: int, offset: int, crc: int, data: bytes) -> int:
        """Sends a piece of a chunk, unanswered; returns the bytes it took on the line.

        Args:
            seq: Of the file's OPEN.
            chunk: Which 4,096 bytes of the file.
            offset: Where in the chunk the piece begins, a multiple of `PIECE_BYTES`.
            crc: CRC-32 of the whole chunk.
            data: The piece.
        """
        encoded = encode(Frame(Request.DATA, seq, struct.pack("<IHI", chunk, offset, crc) + data))
        self._transport.write(encoded)
        return len(encoded)

    def acks(self, seq: int, timeout: float = 0.0) -> list[Ack]:
        """The acks of an open file that have come, waiting for the first at most `timeout` s."""
        found: list[Ack] = []
        frame = self._line.next_frame(timeout)
        while frame is not None:
            if frame.type == Request.DATA | EVENT and frame.seq == seq:
                ack = Ack.parse(frame.payload)
                if ack is not None:
                    found.append(ack)
            frame = self._line.next_frame(0.0)
        return found

    def poll(self, interval: float | None = None) -> Ack:
        """Asks how far the upload is."""
        ack = Ack.parse(self.request(Request.POLL, interval=interval))
        if ack is None:
            raise LinkError("The board's ack has another form", "Flash it with `host flash`")
        return ack

    def close_file(self) -> None:
        """Has the open file checked and given its name."""
        self.request(Request.CLOSE, patience=WORK_S)

    def commit(self, fingerprint: str) -> None:
        """Makes the package current and has it loaded."""
        self.request(Request.COMMIT, bytes.fromhex(fingerprint), patience=WORK_S)

    def entries(self) -> list[Entry]:
        """What lies in `/tllm`: files and folders, and the files in those, in the board's order."""
        found: list[Entry] = []
        while len(found) < _MOST_ENTRIES:
            rest = self.request(Request.LIST, struct.pack("<H", len(found)), patience=WORK_S)
            lines = rest.decode(errors="replace").split("\n")[:-1]
            for line in lines:
                size, _, name = line.partition(" ")
                if size.isascii() and size.isdigit():
                    found.append(Entry(name, int(size)))
                else:
                    name, _, model = name.partition(" ")
                    found.append(Entry(name, None, model, size == "*"))
            if not lines:
                return found
        raise LinkError(
            "The board lists more files than a card of this kit holds",
            "Look at the card in a computer, or flash the board with `host flash`",
        )

    def files(self) -> list[tuple[str, int]]:
        """Names and sizes of the files in `/tllm` and its folders."""
        return [(entry.name, entry.size) for entry in self.entries() if entry.size is not None]

    def remove(self, name: str) -> None:
        """Deletes a file, or an empty folder."""
        self.request(Request.REMOVE, name.encode())

    def space(self) -> tuple[int, int]:
        """Bytes of the card that are free, and all of them."""
        free, total = _unpack("<QQ", self.request(Request.SPACE, patience=WORK_S))
        return free, total

    def read_test(self, block: int, total: int) -> tuple[float, int]:
        """Reads `total` bytes in blocks; returns the seconds it took and their CRC-32."""
        payload = struct.pack("<II", block, total)
        us, crc = _unpack("<QI", self.request(Request.READ_TEST, payload, patience=WORK_S))
        return us / 1e6, crc

    def check(self, first: int, n: int) -> tuple[int, int, int, int]:
        """Checks chunks of the package; returns wrong, checked, first wrong file, its chunk."""
        payload = struct.pack("<II", first, n)
        wrong, checked, file, chunk = _unpack(
            "<IIII", self.request(Request.CHECK, payload, patience=WORK_S)
        )
        return wrong, checked, file, chunk


def _widths(n: int, layers: int, *, logits: bool, each: bool, stages: bool) -> list[int]:
    widths = []
    for index in range(n):
        head = each or (logits and index == n - 1)
        if stages:
            widths.append(len(stages_of(layers, head=head)))
        else:
            widths.append(int(head))
    return widths


def _unpack(form: str, payload: bytes) -> tuple[Any, ...]:
    if len(payload) < struct.calcsize(form):
        raise LinkError("The board's answer is too short", "Flash it with `host flash`")
    return struct.unpack_from(form, payload)


def _u32(payload: bytes) -> int:
    return int(_unpack("<I", payload)[0])


def _json(payload: bytes) -> dict[str, Any]:
    try:
        return parse_fields(payload, "What the board says of itself", "Flash it with `host flash`")
    except InputError as exc:
        raise LinkError(exc.message, exc.next_step) from exc
