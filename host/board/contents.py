"""What of a package goes onto a card: every file, with the checksums of its chunks."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from host.errors import InputError, explain_os_error

CHUNK_BYTES = 4096
_SLOT = struct.Struct("<4sI32s20x")
SLOT_BYTES = _SLOT.size + 4
_LAST = 0xFFFFFFFF


@dataclass(frozen=True)
class CardFile:
    """A file of a package: its name, where it is, and CRC-32s of it and its 4,096-byte chunks."""

    name: str
    path: Path
    size: int
    crc32: int
    chunks: tuple[int, ...]

    def read(self, offset: int, count: int) -> bytes:
        """Returns bytes of it, as they were when the package was read.

        Args:
            offset: A multiple of `CHUNK_BYTES`.
            count: Whole chunks, or what is left.

        Raises:
            InputError: They are others by now, or cannot be read.
        """
        try:
            with self.path.open("rb") as handle:
                handle.seek(offset)
                data = handle.read(count)
        except FileNotFoundError:
            data = b""
        except OSError as exc:
            raise explain_os_error(exc, self.path) from exc
        chunks = [zlib.crc32(data[at : at + CHUNK_BYTES]) for at in range(0, count, CHUNK_BYTES)]
        first = offset // CHUNK_BYTES
        if len(data) != count or tuple(chunks) != self.chunks[first : first + len(chunks)]:
            raise InputError(
                f"The package {self.path.parent} has changed since this command began",
                "Start the command again",
            )
        return data


@dataclass(frozen=True)
class Contents:
    """A package as it goes onto a card.

    Attributes:
        fingerprint: 64 hex digits.
        files: In the order they are written: the manifest last.
    """

    fingerprint: str
    files: tuple[CardFile, ...]

    @property
    def folder(self) -> str:
        """The package's folder in `/tllm`."""
        return self.fingerprint[:8]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @staticmethod
    def of(package: Path) -> Contents:
        """Reads a package, every byte of it checked against its manifest.

        Raises:
            InputError: It is not whole.
        """
        from host.package import Package

        opened = Package.open(package)
        files = [
            CardFile(file.name, package / file.name, file.size, file.crc32, file.chunks)
            for file in sorted(
                opened.manifest.files, key=lambda f: (not f.name.endswith(".bin"), f.name)
            )
        ]
        manifest = _measure(package / "manifest.json")
        return Contents(opened.manifest.fingerprint.hex(), (*files, manifest))


def _measure(path: Path) -> CardFile:
    total, size, chunks = 0, 0, []
    try:
        with path.open("rb") as handle:
            while data := handle.read(CHUNK_BYTES):
                total = zlib.crc32(data, total)
                chunks.append(zlib.crc32(data))
                size += len(data)
    except OSError as exc:
        raise explain_os_error(exc, path) from exc
    return CardFile(path.name, path, size, total, tuple(chunks))


def slot_bytes(sequence: int, fingerprint: str) -> bytes:
    """The 64 bytes of a slot file."""
    head = _SLOT.pack(b"TSLT", sequence, bytes.fromhex(fingerprint))
    return head + struct.pack("<I", zlib.crc32(head))


def parse_slot(data: bytes) -> tuple[int, str] | None:
    """Sequence and fingerprint of a slot; None if it is not valid."""
    if len(data) != SLOT_BYTES:
        return None
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        return None
    magic, sequence, fingerprint = _SLOT.unpack(data[:-4])
    return (sequence, fingerprint.hex()) if magic == b"TSLT" else None


def next_slot(slots: tuple[bytes, bytes], fingerprint: str) -> tuple[int, bytes] | None:
    """Which slot to write and with what, so that a package becomes current; None if it is.

    Raises:
        InputError: No sequence is greater than the current one's.
    """
    parsed = [parse_slot(slot) for slot in slots]
    valid = [(slot[0], index) for index, slot in enumerate(parsed) if slot is not None]
    if not valid:
        return 0, slot_bytes(1, fingerprint)
    sequence, index = max(valid)
    current = parsed[index]
    assert current is not None
    if current[1] == fingerprint:
        return None
    if sequence == _LAST:
        raise InputError(
            "The card's slots cannot be switched any more: their sequence is at its end",
            "Remove the tllm folder from the card",
        )
    return 1 - index, slot_bytes(sequence + 1, fingerprint)
