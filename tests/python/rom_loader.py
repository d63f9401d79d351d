"""An ESP32 in its boot loader, as far as esptool sees it, and the board around it.

`Chip` is the serial protocol of the ROM and of esptool's stub, written from Espressif's description
of it (esptool's documentation, "Serial Protocol"): SLIP packets, registers, a flash chip behind the
SPI controller. It takes the stub's upload and says its greeting, but does not run its code.
`PtyBoard` puts a chip behind a pseudo-terminal: a plain ESP32-CAM on an adapter, with an IO0 jumper
and a reset button and no control lines. Out of its boot loader it runs the simulated board.
"""

from __future__ import annotations

import hashlib
import os
import select
import struct
import subprocess
import termios
import threading
import time
import tty
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SYNC, WRITE_REG, READ_REG = 0x08, 0x09, 0x0A
MEM_BEGIN, MEM_END, MEM_DATA = 0x05, 0x06, 0x07
FLASH_BEGIN, FLASH_DATA, FLASH_END = 0x02, 0x03, 0x04
SPI_SET_PARAMS, SPI_ATTACH, CHANGE_BAUD = 0x0B, 0x0D, 0x0F
DEFL_BEGIN, DEFL_DATA, DEFL_END = 0x10, 0x11, 0x12
MD5, SECURITY_INFO = 0x13, 0x14

BAD_MESSAGE, BAD_CHECKSUM = 0x05, 0x07
SECTOR = 0x1000
FLASH_4MB = 0x16
RAW = 0xFF
SPI, SPI_USER, SPI_USER2, SPI_W0 = 0x3FF42000, 0x3FF4201C, 0x3FF42024, 0x3FF42080
SPI_S3 = 0x60002000
SPI_GO = 1 << 18
READ_ID, READ_SFDP = 0x9F, 0x5A

BOOTED_TO_LOADER = (
    b"ets Jul 29 2019 12:21:46\r\n\r\n"
    b"rst:0x1 (POWERON_RESET),boot:0x3 (DOWNLOAD_BOOT(UART0/UART1/SDIO_REI_REO_V2))\r\n"
    b"waiting for download\r\n"
)
BOOTED_TO_FLASH = (
    b"ets Jul 29 2019 12:21:46\r\n\r\nrst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n"
)
EMPTY_FLASH = b"invalid header: 0xffffffff\r\n" * 4
BROWN_OUT = (
    b"\r\nBrownout detector was triggered\r\n\r\nets Jul 29 2019 12:21:46\r\n\r\n"
    b"rst:0xc (SW_CPU_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n"
)


@dataclass(frozen=True)
class Kind:
    """What distinguishes a chip on its serial line."""

    magic: int
    chip_id: int | None
    status_bytes: int
    spi: tuple[int, int, int, int]  # command, user, user 2, W0
    has_flash_commands: bool = True


ESP32 = Kind(0x00F01D83, None, 4, (SPI, SPI_USER, SPI_USER2, SPI_W0))
ESP32_S3 = Kind(0x9, 9, 4, (SPI_S3, SPI_S3 + 0x18, SPI_S3 + 0x20, SPI_S3 + 0x58))
ESP8266 = Kind(
    0xFFF0C101, None, 2, (0x60000200, 0x6000021C, 0x60000224, 0x60000240), has_flash_commands=False
)


@dataclass
class Faults:
    """What goes wrong."""

    lies_at: int | None = None  # the flash keeps another byte than the one written there
    deaf: bool = False  # nothing it is sent arrives
    silent_after: int | None = None  # bytes of flash data after which it says no more
    damaged_writes: int = 0  # blocks refused for their checksum


def frame(packet: bytes) -> bytes:
    """A SLIP packet."""
    return b"\xc0" + packet.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0"


@dataclass
class Chip:
    """The boot loader: what comes in, what goes out, and what is in the flash."""

    kind: Kind = ESP32
    flash_size: int = FLASH_4MB  # the third byte of the chip's JEDEC id: log2 of its bytes
    faults: Faults = field(default_factory=Faults)
    is_stub: bool = False
    baud: int = 115200
    next_baud: int = 115200
    packets: list[int] = field(default_factory=list)
    flash: bytearray = field(default_factory=bytearray)
    memory: dict[int, bytes] = field(default_factory=dict)
    _in: bytearray | None = None
    _registers: dict[int, int] = field(default_factory=dict)
    _at: int = 0
    _left: int = 0
    _pending: bytearray = field(default_factory=bytearray)
    _inflate: Any = None
    _received: int = 0

    def __post_init__(self) -> None:
        if not self.flash:
            self.flash = bytearray(b"\xff") * (1 << self.flash_size)
        base = 0x3FF5A000  # eFuses: MAC 24:0a:c4:01:02:03, chip revision 3, package D0WD
        self._registers = {
            0x40001000: self.kind.magic,
            base + 4: 0xC4010203,
            base + 8: 0x240A,
            base + 12: 1 << 15 | 1 << 9,
            base + 20: 1 << 20,
            0x3FF6607C: 1 << 31,
        }

    def feed(self, data: bytes) -> bytes:
        """Takes bytes of the line; returns what the chip answers."""
        said = bytearray()
        for byte in data:
            if byte == 0xC0:
                if self._in:
                    body = bytes(self._in).replace(b"\xdb\xdc", b"\xc0")
                    said += self._packet(body.replace(b"\xdb\xdd", b"\xdb"))
                    self._in = None
                else:
                    self._in = bytearray()
            elif self._in is not None:
                self._in.append(byte)
        return bytes(said)

    def _packet(self, body: bytes) -> bytes:
        if len(body) < 8 or body[0] != 0 or len(body) - 8 != struct.unpack_from("<H", body, 2)[0]:
            return b""
        command, checksum = body[1], struct.unpack_from("<I", body, 4)[0]
        data = body[8:]
        if self.faults.deaf:
            return b""
        limit = self.faults.silent_after
        if limit is not None and self._received >= limit:
            return b""
        self.packets.append(command)
        handler = {
            SYNC: self._sync,
            READ_REG: self._read_register,
            WRITE_REG: self._write_registers,
            MEM_BEGIN: self._memory_begin,
            MEM_DATA: self._memory_data,
            MEM_END: self._memory_end,
            FLASH_BEGIN: self._flash_begin,
            FLASH_DATA: self._flash_data,
            FLASH_END: self._done,
            SPI_SET_PARAMS: self._done,
            SPI_ATTACH: self._done,
            CHANGE_BAUD: self._change_baud,
            DEFL_BEGIN: self._deflated_begin,
            DEFL_DATA: self._deflated_data,
            DEFL_END: self._done,
            MD5: self._md5,
            SECURITY_INFO: self._security_info,
        }.get(command)
        if handler is None:
            return self._answer(command, error=BAD_MESSAGE)
        if command in (MEM_DATA, FLASH_DATA, DEFL_DATA):
            state = 0xEF
            for byte in data[16:]:
                state ^= byte
            if self.faults.damaged_writes and command != MEM_DATA:
                self.faults.damaged_writes -= 1
                state ^= 1
            if state != checksum & 0xFF:
                return self._answer(command, error=BAD_CHECKSUM)
        return handler(command, data)

    def _answer(self, command: int, value: int = 0, extra: bytes = b"", error: int = 0) -> bytes:
        n = 2 if self.is_stub else self.kind.status_bytes
        data = extra + bytes((1 if error else 0, error)).ljust(n, b"\0")
        return frame(struct.pack("<BBHI", 1, command, len(data), value) + data)

    def _done(self, command: int, _: bytes) -> bytes:
        return self._answer(command)

    def _sync(self, command: int, _: bytes) -> bytes:
        return self._answer(command, 0 if self.is_stub else 0x20120707) * 8

    def _security_info(self, command: int, _: bytes) -> bytes:
        if self.kind.chip_id is None:
            return self._answer(command, error=BAD_MESSAGE)
        facts = struct.pack("<I8BII", 0, *bytes(8), self.kind.chip_id, 0)
        return self._answer(command, extra=facts)

    def _read_register(self, command: int, data: bytes) -> bytes:
        return self._answer(command, self._registers.get(struct.unpack("<I", data)[0], 0))

    def _write_registers(self, command: int, data: bytes) -> bytes:
        go, _, user2, w0 = self.kind.spi
        for address, value, mask, _delay in struct.iter_unpack("<IIII", data):
            if address == go and value & SPI_GO:
                sent = self._registers.get(user2, 0) & 0xFF
                size = self.flash_size
                ids = {READ_ID: 0x0040EF | size << 16, READ_SFDP: 0x50444653}
                self._registers[w0] = ids.get(sent, 0) if size else 0xFFFFFF
            else:
                self._registers[address] = value & mask
        return self._answer(command)

    def _memory_begin(self, command: int, data: bytes) -> bytes:
        _size, _blocks, _block, self._at = struct.unpack("<IIII", data)
        self.memory[self._at] = b""
        return self._answer(command)

    def _memory_data(self, command: int, data: bytes) -> bytes:
        self.memory[self._at] += data[16:]
        return self._answer(command)

    def _memory_end(self, command: int, data: bytes) -> bytes:
        said = self._answer(command)
        if struct.unpack("<II", data)[1]:
            self.is_stub = True
            said += frame(b"OHAI")
        return said

    def _begin(self, size: int, offset: int) -> None:
        self._at, self._left, self._inflate = offset, size, None
        if not self.is_stub:  # the stub erases while it writes, the ROM before it
            end = -(-(offset + size) // SECTOR) * SECTOR
            self._store(offset // SECTOR * SECTOR, b"\xff" * (end - offset // SECTOR * SECTOR))

    def _store(self, offset: int, data: bytes) -> None:
        self.flash[offset : offset + len(data)] = data
        wrong = self.faults.lies_at
        if wrong is not None and offset <= wrong < offset + len(data):
            self.flash[wrong] ^= 0x10

    def _flash_begin(self, command: int, data: bytes) -> bytes:
        size, _blocks, _block, offset = struct.unpack_from("<IIII", data)
        self._begin(size, offset)
        return self._answer(command)

    def _flash_data(self, command: int, data: bytes) -> bytes:
        self._write(data[16:])
        return self._answer(command)

    def _deflated_begin(self, command: int, data: bytes) -> bytes:
        size, _blocks, _block, offset = struct.unpack_from("<IIII", data)
        self._begin(size, offset)
        self._inflate = zlib.decompressobj()
        return self._answer(command)

    def _deflated_data(self, command: int, data: bytes) -> bytes:
        assert self._inflate is not None
        self._write(self._inflate.decompress(data[16:]))
        return self._answer(command)

    def _write(self, data: bytes) -> None:
        self._received += len(data)
        data = data[: self._left]
        self._store(self._at, data)
        self._at += len(data)
        self._left -= len(data)

    def _change_baud(self, command: int, data: bytes) -> bytes:
        self.next_baud = struct.unpack("<II", data)[0]
        return self._answer(command)

    def _md5(self, command: int, data: bytes) -> bytes:
        offset, size = struct.unpack_from("<II", data)
        digest = hashlib.md5(self.flash[offset : offset + size])  # noqa: S324 - the protocol's
        if self.is_stub:
            return self._answer(command, extra=digest.digest())
        return self._answer(command, extra=digest.hexdigest().encode())


_ODD_RATE = 74880  # the only one in use that termios has no name for
_RATES = {getattr(termios, name): int(name[1:]) for name in dir(termios) if name[1:].isdigit()}


class PtyBoard:
    """A board behind a pseudo-terminal. Use it as a context manager.

    Args:
        program: The command of a simulated board on ``--stdio``, which is what runs once the flash
            holds an application and IO0 is not held to ground; without one nothing answers.
        chip: The chip.
        io0: Whether IO0 is held to ground when power comes on.
        says: What the ROM prints at a normal start, over and over where `loops`.
        rate: What it prints at, bits a second; what the chip listens at where omitted.
    """

    def __init__(
        self,
        program: list[str] | None = None,
        chip: Chip | None = None,
        *,
        io0: bool = True,
        says: bytes = BOOTED_TO_FLASH,
        loops: bool = False,
        rate: int | None = None,
    ) -> None:
        self.chip = chip or Chip()
        self.program = program
        self.says, self.loops, self.rate = says, loops, rate
        self.io0 = io0
        self.vanish_after: int | None = None  # packets until the port is gone
        self.is_weak = False  # its supply breaks down when the program starts
        self.resets = 0
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        settings = termios.tcgetattr(self._slave)
        settings[4] = settings[5] = termios.B115200
        termios.tcsetattr(self._slave, termios.TCSANOW, settings)
        self.port = os.ttyname(self._slave)
        self._wake_in, self._wake_out = os.pipe()
        self._process: subprocess.Popen[bytes] | None = None
        self._in_loader = False
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PtyBoard:
        self._thread.start()
        self.press_reset(io0=self.io0)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ending = True
        os.write(self._wake_out, b"e")
        self._thread.join()
        self._stop_program()
        for handle in (self._slave, self._wake_in, self._wake_out):
            os.close(handle)
        if self._master >= 0:
            os.close(self._master)

    def press_reset(self, *, io0: bool) -> None:
        """Presses the reset button, with or without the jumper on IO0."""
        self.io0 = io0
        os.write(self._wake_out, b"r")

    def _run(self) -> None:
        while not self._is_ending:
            out = -1
            if self._process is not None and self._process.stdout is not None:
                out = self._process.stdout.fileno()
            sources = [handle for handle in (self._wake_in, self._master, out) if handle >= 0]
            ready = select.select(sources, [], [], 0.1 if self._is_looping else None)[0]
            if self._master in ready:
                self._hear(os.read(self._master, 1 << 16))
            if out in ready:
                self._say(os.read(out, 1 << 16))
            if self._wake_in in ready and os.read(self._wake_in, 1) == b"r":
                self._reset()
            if not ready and self._is_looping:
                self._say(self.says)

    @property
    def _is_looping(self) -> bool:
        return self.loops and not self._in_loader and not self._is_ending

    def _reset(self) -> None:
        self.resets += 1
        self._stop_program()
        chip = self.chip
        self.chip = Chip(chip.kind, chip.flash_size, chip.faults, flash=chip.flash)
        self._in_loader = self.io0
        self._say(BOOTED_TO_LOADER if self.io0 else self.says)
        if self.is_weak and not self.io0:
            self._say(BROWN_OUT)
        elif not self.io0 and self.program is not None:
            if self.chip.flash[0x10000] == RAW:
                self._say(EMPTY_FLASH)
                return
            self._process = subprocess.Popen(
                self.program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )

    def _stop_program(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.terminate()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def _hear(self, data: bytes) -> None:
        if self._is_garbled:
            return
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.write(data)
        elif self._in_loader:
            self._say(self.chip.feed(data))
            self.chip.baud = self.chip.next_baud
            if self.vanish_after is not None and len(self.chip.packets) >= self.vanish_after:
                os.close(self._master)
                self._master = -1

    def _say(self, data: bytes) -> None:
        if self._is_garbled:
            data = bytes(byte * 37 + 131 & 0xFF for byte in data)
        view = memoryview(data)
        while view and self._master >= 0:
            view = view[os.write(self._master, view) :]

    @property
    def _is_garbled(self) -> bool:
        """Whether the two ends of the line run at different rates."""
        if self._master < 0:
            return False
        ours = self.rate or self.chip.baud
        return _RATES.get(termios.tcgetattr(self._master)[5], _ODD_RATE) != ours


def wait_until(happened: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits for something that another thread does."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


# --- images as a build makes them -----------------------------------------------------------------


def partition_table(csv: Path) -> bytes:
    """The binary form of a partition table: 32 bytes a row, an MD5 of them, 0xFF to 3,072 bytes."""
    types = {"app": 0, "data": 1}
    subtypes = {"factory": 0x00, "phy": 0x01, "nvs": 0x02, "coredump": 0x03}
    rows = b""
    for line in csv.read_text(encoding="ascii").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, kind, sub, offset, size = (cell.strip() for cell in line.split(",")[:5])
        subtype = subtypes[sub] if sub in subtypes else int(sub, 0)
        rows += struct.pack(
            "<2sBBII16sI", b"\xaa\x50", types[kind], subtype, int(offset, 0), int(size, 0),
            name.encode(), 0,
        )  # fmt: skip
    rows += b"\xeb\xeb" + b"\xff" * 14 + hashlib.md5(rows).digest()  # noqa: S324
    return rows.ljust(0xC00, b"\xff")


def application(data: bytes, chip_id: int = 0) -> bytes:
    """An image as ``esptool elf2image`` writes it: one segment, a checksum and a SHA-256."""
    data += b"\0" * (-len(data) % 4)
    head = struct.pack("<BBBBI", 0xE9, 1, 2, 0x2F, 0x40080000)
    head += struct.pack("<B3BHBHH4xB", 0xEE, 0, 0, 0, chip_id, 0, 0, 0xFFFF, 1)
    body = head + struct.pack("<II", 0x3FFB0000, len(data)) + data
    checksum = 0xEF
    for byte in data:
        checksum ^= byte
    body += b"\0" * (15 - len(body) % 16) + bytes((checksum,))
    return body + hashlib.sha256(body).digest()
