"""The board's program in this process, and the line to it as a transport on virtual time."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cffi

from host.link.client import Device, Request

TESTS = Path(__file__).resolve().parents[1]
SOURCE = TESTS / "ram_board" / "ram_board.c"
DEVICE_H = TESTS.parent / "firmware" / "lib" / "device" / "device.h"
FAST, BULK = 163_840, 3_900_000
_SLICE = 65536


def _uncommented(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def open_library(path: Path) -> tuple[cffi.FFI, Any]:
    """cffi's view of the built library: (ffi, lib)."""
    ffi = cffi.FFI()
    device = _uncommented(DEVICE_H.read_text(encoding="utf-8"))
    ffi.cdef("enum dev_open { DEV_READ, DEV_WRITE };")
    port = re.search(r"struct dev_port \{.*?\n\};", device, re.DOTALL)
    assert port is not None
    ffi.cdef("struct dev_board;" + port.group())
    header = _uncommented(SOURCE.with_suffix(".h").read_text(encoding="utf-8"))
    ffi.cdef(re.sub(r"^#.*$", "", header, flags=re.MULTILINE))
    return ffi, ffi.dlopen(str(path))


class RamBoard:
    """A board with a card in memory, and a `host.link` transport to it.

    Args:
        library: What `open_library` returned.
        baud: Bits a second at boot; None: bytes take no time.
        fast: Bytes of internal memory.
        bulk: Bytes of external memory.
    """

    def __init__(
        self, library: Any, *, baud: int | None = None, fast: int = FAST, bulk: int = BULK
    ) -> None:
        self.ffi, self.lib = library
        board = self.lib.ram_board_new(fast, bulk, baud or 0)
        self.board = self.ffi.gc(board, self.lib.ram_board_free)
        self.faults = self.lib.ram_board_faults(self.board)
        self.port = self.lib.ram_board_port(self.board)
        self._baud = baud
        self._buffer = self.ffi.new("uint8_t[]", _SLICE)
        self.line_bytes = 0

    def boot(self) -> int:
        """Power on; dev_init's status."""
        return int(self.lib.ram_board_boot(self.board))

    # --- the transport ---

    @property
    def baud(self) -> int | None:
        return self._baud

    def now(self) -> float:
        return float(self.lib.ram_board_clock_us(self.board)) / 1e6

    def read(self, timeout: float) -> bytes:
        wait = max(0, round(timeout * 1e6))
        n = self.lib.ram_board_receive(self.board, self._buffer, _SLICE, wait)
        return bytes(self.ffi.buffer(self._buffer, n))

    def write(self, data: bytes) -> None:
        self.line_bytes += len(data)
        self.lib.ram_board_send(self.board, data, len(data), self._baud or 0)

    def set_baud(self, baud: int) -> None:
        self._baud = baud

    def close(self) -> None:
        pass

    # --- the card ---

    @property
    def reads(self) -> int:
        """Reads that the card was asked for."""
        return int(self.lib.ram_board_reads(self.board))

    @property
    def boots(self) -> int:
        return int(self.lib.ram_board_boots(self.board))

    def put(self, path: str, data: bytes) -> None:
        assert self.lib.ram_board_put(self.board, path.encode(), data, len(data)) == 0

    def get(self, path: str) -> bytes | None:
        size = self.ffi.new("uint32_t *")
        data = self.lib.ram_board_get(self.board, path.encode(), size)
        return None if data == self.ffi.NULL else bytes(self.ffi.buffer(data, size[0]))

    def names(self) -> list[str]:
        found: list[str] = []
        while name := self.lib.ram_board_name(self.board, len(found)):
            found.append(self.ffi.string(name).decode())
        return found

    def install(self, package: Path) -> None:
        """Copies a package to the card's root."""
        for path in sorted(package.iterdir()):
            self.put(f"/{path.name}", path.read_bytes())


def logits_crcs(device: Device, tokens: Sequence[int]) -> list[int]:
    """CRC-32 of the logits at each position, from the board's start."""
    payload = struct.pack(f"<B{len(tokens)}I", 2, *tokens)
    words = struct.unpack(f"<{1 + len(tokens)}I", device.request(Request.FEED, payload))
    assert words[0] == len(tokens)
    return list(words[1:])


def chance(share: float) -> int:
    """A chance as the faults have it, a fraction of 2^32."""
    return round(share * (2**32 - 1))
