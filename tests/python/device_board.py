"""The simulated board as the tests see it: raw bytes, written from docs/PROTOCOL.md alone."""

from __future__ import annotations

import contextlib
import os
import selectors
import struct
import subprocess
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import TracebackType

from cobs import cobs

PATIENCE = 60.0
RED_ZONE = 64  # bytes behind each buffer
SANITIZED = (
    *("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    f"-DTLLM_RED_ZONE={RED_ZONE}u",
)
CHUNK = 4096


class Kind(IntEnum):
    """Requests."""

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


EVENT, ANSWER = 0x40, 0x80


class Status(IntEnum):
    """Statuses that the tests meet."""

    OK = 0
    VERSION = -3
    CRC = -4
    CONTEXT = -8
    CANCELLED = -9
    UTF8 = -10
    TOO_LONG = -11
    NO_MODEL = -100
    NO_CARD = -101
    FS = -102
    UNKNOWN = -104
    BUSY = -105
    PAYLOAD = -106
    MISMATCH = -107
    NAME = -108
    STATE = -109
    CARD_READ = -110
    NO_MEMORY = -111


def encode_frame(kind: int, seq: int, payload: bytes = b"") -> bytes:
    """A frame with its zeros."""
    body = bytes([kind, seq]) + payload
    body += struct.pack("<I", zlib.crc32(body))
    return b"\0" + bytes(cobs.encode(body)) + b"\0"


@dataclass(frozen=True)
class Frame:
    """A frame from the board."""

    kind: int
    seq: int
    payload: bytes


@dataclass(frozen=True)
class Answer:
    """What came for a request."""

    status: int
    body: bytes
    events: list[bytes] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def words(self) -> tuple[int, ...]:
        return struct.unpack(f"<{len(self.body) // 4}I", self.body)


class Closed(Exception):
    """The board's process ended."""


class Board:
    """A board on pipes; `console` holds what came outside frames and is not yet taken."""

    def __init__(self, sim: Path, card: Path, options: Sequence[object] = ()) -> None:
        words = [str(sim), "--card", str(card), *map(str, options)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        self._part: bytearray | None = None
        self._seq = 0
        self._ended: tuple[int, str] | None = None
        self.console = bytearray()
        self.frames: list[Frame] = []

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        code, complaint = self.close()
        if error is None:
            assert code in (0, 42), complaint

    def close(self) -> tuple[int, str]:
        """Hangs up; the process's exit code and what it said on stderr."""
        if self._ended is None:
            self._ended = self._end()
        return self._ended

    def _end(self) -> tuple[int, str]:
        with contextlib.suppress(OSError):
            self._in.close()
        assert self.process.stderr is not None
        try:
            while self._out.read(65536):
                pass
            complaint = self.process.stderr.read().decode()
            code = self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self._selector.close()
            self._out.close()
            self.process.stderr.close()
        return code, complaint

    # --- bytes ---

    def write(self, data: bytes) -> None:
        try:
            self._in.write(data)
        except BrokenPipeError as error:
            raise Closed from error

    def _byte(self, byte: int) -> None:
        if byte != 0:
            (self.console if self._part is None else self._part).append(byte)
            return
        part, self._part = self._part, bytearray()
        if not part:
            return
        try:
            body = cobs.decode(bytes(part))
        except cobs.DecodeError:
            return
        if len(body) >= 6 and zlib.crc32(body[:-4]) == struct.unpack("<I", body[-4:])[0]:
            self._part = None
            self.frames.append(Frame(body[0], body[1], body[2:-4]))

    def pump(self, seconds: float) -> bool:
        """Takes what comes within some seconds; whether anything came."""
        if not self._selector.select(seconds):
            return False
        data = os.read(self._out.fileno(), 65536)
        if not data:
            raise Closed
        for byte in data:
            self._byte(byte)
        return True

    # --- the console ---

    def until(self, text: str) -> str:
        """Console text up to and with a given one."""
        mark = text.encode()
        deadline = time.monotonic() + PATIENCE
        while mark not in self.console:
            if not self.pump(max(0.0, deadline - time.monotonic())):
                raise AssertionError(f"no {text!r} after {self.console.decode(errors='replace')!r}")
        end = self.console.index(mark) + len(mark)
        taken = bytes(self.console[:end])
        del self.console[:end]
        return taken.decode(errors="surrogateescape")

    def enter(self, line: str | bytes) -> str:
        """Types a line and Return; what the board says until its next prompt."""
        self.write((line.encode() if isinstance(line, str) else line) + b"\r")
        return self.until("\n> ")

    def wake_console(self) -> None:
        """Types Ctrl-C until the board, which heeds no text close behind a frame, answers."""
        deadline = time.monotonic() + PATIENCE
        while b"^C\r\n> " not in self.console:
            assert time.monotonic() < deadline
            self.pump(0.3)
            self.write(b"\x03")
        while self.pump(0.3):
            pass
        self.console.clear()

    # --- frames ---

    def next_seq(self) -> int:
        self._seq = self._seq % 255 + 1
        return self._seq

    def send(self, kind: int, payload: bytes = b"", seq: int | None = None) -> int:
        number = self.next_seq() if seq is None else seq
        self.write(encode_frame(kind, number, payload))
        return number

    def frame(self) -> Frame:
        """The next frame."""
        deadline = time.monotonic() + PATIENCE
        while not self.frames:
            if not self.pump(max(0.0, deadline - time.monotonic())):
                raise AssertionError(f"no frame; console: {bytes(self.console)!r}")
        return self.frames.pop(0)

    def answer(self, kind: int, seq: int) -> Answer:
        """The answer to a request that was sent, and the events before it."""
        events: list[bytes] = []
        while True:
            frame = self.frame()
            if frame.kind == (kind | ANSWER) and frame.seq == seq:
                (status,) = struct.unpack("<i", frame.payload[:4])
                return Answer(status, frame.payload[4:], [e for e in events if e])
            if frame.kind & EVENT:
                events.append(frame.payload)

    def ask(self, kind: int, payload: bytes = b"", seq: int | None = None) -> Answer:
        return self.answer(kind, self.send(kind, payload, seq))

    def good(self, kind: int, payload: bytes = b"") -> Answer:
        """As ask, for what must succeed."""
        answer = self.ask(kind, payload)
        assert answer.status == 0, (answer.status, answer.body)
        return answer

    # --- what several tests ask for ---

    def greedy(self) -> None:
        self.good(Kind.SAMPLING, sampling())

    def feed(self, tokens: Sequence[int], flags: int = 0) -> Answer:
        return self.ask(Kind.FEED, struct.pack(f"<B{len(tokens)}I", flags, *tokens))

    def generate(self, prompt: str, n: int) -> str:
        answer = self.good(Kind.GENERATE, struct.pack("<II", n, 0) + prompt.encode())
        return answered(answer).decode()


def answered(answer: Answer) -> bytes:
    """The text of a GENERATE's events, each of which must begin where the one before ended."""
    text = b""
    for event in answer.events:
        assert struct.unpack_from("<I", event)[0] == len(text)
        text += event[4:]
    if answer.status == 0:
        assert struct.unpack("<II", answer.body[-8:]) == (len(text), zlib.crc32(text))
    return text


def sampling(
    temperature: int = 0, top_k: int = 0, top_p: int = 65536, penalty: int = 65536, seed: int = 1
) -> bytes:
    """The payload of SAMPLING; Q16 but for top_k and the seed."""
    return struct.pack("<4IQ", temperature, top_k, top_p, penalty, seed)


def make_package(checkpoint: Path, folder: Path) -> Path:
    """A package of a float checkpoint."""
    from host.checkpoint import load_checkpoint
    from host.quantize import quantize_checkpoint

    quantize_checkpoint(load_checkpoint(checkpoint), folder)
    return folder


def fingerprint(package: Path) -> bytes:
    """A package's fingerprint, as its descriptor has it."""
    return (package / "descriptor.bin").read_bytes()[96:128]


def slot(print_: bytes, sequence: int) -> bytes:
    """The content of /tllm/slot0 or slot1."""
    body = b"TSLT" + struct.pack("<I", sequence) + print_ + bytes(20)
    return body + struct.pack("<I", zlib.crc32(body))
