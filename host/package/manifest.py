"""`manifest.json`: sizes and checksums of a package's files (docs/FORMAT.md)."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from host import __version__
from host.errors import InputError
from host.package.facts import MAX_FILE_BYTES, is_file_name
from host.package.layout import CHUNK_BYTES, MANIFEST, OUTSIDE_FINGERPRINT, chunk_count
from host.strict_json import JsonObject, parse_object

FORMAT = "tinyllm-package"
VERSION = 1
GENERATOR = f"host {__version__}"
MAX_BYTES = 64 << 20
_REMEDY = "Make the package again, or copy it again from where it is whole"
_KEYS = ("format", "version", "generator", "name", "fingerprint", "chunk_bytes", "files")
_FILE_KEYS = ("name", "size", "sha256", "crc32", "chunks")
_HEX = re.compile(r"[0-9a-f]*", re.ASCII)


@dataclass(frozen=True)
class ManifestFile:
    """One file as the manifest lists it.

    Attributes:
        name: File name.
        size: Bytes.
        sha256: Hex digits.
        crc32: Of the whole file.
        chunks: CRC-32 of each 4,096 bytes, the last chunk being what is left.
    """

    name: str
    size: int
    sha256: str
    crc32: int
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        generator: Program and version that made the package.
        name: What people call the model.
        fingerprint: SHA-256 of the package, 32 bytes.
        files: Every file but the manifest.
    """

    generator: str
    name: str
    fingerprint: bytes
    files: tuple[ManifestFile, ...]

    def file(self, name: str) -> ManifestFile:
        """Returns the entry of one file.

        Raises:
            InputError: There is none.
        """
        for file in self.files:
            if file.name == name:
                return file
        raise InputError(f"{MANIFEST} does not list {name}", _REMEDY)


class Checksums:
    """Checksums of a file whose bytes come piece by piece."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self._chunks: list[int] = []
        self._chunk = 0

    def update(self, data: bytes | memoryview) -> None:
        """Takes the next bytes."""
        self._sha256.update(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        view = memoryview(data)
        at = 0
        while at < len(view):
            free = CHUNK_BYTES - self.size % CHUNK_BYTES
            part = view[at : at + free]
            self._chunk = zlib.crc32(part, self._chunk)
            self.size += len(part)
            at += len(part)
            if self.size % CHUNK_BYTES == 0:
                self._chunks.append(self._chunk)
                self._chunk = 0

    def entry(self, name: str) -> ManifestFile:
        """Returns what the manifest says of a file of the bytes taken so far."""
        chunks = [*self._chunks, self._chunk] if self.size % CHUNK_BYTES else self._chunks
        return ManifestFile(name, self.size, self._sha256.hexdigest(), self._crc32, tuple(chunks))


def fingerprint_of(files: Iterable[ManifestFile]) -> bytes:
    """Returns the 32 bytes that tell one package from every other."""
    lines = (
        f"{file.name} {file.size} {file.sha256}\n"
        for file in sorted(files, key=lambda file: file.name)
        if file.name not in OUTSIDE_FINGERPRINT
    )
    return hashlib.sha256("".join(lines).encode("ascii")).digest()


def pack_manifest(name: str, files: Iterable[ManifestFile]) -> bytes:
    """Returns the content of `manifest.json`; the same files give the same bytes."""
    files = tuple(files)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "generator": GENERATOR,
        "name": name,
        "fingerprint": fingerprint_of(files).hex(),
        "chunk_bytes": CHUNK_BYTES,
        "files": [
            {
                "name": file.name,
                "size": file.size,
                "sha256": file.sha256,
                "crc32": f"{file.crc32:08x}",
                "chunks": [f"{crc:08x}" for crc in file.chunks],
            }
            for file in files
        ],
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def parse_manifest(data: bytes, name: str = MANIFEST) -> Manifest:
    """Reads the content of a `manifest.json`, trusting nothing in it.

    Args:
        data: The whole file.
        name: What to call it in an error.

    Raises:
        InputError: It is no manifest, is of another version, or contradicts itself.
    """
    content = parse_object(data, name, _REMEDY)
    check_format(content, FORMAT, VERSION)
    content.only(_KEYS)
    if content.integer("chunk_bytes", 0, 1 << 32) != CHUNK_BYTES:
        raise content.wrong(f"chunk_bytes is not {CHUNK_BYTES}")
    files = tuple(_file(entry) for entry in content.children("files"))
    if len({file.name for file in files}) != len(files):
        raise content.wrong("it lists a file twice")
    fingerprint = bytes.fromhex(_hex(content, content.text("fingerprint"), 64))
    if fingerprint != fingerprint_of(files):
        raise content.wrong("its fingerprint is not that of the files it lists")
    return Manifest(content.text("generator"), content.text("name"), fingerprint, files)


def check_format(content: JsonObject, wanted: str, version: int) -> None:
    """Checks the two fields that every JSON file of a package begins with.

    Raises:
        InputError: It is something else, or of a version this program does not know.
    """
    if content.raw("format") != wanted:
        raise content.wrong(f"it is not a {wanted} file")
    found = content.integer("version", 0, 1 << 32)
    if found != version:
        raise InputError(
            f"{content.name} has the format version {found}, and this program knows {version}",
            "Make the package again, or install the newer program",
        )


def _file(entry: JsonObject) -> ManifestFile:
    entry.only(_FILE_KEYS)
    name = entry.text("name")
    if not is_file_name(name) or name == MANIFEST:
        raise entry.wrong(f"{name!a} is no name of a package's file")
    size = entry.integer("size", 1, MAX_FILE_BYTES)
    chunks = entry.items("chunks")
    if len(chunks) != chunk_count(size):
        raise entry.wrong(f"{name} has {len(chunks)} chunks, not {chunk_count(size)}")
    return ManifestFile(
        name,
        size,
        _hex(entry, entry.text("sha256"), 64),
        int(_hex(entry, entry.text("crc32"), 8), 16),
        tuple(int(_hex(entry, chunk, 8), 16) for chunk in chunks),
    )


def _hex(entry: JsonObject, value: object, digits: int) -> str:
    if not isinstance(value, str) or len(value) != digits or not _HEX.fullmatch(value):
        raise entry.wrong(f"a checksum is not {digits} small hex digits")
    return value
