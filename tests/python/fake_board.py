"""A board written from docs/PROTOCOL.md alone, and a line to it that loses what a seed says.

Time is the line's own: it passes only where bytes travel or someone waits, so nothing sleeps.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from host.link.frames import Decoder, Frame, encode

CHUNK = 4096
WINDOW = 8
KEPT = 2048  # bytes of an answer's text
ABSENT = 0xFFFFFFFF
_ANSWER, _EVENT = 0x80, 0x40


@dataclass
class Faults:
    """Chances a byte, in both directions."""

    seed: int = 0
    drop: float = 0.0
    flip: float = 0.0
    duplicate: float = 0.0
    insert: float = 0.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def spoil(self, data: bytes) -> bytes:
        if not (self.drop or self.flip or self.duplicate or self.insert):
            return data
        chance, out = self._random.random, bytearray()
        for byte in data:
            if chance() < self.insert:
                out.append(self._random.randrange(256))
            if chance() < self.drop:
                continue
            if chance() < self.flip:
                byte ^= 1 << self._random.randrange(8)
            out.append(byte)
            if chance() < self.duplicate:
                out.append(byte)
        return bytes(out)


@dataclass
class Upload:
    path: str
    seq: int
    size: int
    crc: int
    written: int
    held: dict[int, dict[int, bytes]] = field(default_factory=dict)

    def chunks(self) -> int:
        return -(-self.size // CHUNK)

    def bytes_of(self, chunk: int) -> int:
        return min(CHUNK, self.size - chunk * CHUNK)

    def all_pieces(self, chunk: int) -> int:
        return (1 << -(-self.bytes_of(chunk) // 64)) - 1

    def bitmap(self, chunk: int) -> int:
        return sum(1 << piece for piece in self.held.get(chunk, {}))


class FakeBoard:
    """Files in a dict; a model whose "logits" are what `crcs` says."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.current = ""
        self.models: dict[str, str] = {}
        self.capacity = 1 << 30
        self.upload: Upload | None = None
        self.runs: list[tuple[int, bytes]] = []  # every request that was run, not repeated
        self.pieces = ["Once", " upon", " a", " time"]
        self.n_past = 0
        self.session = 0
        self.said, self.said_by = b"", 0
        self.baud = 115200
        self.max_baud = 5_000_000
        self.log: list[str] = []
        self.before_answer: Callable[[Frame], None] = lambda _: None
        self._last: Frame | None = None
        self._decoder = Decoder()
        self._out = bytearray()

    def receive(self, data: bytes) -> bytes:
        """Takes bytes from the line; returns what the board sends."""
        self._out.clear()
        for item in self._decoder.feed(data):
            if isinstance(item, Frame):
                self._take(item)
        return bytes(self._out)

    def reset(self) -> None:
        """Power goes and comes back."""
        self.upload = None
        self._last = None
        self.n_past = self.session = self.said_by = 0
        self.baud = 115200
        self._decoder = Decoder()

    def _send(self, kind: int, seq: int, payload: bytes) -> None:
        self._out += encode(Frame(kind, seq, payload))

    def _take(self, frame: Frame) -> None:
        if frame.type == 0x23:
            self._data(frame.payload)
            return
        if frame.type in (0x05, 0x06, 0x1A):
            self._at_once(frame)
            return
        last = self._last
        is_repeated = last and (last.type, last.seq) == (frame.type | _ANSWER, frame.seq)
        if last and is_repeated and frame.type != 0x01:
            self._send(last.type, last.seq, last.payload)
            return
        self.runs.append((frame.type, frame.payload))
        self.before_answer(frame)
        try:
            payload = struct.pack("<i", 0) + self._run(frame)
        except Refusal as refusal:
            payload = struct.pack("<i", refusal.status) + str(refusal).encode()
        self._last = Frame(frame.type | _ANSWER, frame.seq, payload)
        self._send(self._last.type, frame.seq, payload)
        if frame.type == 0x04:
            self.baud = struct.unpack("<I", frame.payload)[0]

    def _at_once(self, frame: Frame) -> None:
        self.runs.append((frame.type, frame.payload))
        try:
            answer = struct.pack("<i", 0) + self._run(frame)
        except Refusal as refusal:
            answer = struct.pack("<i", refusal.status)
        self._send(frame.type | _ANSWER, frame.seq, answer)

    def _run(self, frame: Frame) -> bytes:
        name, data = f"_on_{frame.type:02x}", frame.payload
        handler: Callable[[Frame, bytes], bytes] | None = getattr(self, name, None)
        if handler is None:
            raise Refusal(-104)
        return handler(frame, data)

    # --- the board and the model ------------------------------------------------------------------

    def _on_01(self, _: Frame, __: bytes) -> bytes:
        return struct.pack("<HHI", 2, 4128, WINDOW * CHUNK) + b"fake 1.0"

    def _on_02(self, _: Frame, __: bytes) -> bytes:
        info: dict[str, object] = {"state": "no-model", "baud": self.baud}
        if self.current:
            info |= {"state": "ready", "fingerprint": self.current, "vocab": 256, "context": 64}
        return json.dumps(info).encode()

    def _on_04(self, _: Frame, __: bytes) -> bytes:
        return b""

    def _on_05(self, _: Frame, __: bytes) -> bytes:
        return b""

    def _on_06(self, _: Frame, data: bytes) -> bytes:
        offset, n = struct.unpack("<HB", data)
        last = self._last
        if last is None:
            raise Refusal(-109)
        whole = last.payload
        head = struct.pack("<BBHI", last.type, last.seq, len(whole), zlib.crc32(whole))
        return head + whole[offset : offset + n]

    def _on_10(self, _: Frame, data: bytes) -> bytes:
        what, _policy, number = struct.unpack("<BBI", data)
        if what == 0:
            self.n_past, self.session = 0, number
        return struct.pack("<I", 0)

    def _on_11(self, _: Frame, data: bytes) -> bytes:
        self.log.append(f"sampling {struct.unpack('<IIIIQ', data)}")
        return b""

    def _on_12(self, frame: Frame, data: bytes) -> bytes:
        n, session = struct.unpack_from("<II", data)
        self.said, self.said_by = b"", frame.seq
        if session not in (0, self.session):
            raise Refusal(-109, "forgotten")
        shown = [piece.encode() for piece in self.pieces[: n or None]]
        for piece in shown:
            offset = struct.pack("<I", len(self.said))
            self.said += piece
            self._send(frame.type | _EVENT, frame.seq, offset + piece)
        figures = struct.pack("<BIIQQQQ", 2, 3, len(shown), 1000, 2000, 500, 4096)
        return figures + struct.pack("<II", len(self.said), zlib.crc32(self.said))

    def _on_1a(self, _: Frame, data: bytes) -> bytes:
        seq, offset, n = struct.unpack("<BIB", data)
        if seq == 0 or seq != self.said_by:
            raise Refusal(-109)
        offset = min(max(offset, len(self.said) - KEPT), len(self.said))
        return struct.pack("<II", len(self.said), offset) + self.said[offset : offset + n]

    def _on_13(self, _: Frame, data: bytes) -> bytes:
        tokens = struct.unpack_from(f"<{(len(data) - 1) // 4}I", data, 1)
        crcs = b""
        for token in tokens:
            if data[0] & 4:
                crcs += struct.pack("<12I", *(self._crc(token, stage) for stage in range(12)))
                crcs += struct.pack("<I", self._crc(token, 12)) if data[0] & 2 else b""
            if data[0] & 2:
                crcs += struct.pack("<I", self._crc(token, 13))
            self.n_past += 1
        return struct.pack("<I", self.n_past) + crcs

    def _crc(self, token: int, stage: int) -> int:
        return (self.n_past << 16 | stage << 8) + token

    def _on_14(self, frame: Frame, data: bytes) -> bytes:
        stage, _, token = struct.unpack("<BHI", data)
        values = [stage, token, -self.n_past] * 700
        for first in range(0, len(values), 1024):
            part = values[first : first + 1024]
            payload = struct.pack(f"<I{len(part)}i", first, *part)
            self._send(frame.type | _EVENT, frame.seq, payload)
        self.n_past += 1
        return struct.pack("<IBi", len(values), 4, -20)

    def _on_16(self, _: Frame, data: bytes) -> bytes:
        return b"".join(struct.pack("<I", byte) for byte in data)

    def _on_17(self, _: Frame, data: bytes) -> bytes:
        return bytes(struct.unpack(f"<{len(data) // 4}I", data))

    def _on_19(self, _: Frame, data: bytes) -> bytes:
        (n_past,) = struct.unpack("<I", data)
        if n_past > self.n_past:
            raise Refusal(-109)
        self.n_past = n_past
        return b""

    # --- the card ---------------------------------------------------------------------------------

    def _on_20(self, _: Frame, data: bytes) -> bytes:
        name = data.decode()
        sizes = [len(self.files[n]) if n in self.files else ABSENT for n in (name, f"{name}.part")]
        return struct.pack("<II", *sizes)

    def _on_21(self, _: Frame, data: bytes) -> bytes:
        first, n, part = struct.unpack_from("<IHB", data)
        content = self.files[data[7:].decode() + (".part" if part else "")]
        chunks = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)]
        return b"".join(struct.pack("<I", zlib.crc32(c)) for c in chunks[first : first + n])

    def _on_22(self, frame: Frame, data: bytes) -> bytes:
        head, size, crc, keep = struct.unpack_from("<IIII", data)
        path = f"{head:08x}/{data[16:].decode()}"
        part = self.files.get(f"{path}.part", b"")
        if keep % CHUNK or keep > len(part):
            raise Refusal(-107)
        if sum(map(len, self.files.values())) - len(part) + size > self.capacity:
            raise Refusal(-103)
        self.files[f"{path}.part"] = part[:keep]
        self.upload = Upload(path, frame.seq, size, crc, keep // CHUNK)
        return b""

    def _data(self, data: bytes) -> None:
        up = self.upload
        if up is None or len(data) < 11:
            return
        chunk, offset, crc = struct.unpack_from("<IHI", data)
        piece = data[10:]
        if not up.written <= chunk < min(up.written + WINDOW, up.chunks()) or offset % 64:
            return
        held = up.held.setdefault(chunk, {})
        for at in range(0, len(piece), 64):
            held[(offset + at) // 64] = piece[at : at + 64]
        is_whole = up.bitmap(chunk) == up.all_pieces(chunk)
        if is_whole and zlib.crc32(b"".join(held[i] for i in sorted(held))) != crc:
            held.clear()
        while up.written < up.chunks() and up.bitmap(up.written) == up.all_pieces(up.written):
            whole = up.held.pop(up.written)
            self.files[f"{up.path}.part"] += b"".join(whole[i] for i in sorted(whole))
            up.written += 1
            self._send(0x63, up.seq, self._ack(up))

    def _ack(self, up: Upload) -> bytes:
        more = [up.bitmap(up.written + 1 + i) for i in range(WINDOW - 1)]
        while more and not more[-1]:
            more.pop()
        first = up.bitmap(up.written)
        return struct.pack(f"<IQB{len(more)}Q", up.written, first, len(more), *more)

    def _on_24(self, _: Frame, __: bytes) -> bytes:
        if self.upload is None:
            raise Refusal(-109)
        return self._ack(self.upload)

    def _on_25(self, _: Frame, __: bytes) -> bytes:
        up, self.upload = self.upload, None
        if up is None:
            raise Refusal(-109)
        content = self.files[f"{up.path}.part"]
        if len(content) != up.size or zlib.crc32(content) != up.crc:
            raise Refusal(-107)
        self.files[up.path] = self.files.pop(f"{up.path}.part")
        return b""

    def _on_26(self, _: Frame, data: bytes) -> bytes:
        self.current = data.hex()
        return b""

    def _on_27(self, _: Frame, data: bytes) -> bytes:
        (first,) = struct.unpack("<H", data)
        lines = []
        for name, content in sorted(self.files.items()):
            folder = name.split("/")[0]
            mark = "*" if self.current.startswith(folder) else "-"
            line = f"{mark} {folder} {self.models.get(folder, '')}".rstrip()
            lines += [line] if "/" in name and line not in lines else []
            lines.append(f"{len(content)} {name}")
        return "".join(f"{line}\n" for line in lines[first : first + 3]).encode()

    def _on_28(self, _: Frame, data: bytes) -> bytes:
        name = data.decode()
        folder = name.split("/")[0]
        if self.current.startswith(folder) and not name.endswith(".part"):
            raise Refusal(-109)
        if name == folder:
            if any(other.startswith(f"{folder}/") for other in self.files):
                raise Refusal(-102)
        elif self.files.pop(name, None) is None:
            raise Refusal(-102)
        return b""

    def _on_29(self, _: Frame, __: bytes) -> bytes:
        free = self.capacity - sum(map(len, self.files.values()))
        return struct.pack("<QQ", free, self.capacity)


class Refusal(Exception):
    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


class FakeLine:
    """A transport to a `FakeBoard`, with faults and a clock of its own."""

    def __init__(
        self,
        board: FakeBoard,
        faults: Faults | None = None,
        *,
        baud: int | None = None,
        reset_at: int = 0,
    ) -> None:
        self.board = board
        self.faults = faults or Faults()
        self._baud = baud
        self._reset_at = reset_at
        self._clock = 0.0
        self._inbox = bytearray()
        self.written = 0
        self.closed = False
        self.slice = random.Random(1)

    @property
    def baud(self) -> int | None:
        return self._baud

    def now(self) -> float:
        return self._clock

    def read(self, timeout: float) -> bytes:
        if not self._inbox:
            self._clock += max(timeout, 1e-4)
            return b""
        n = self.slice.randint(1, 5000)
        data = bytes(self._inbox[:n])
        del self._inbox[:n]
        self._clock += len(data) * 10 / (self._baud or 10_000_000)
        return data

    def write(self, data: bytes) -> None:
        self.written += len(data)
        self._clock += len(data) * 10 / (self._baud or 10_000_000)
        if self._reset_at and self.written >= self._reset_at:
            self._reset_at = 0
            self.board.reset()
            return
        if self._baud is not None and self._baud != self.board.baud:
            return  # noise to the board
        if self._baud is not None and self._baud > self.board.max_baud:
            return
        answer = self.board.receive(self.faults.spoil(data))
        self._inbox += self.faults.spoil(answer)

    def set_baud(self, baud: int) -> None:
        self._baud = baud
        # The board goes back where no good frame comes: as it would after a second.
        if baud > self.board.max_baud:
            self.board.baud = 115200

    def close(self) -> None:
        self.closed = True
