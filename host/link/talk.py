"""An answer to a prompt as the board said it, whatever the line lost of it: docs/PROTOCOL.md.

The events of GENERATE say where in the answer their text stands. What is missing between them is
asked for with TEXT, while the board goes on; at the end its length and CRC-32 show that nothing
is.
"""

from __future__ import annotations

import codecs
import struct
import zlib
from collections.abc import Callable
from typing import Any

from host.errors import LinkError
from host.link.exchange import WORK_S, Exchange, Pending, Refused, Request
from host.link.frames import Frame

_AT_ONCE = 64  # bytes of text asked for
_TOTALS = struct.Struct("<II")
_FIGURES = struct.Struct("<BIIQQQQ")


class Text:
    """Bytes of text that come in pieces, in any order and more than once, shown in order.

    Attributes:
        shown: Bytes of the answer that were passed on, or are missing for good.
        crc: CRC-32 of what was passed on.
        missing: Bytes of it that are not to be had.
    """

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: dict[int, bytes] = {}
        self.shown = self.crc = self.missing = 0

    def take(self, offset: int, data: bytes) -> None:
        """A piece that begins at a byte of the answer."""
        if len(data) > len(self._held.get(offset, b"")) and offset + len(data) > self.shown:
            self._held[offset] = data
        self._show()

    def gap(self, end: int | None = None) -> tuple[int, int] | None:
        """The first bytes that are missing before others (or `end`): offset and count."""
        later = [*self._held, *([] if end is None or end <= self.shown else [end])]
        return (self.shown, min(later) - self.shown) if later else None

    def skip(self, offset: int) -> None:
        """Gives up the text before a byte, up to what is there of it; U+FFFD stands for it."""
        to = min([offset, *self._held])
        if to > self.shown:
            self.missing += to - self.shown
            self.shown = to
            self._decoder.reset()
            self._emit("\ufffd")
            self._show()

    def end(self) -> None:
        """Nothing comes any more."""
        if rest := self._decoder.decode(b"", final=True):
            self._emit(rest)

    def _show(self) -> None:
        while ready := [at for at in self._held if at <= self.shown]:
            at = min(ready)
            data = self._held.pop(at)[self.shown - at :]
            self.shown += len(data)
            self.crc = zlib.crc32(data, self.crc)
            if text := self._decoder.decode(data):
                self._emit(text)


class Talk:
    """One GENERATE until its end: its text, its gaps, its stop.

    Args:
        line: To the board.
        payload: Of the request.
        emit: Called with the answer's text in its order.
    """

    def __init__(self, line: Exchange, payload: bytes, emit: Callable[[str], None]) -> None:
        self.text = Text(emit)
        self._line = line
        self._main = line.post(
            Request.GENERATE, payload, patience=WORK_S, on_event=self._take_event
        )
        self._stop: Pending | None = None
        self._stopping = False
        self._asked: Pending | None = None

    def run(self) -> tuple[Any, ...]:
        """Waits for the end; returns end, tokens of prompt and answer, three times, bytes read.

        The first interrupt (Ctrl-C) stops the answer, a second one is the caller's.

        Raises:
            Refused: The board refuses the prompt, or has failed on the way.
            LinkError: It went silent, or its text is not what it says it is.
        """
        while True:
            try:
                answer = self._step()
            except KeyboardInterrupt:
                if self._stopping:
                    raise
                self._stopping = True
                self._stop = self._line.post(Request.STOP, patience=WORK_S)
                continue
            if answer is not None:
                break
        status, rest = answer
        if status < 0:
            self._fetch_rest(None)
            raise Refused(status, rest.decode(errors="replace"))
        if len(rest) < _FIGURES.size + _TOTALS.size:
            raise LinkError("The board's answer is too short", "Flash it with `host flash`")
        total, crc = _TOTALS.unpack_from(rest, _FIGURES.size)
        self._fetch_rest(total)
        if self.text.shown != total or (not self.text.missing and self.text.crc != crc):
            raise LinkError(
                "What arrived of the answer is not what the board wrote",
                "Ask again, over a shorter cable or with a lower -b",
            )
        return _FIGURES.unpack_from(rest)

    def _step(self) -> tuple[int, bytes] | None:
        pending = [p for p in (self._main, self._stop, self._asked) if p is not None]
        frame = self._line.next_frame(min(p.due for p in pending) - self._line.now())
        answer = None if frame is None else self._take(frame)
        if answer is None and self._line.is_drained:
            now = self._line.now()
            for waiting in (self._main, self._stop, self._asked):
                if waiting is not None and waiting.due <= now:
                    waiting.poke()
        return answer

    def _take(self, frame: Frame) -> tuple[int, bytes] | None:
        answer = self._main.take(frame)
        if self._stop is not None and self._stop.take(frame) is not None:
            self._stop = None
        if self._asked is not None and (text := self._asked.take(frame)) is not None:
            self._asked = None
            self._take_text(*text)
        if self._asked is None and answer is None and (gap := self.text.gap()):
            self._asked = self._line.post(Request.TEXT, self._question(gap), patience=WORK_S)
        return answer

    def _take_event(self, payload: bytes) -> None:
        if len(payload) > 4:
            self.text.take(struct.unpack_from("<I", payload)[0], payload[4:])

    def _question(self, gap: tuple[int, int]) -> bytes:
        offset, count = gap
        return struct.pack("<BIB", self._main.seq, offset, min(count, _AT_ONCE))

    def _take_text(self, status: int, rest: bytes) -> int | None:
        """Takes an answer to TEXT; returns the bytes that the board has written so far."""
        if status < 0 or len(rest) < _TOTALS.size:
            return None
        total, offset = _TOTALS.unpack_from(rest)
        self.text.skip(offset)
        self.text.take(offset, rest[_TOTALS.size :])
        return int(total)

    def _fetch_rest(self, total: int | None) -> None:
        """Asks for what is missing after the end, as long as the board has it."""
        try:
            if total is None:
                total = self._ask((self.text.shown, 0))
            while total is not None and (gap := self.text.gap(total)):
                if self._ask(gap) is None or self.text.shown == gap[0]:
                    break
        except LinkError:
            pass
        while gap := self.text.gap(total):
            self.text.skip(sum(gap))
        self.text.end()

    def _ask(self, gap: tuple[int, int]) -> int | None:
        try:
            rest = self._line.request(Request.TEXT, self._question(gap))
        except Refused:
            return None
        return self._take_text(0, rest)
