"""`host upload`: a package through the board onto its card.

A file goes in pieces of its 4,096-byte chunks, as far ahead as the board's window allows. The
board tells which 64-byte pieces it holds, and the line keeps the order of what it carries, so a
frame is lost for certain when one sent after it has arrived; only then, or when the board says so
after everything was sent, is it sent again. Pieces shrink while many are lost and grow while none
are. Where even the smallest are mostly lost, one chunk at a time is sent, each piece several times
before the board is asked, because acks and questions are lost as well.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from host.board.contents import CardFile, Contents
from host.board.stored import full_card, removable, removable_bytes, stored_in
from host.board.ui import size_text
from host.errors import BoardError, LinkError
from host.link.client import (
    BAUD_RATES,
    CHUNK_BYTES,
    PIECE_BYTES,
    Ack,
    Device,
    LineTooBad,
    Refused,
    Status,
)

_GIVE_UP_S = 60.0  # without a chunk written
_ATTEMPTS = 4  # one after another, of which none brings anything forward
_LOSSY = 0.25
_MOSTLY_LOST, _MOSTLY_HELD = 0.6, 0.2  # of what one round sent
_MOST_COPIES = 32

T = TypeVar("T")


@dataclass
class Uploaded:
    """How an upload went. Sizes in bytes."""

    files: int = 0
    skipped: int = 0
    sent: int = 0
    resumed: int = 0
    line_bytes: int = 0
    lost_frames: int = 0
    removed: int = 0
    seconds: float = 0.0
    baud: int | None = None

    def sentence(self) -> str:
        """The result in a line."""
        if not self.files:
            return f"The card has all {self.skipped} files already; the package is current."
        rate = f", {size_text(self.sent / self.seconds)}/s" if self.seconds > 0 else ""
        extra = f", {self.skipped} were there already" if self.skipped else ""
        extra += f", {size_text(self.resumed)} resumed" if self.resumed else ""
        extra += f", {self.lost_frames} frames sent again" if self.lost_frames else ""
        return (
            f"{self.files} files sent ({size_text(self.sent)} in {self.seconds:.1f} s{rate}"
            f"{extra}); the package is current."
        )


Progress = Callable[[int], None]


def upload(
    device: Device,
    contents: Contents,
    *,
    progress: Progress = lambda _: None,
    there: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
    max_baud: int = BAUD_RATES[0],
    remove_old: bool = False,
) -> Uploaded:
    """Brings a package onto the board's card and makes it current.

    Args:
        device: The board.
        contents: The package.
        progress: Called with the bytes that are now certain to be on the card.
        there: Called instead with those that were there before, which say nothing of the speed.
        say: Called with a line for each package that is removed.
        max_baud: The fastest rate to try on a serial line.
        remove_old: First remove the packages that are neither current nor this one, and unfinished
            files, unless even that frees too little.

    Raises:
        BoardError: The board has no card, it is full, or the like.
        LinkError: The line lost too much, or the board went silent. What has arrived is kept, and
            another upload goes on from there.
    """
    result = Uploaded()
    there = progress if there is None else there
    start = device.now()
    _persist(device, lambda: fastest(device, max_baud))
    todo = []
    for file in contents.files:
        if _persist(device, partial(_is_there, device, contents, file)):
            result.skipped += 1
            there(file.size)
        else:
            todo.append(file)
    _persist(device, lambda: _check_space(device, contents, todo, remove_old=remove_old))
    if remove_old:
        result.removed = _persist(device, lambda: _remove_old(device, contents, say))
        _persist(device, lambda: _check_space(device, contents, todo))
    for file in todo:
        _send_file(device, contents, file, result, progress, there)
        result.files += 1
    _persist(device, lambda: _make_current(device, contents, bool(todo)))
    result.seconds = device.now() - start
    result.baud = device.baud
    return result


def _persist(device: Device, work: Callable[[], T]) -> T:
    """Does what may be done twice again where the line failed it and the board is found again."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return work()
        except LinkError:
            _recover(device)
    return work()


def fastest(device: Device, max_baud: int = BAUD_RATES[0]) -> None:
    """Raises a serial line to the highest rate that both ends manage."""
    if device.baud is None:
        return
    for rate in BAUD_RATES:
        if rate > max_baud:
            continue
        if rate <= device.baud or device.set_baud(rate):
            return


def _name(contents: Contents, file: CardFile) -> str:
    return f"{contents.folder}/{file.name}"


def _is_there(device: Device, contents: Contents, file: CardFile) -> bool:
    name = _name(contents, file)
    size, _ = device.stat(name)
    if size != file.size:
        return False
    return tuple(device.sums(name, len(file.chunks))) == file.chunks


def _make_current(device: Device, contents: Contents, is_new: bool) -> None:
    info = device.info()
    if is_new or info.get("state") != "ready" or info.get("fingerprint") != contents.fingerprint:
        device.commit(contents.fingerprint)


def _remove_old(device: Device, contents: Contents, say: Callable[[str], None]) -> int:
    stored = stored_in(device.entries())
    count = 0
    for package in stored:
        names = removable([package], contents.folder)
        if not names:
            continue
        unfinished = "unfinished files of " if package.is_current else ""
        say(f"Removing {unfinished}{package.sentence()}")
        for name in names:
            try:
                device.remove(name)
            except Refused as exc:
                # It is gone already where the answer to an earlier try was lost with the line.
                if exc.status != Status.FILE_SYSTEM or _is_listed(device, name):
                    raise
        count += 1
    return count


def _is_listed(device: Device, name: str) -> bool:
    return any(entry.name == name for entry in device.entries())


def _check_space(
    device: Device, contents: Contents, todo: list[CardFile], *, remove_old: bool = False
) -> None:
    need = sum(file.size for file in todo)
    if not need:
        return
    held = sum(device.stat(_name(contents, file))[1] or 0 for file in todo)
    free, _ = device.space()
    if need <= free + held:
        return
    stored = stored_in(device.entries())
    if not remove_old or need > free + held + removable_bytes(stored, contents.folder):
        raise BoardError(*full_card("The card", free, need - held, stored, contents.folder))


def _send_file(
    device: Device,
    contents: Contents,
    file: CardFile,
    result: Uploaded,
    progress: Progress,
    there: Progress,
) -> None:
    reported = 0

    def advance(chunks: int, tell: Progress = progress) -> None:
        nonlocal reported
        done = min(file.size, chunks * CHUNK_BYTES)
        if done > reported:
            tell(done - reported)
            reported = done

    failures = 0
    is_first = True
    while True:
        before = reported
        try:
            if not is_first and _is_there(device, contents, file):
                advance(len(file.chunks))
                return
            keep = _chunks_to_keep(device, contents, file)
            if is_first:
                result.resumed += keep * CHUNK_BYTES
                advance(keep, there)
            is_first = False
            seq = device.open(
                contents.fingerprint, file.name, file.size, file.crc32, keep * CHUNK_BYTES
            )
            sender = _Sender(device, file, seq, keep, advance)
            try:
                sender.run()
            finally:
                result.line_bytes += sender.line_bytes
                result.lost_frames += sender.lost_frames
                result.sent += sender.written_bytes
            device.close_file()
            return
        except (LinkError, Refused) as exc:
            # A reset board has no file open; a line that was cut comes back, or does not.
            if isinstance(exc, Refused) and exc.status not in (Status.STATE, Status.MISMATCH):
                raise
            is_first = False
            failures = 1 if reported > before else failures + 1
            if failures >= _ATTEMPTS:
                raise
            if isinstance(exc, LinkError):
                _recover(device)


def _recover(device: Device) -> None:
    """Finds the board again, and sets a rate below the one that failed."""
    failed = device.baud
    device.reconnect()
    lower = [rate for rate in BAUD_RATES if failed is not None and rate < failed]
    if not lower or device.baud is None:
        return
    with contextlib.suppress(LinkError):  # the next try finds that, too
        if device.baud > lower[0]:
            device.set_baud(lower[0])
        else:
            fastest(device, lower[0])


def _chunks_to_keep(device: Device, contents: Contents, file: CardFile) -> int:
    name = _name(contents, file)
    _, part = device.stat(name)
    if not part:
        return 0
    whole = min(part, file.size) // CHUNK_BYTES
    for index, crc in enumerate(device.sums(name, whole, part=True)):
        if crc != file.chunks[index]:
            return index
    return whole


@dataclass
class _InFlight:
    serial: int
    chunk: int
    pieces: int  # bitmap


@dataclass
class _Sender:
    """One open file's journey; serials count frames in the order they went out."""

    device: Device
    file: CardFile
    seq: int
    written: int
    advance: Callable[[int], None]
    line_bytes: int = 0
    lost_frames: int = 0
    written_bytes: int = 0
    _piece: int = CHUNK_BYTES
    _loss: float = 0.0
    _lucky: int = 0
    _copies: int = 1
    _round: int = 1
    _serial: int = 0
    _flying: deque[_InFlight] = field(default_factory=deque)
    _held: dict[int, int] = field(default_factory=dict)  # bitmaps the board reported
    _sent: dict[int, int] = field(default_factory=dict)  # bitmaps of what flies or is held
    _data: dict[int, bytes] = field(default_factory=dict)

    def run(self) -> None:
        """Sends until every chunk is written.

        Raises:
            LinkError: No chunk got through for `_GIVE_UP_S` seconds, or the board is silent.
        """
        moved = self.device.now()
        while self.written < len(self.file.chunks):
            before = self.written
            if self._send_next():
                for ack in self.device.acks(self.seq):
                    self._take(ack, None)
            elif self._round < self._copies:
                self._round += 1
                self._sent = {chunk: self._held.get(chunk, 0) for chunk in self._sent}
            else:
                self._hear_out()
            if self.written > before:
                moved = self.device.now()
            elif self.device.now() - moved > _GIVE_UP_S:
                raise LineTooBad(
                    "The line loses nearly everything that is sent",
                    "Use a shorter cable or a lower baud rate; what has arrived is kept",
                )

    def _hear_out(self) -> None:
        """Waits for acks after all was sent; asks where none comes, and fits the copies."""
        acks = self.device.acks(self.seq, self._stall())
        for ack in acks:
            self._take(ack, None)
        if acks:
            return
        last = self._serial
        wanted = max(1, self._missing())
        self._take(self.device.poll(2 * self._stall()), last)
        if self._piece == PIECE_BYTES:
            lost = self._missing() / wanted
            if lost > _MOSTLY_LOST:
                self._copies = min(2 * self._copies, _MOST_COPIES)
            elif lost < _MOSTLY_HELD:
                self._copies = max(1, self._copies // 2)
        self._round = 1

    def _missing(self) -> int:
        """Pieces that the window lacks."""
        count = 0
        for chunk in self._window():
            pieces = -(-len(self._chunk(chunk)) // PIECE_BYTES)
            count += pieces - self._held.get(chunk, 0).bit_count()
        return count

    def _stall(self) -> float:
        baud = self.device.baud
        return self.device.resend_after / 2 + (2 * CHUNK_BYTES * 10 / baud if baud else 0.0)

    def _window(self) -> range:
        chunks = max(2, self.device.hello.window_bytes // CHUNK_BYTES)
        if self._piece == PIECE_BYTES and (self._copies > 1 or self._loss > _LOSSY):
            chunks = 1
        return range(self.written, min(self.written + chunks, len(self.file.chunks)))

    def _chunk(self, chunk: int) -> bytes:
        if chunk not in self._data:
            offset = chunk * CHUNK_BYTES
            count = min(CHUNK_BYTES, self.file.size - offset)
            self._data[chunk] = self.file.read(offset, count)
        return self._data[chunk]

    def _send_next(self) -> bool:
        for chunk in self._window():
            data = self._chunk(chunk)
            count = -(-len(data) // PIECE_BYTES)
            missing = ((1 << count) - 1) & ~self._sent.get(chunk, 0)
            if not missing:
                continue
            first = (missing & -missing).bit_length() - 1
            run = 0
            while run < self._piece // PIECE_BYTES and missing >> (first + run) & 1:
                run += 1
            bits = ((1 << run) - 1) << first
            self._sent[chunk] = self._sent.get(chunk, 0) | bits
            self._serial += 1
            self._flying.append(_InFlight(self._serial, chunk, bits))
            offset = first * PIECE_BYTES
            self.line_bytes += self.device.send_data(
                self.seq, chunk, offset, self.file.chunks[chunk],
                data[offset : offset + run * PIECE_BYTES],
            )  # fmt: skip
            return True
        return False

    def _take(self, ack: Ack, all_before: int | None) -> None:
        """Learns from an ack; `all_before` is the last serial that has arrived or is lost."""
        if not self.written <= ack.written <= len(self.file.chunks):
            return
        for chunk in range(self.written, ack.written):
            self.written_bytes += len(self._chunk(chunk))
            for known in (self._data, self._held, self._sent):
                known.pop(chunk, None)
        self.written = ack.written
        self.advance(self.written)
        self._held = {self.written + index: bits for index, bits in enumerate(ack.held)}
        certain = all_before or 0
        for frame in self._flying:
            if self._arrived(frame):
                certain = max(certain, frame.serial)
        while self._flying and self._flying[0].serial <= certain:
            self._learn(self._arrived(self._flying.popleft()))
        # What neither flies nor is held is sent again: lost pieces, and those of a chunk that was
        # whole but wrong, which the board has forgotten.
        flying: dict[int, int] = {}
        for frame in self._flying:
            flying[frame.chunk] = flying.get(frame.chunk, 0) | frame.pieces
        for chunk in self._sent:
            self._sent[chunk] = flying.get(chunk, 0) | self._held.get(chunk, 0)

    def _arrived(self, frame: _InFlight) -> bool:
        if frame.chunk < self.written:
            return True
        return self._held.get(frame.chunk, 0) & frame.pieces == frame.pieces

    def _learn(self, arrived: bool) -> None:
        self.lost_frames += not arrived
        if self._copies > 1:  # one of several arrived, which says nothing of each
            return
        self._loss += ((not arrived) - self._loss) / 8
        self._lucky = self._lucky + 1 if arrived else 0
        if self._loss > _LOSSY and self._piece > PIECE_BYTES:
            self._piece //= 2
            self._loss /= 2
        elif self._lucky >= 32 and self._piece < CHUNK_BYTES:
            self._piece *= 2
            self._lucky = 0
