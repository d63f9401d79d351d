"""What lies on a card beside the package that is to be written, and making room for it."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from host.board.ui import size_text
from host.link.client import Entry

_FOLDER = re.compile(r"[0-9a-f]{8}")
_NAME = struct.Struct("<4s124x32s")
PART = ".part"


@dataclass(frozen=True)
class Stored:
    """A package's folder on a card.

    Attributes:
        folder: Eight hex digits of the fingerprint.
        model: As its descriptor has it; "" where it has none.
        files: Names in it and their bytes.
        is_current: Whether the newest slot names it.
    """

    folder: str
    model: str
    files: tuple[tuple[str, int], ...]
    is_current: bool

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(size for _, size in self.files)

    def sentence(self) -> str:
        """What it is, in a few words."""
        what = f"{self.folder}: {self.model or 'no whole package'}, {size_text(self.size)}"
        return f"{what}, the current model" if self.is_current else what


def stored_in(entries: Sequence[Entry]) -> list[Stored]:
    """The packages of a board's list."""
    found = []
    for folder in entries:
        if folder.size is None and _FOLDER.fullmatch(folder.name):
            start = f"{folder.name}/"
            files = tuple(
                (entry.name.removeprefix(start), entry.size)
                for entry in entries
                if entry.size is not None and entry.name.startswith(start)
            )
            found.append(Stored(folder.name, folder.model, files, folder.is_current))
    return found


def stored_on(root: Path, current: str | None) -> list[Stored]:
    """The packages in a mounted card's `tllm` folder; `current` is the fingerprint in use."""
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.is_dir() and _FOLDER.fullmatch(folder.name):
            files = tuple((p.name, p.stat().st_size) for p in folder.iterdir() if p.is_file())
            is_current = current is not None and current.startswith(folder.name)
            found.append(Stored(folder.name, _model_in(folder), files, is_current))
    return found


def _model_in(folder: Path) -> str:
    try:
        with (folder / "descriptor.bin").open("rb") as handle:
            head = handle.read(_NAME.size)
    except OSError:
        return ""
    if len(head) < _NAME.size:
        return ""
    magic, name = _NAME.unpack(head)
    return str(name.partition(b"\0")[0].decode(errors="replace")) if magic == b"TLLM" else ""


def removable(stored: Sequence[Stored], writing: str) -> list[str]:
    """What may go, as `folder/file` and `folder`, a folder behind its files.

    That is what is neither current nor in the folder that is being written, and the unfinished
    files of the current package.
    """
    names = []
    for package in stored:
        if package.folder == writing:
            continue
        kept = package.is_current
        files = [name for name, _ in package.files if not kept or name.endswith(PART)]
        names += [f"{package.folder}/{name}" for name in files]
        names += [] if kept else [package.folder]
    return names


def room_for(size: int, block: int) -> int:
    """Bytes that a file takes where room is given in blocks."""
    return -(-size // block) * block


def removable_bytes(stored: Sequence[Stored], writing: str, block: int = 1) -> int:
    """Bytes of what `removable` names, in whole blocks."""
    names = set(removable(stored, writing))
    return sum(
        room_for(size, block)
        for package in stored
        for name, size in package.files
        if f"{package.folder}/{name}" in names
    )


def full_card(
    what: str, free: int, need: int, stored: Sequence[Stored], writing: str, block: int = 1
) -> tuple[str, str]:
    """The sentence for a card without room, and the next step.

    Args:
        what: The card, as the user knows it.
        free: Bytes that are free.
        need: Bytes that are needed.
        stored: The packages on it.
        writing: Folder of the package that is to be written.
        block: Bytes in which room is given.
    """
    others = [package for package in stored if package.folder != writing]
    there = "; ".join(package.sentence() for package in others)
    message = (
        f"{what} has {free:,} bytes free and the package needs {need:,}: {need - free:,} are "
        f"missing"
    )
    if there:
        message += f". On it: {there}"
    gain = removable_bytes(stored, writing, block)
    if not gain:
        return message, "Remove other files from the card, or use a larger one"
    if free + gain < need:
        return message, (
            f"--remove-old would free {gain:,}, which is not enough: remove other files too, or "
            "use a larger card"
        )
    return message, f"--remove-old removes what is not current and frees {gain:,}"
