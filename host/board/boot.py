"""What a board says before its program does, or instead of it: heard, and explained.

The texts are those of the ESP32's ROM and of ESP-IDF's second stage and start-up code. The ROM's
boot loader is asked with the SYNC packet of Espressif's serial protocol (esptool's documentation).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from host.errors import LinkError
from host.link.client import PROTOCOL_VERSION, Request
from host.link.frames import Decoder, Frame, encode
from host.link.refusal import refusal_in
from host.link.transports import Transport

_KEPT_BYTES = 1 << 14
_HELLO_S = 0.3
_ANSWER = 0x80
_SYNC_BODY = b"\x07\x07\x12\x20" + b"\x55" * 32
_SYNC = b"\xc0" + struct.pack("<BBHI", 0, 0x08, len(_SYNC_BODY), 0) + _SYNC_BODY + b"\xc0"
_SYNCED = b"\xc0\x01\x08"
_SYNC_TRIES = 5
_ENOUGH_BYTES = 24
_LEAST_PRINTABLE = 0.75
_RESTARTS = 3
_LINE_CHARACTERS = 60

_IN_BOOT_LOADER = (
    "The board is in its boot loader",
    "Take the jumper off IO0 and press RST",
)
_WRITE_AGAIN = "Write the program with `host flash`"
_SIGNS: tuple[tuple[bytes, str, str], ...] = (
    (
        rb"Brownout detector",
        "The board's supply is too weak: it says `Brownout detector was triggered` and restarts",
        "Give it 5 V and 1 A at its 5V pin, over short wires",
    ),
    (rb"waiting for download", *_IN_BOOT_LOADER),
    (
        rb"requires? (?:efuse blk|chip) rev|chip revision is (?:too|not)",
        "The board's program was built for newer chips than this one",
        "Write the one for all of them with `host flash -e esp32cam`",
    ),
    (
        rb"invalid header: 0x|No bootable app|csum err:|No OTA|Checksum failed",
        "The board has no whole program in its flash",
        _WRITE_AGAIN,
    ),
    (
        rb"flash read err|ets_main\.c",
        "The board cannot read its flash at its start",
        "Take the card out and press RST, since a card can pull GPIO12 up; if it stays so, write "
        "the program with `host flash`",
    ),
    (
        rb"Guru Meditation Error|abort\(\) was called|assert failed",
        "The board's program crashes",
        _WRITE_AGAIN + "; please report it if it comes back",
    ),
)


@dataclass(frozen=True)
class Heard:
    """Whether the kit's program answered, and the last bytes that came, frames included."""

    answered: bool
    said: bytes


def listen(line: Transport, seconds: float) -> Heard:
    """Says HELLO until it is answered or the time is over, and keeps what comes meanwhile.

    Raises:
        BoardError: The board says why the kit's program cannot run on it.
        LinkError: The line is gone.
    """
    hello = b"\0" + encode(Frame(Request.HELLO, 1, struct.pack("<H", PROTOCOL_VERSION)))
    decoder, said = Decoder(), b""
    start = line.now()
    next_hello = start
    while (now := line.now()) < start + seconds:
        if now >= next_hello:
            line.write(hello)
            next_hello = now + _HELLO_S
        data = line.read(min(next_hello, start + seconds) - now)
        said = (said + data)[-_KEPT_BYTES:]
        if refusal := refusal_in(said):
            raise refusal
        for got in decoder.feed(data):
            if isinstance(got, Frame) and got.type == Request.HELLO | _ANSWER:
                return Heard(True, said)
    return Heard(False, said)


def is_boot_loader(line: Transport) -> bool:
    """Whether the ROM's boot loader, or esptool's stub, is at the other end.

    Raises:
        LinkError: The line is gone.
    """
    said = b""
    for _ in range(_SYNC_TRIES):
        line.write(_SYNC)
        end = line.now() + 0.1
        while line.now() < end:
            said += line.read(end - line.now())
            if _SYNCED in said:
                return True
    return False


def in_boot_loader() -> LinkError:
    """What to do about a board that waits for a program."""
    return LinkError(*_IN_BOOT_LOADER)


def explain(said: bytes, baud: int | None) -> LinkError | None:
    """Says what a board's own words mean; None where it said nothing.

    Args:
        said: What came from it.
        baud: The rate it was heard at, bits a second.
    """
    for pattern, wrong, advice in _SIGNS:
        if re.search(pattern, said):
            return LinkError(wrong, advice)
    if len(re.findall(rb"rst:0x", said)) >= _RESTARTS:
        reason = re.findall(rb"rst:0x\w+ \((\w+)\)", said)
        why = f", the last time for {reason[-1].decode()}" if reason else ""
        return LinkError(f"The board restarts again and again{why}", _WRITE_AGAIN)
    if is_unreadable(said):
        at = f" at {baud} baud" if baud else ""
        return LinkError(
            f"What the board sends cannot be read{at}",
            "Check GND, the wires and their levels, and try another -b: 115200, or 74880",
        )
    words = text_of(said)
    if words:
        return LinkError(
            f"Another program than this kit's runs on the board: it says `{words[-1]}`",
            _WRITE_AGAIN,
        )
    return None


def is_unreadable(said: bytes) -> bool:
    """Whether bytes look like text that came at another rate."""
    printable = sum(32 <= byte < 127 or byte in b"\t\n\r\x1b" for byte in said)
    return len(said) >= _ENOUGH_BYTES and printable < _LEAST_PRINTABLE * len(said)


def text_of(said: bytes) -> list[str]:
    """The lines of what was heard, each cut to what a sentence takes; none if it is unreadable."""
    if is_unreadable(said):
        return []
    text = "".join(c if c.isprintable() else "\n" for c in said.decode("ascii", "replace"))
    lines = (line.strip("\N{REPLACEMENT CHARACTER} ") for line in text.splitlines())
    return [line[:_LINE_CHARACTERS] for line in lines if len(line) > 1]
