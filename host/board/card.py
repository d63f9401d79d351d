"""`host card`: a package onto a mounted card, into a folder, or into a FAT32 image.

What a card is, docs/FORMAT.md says: the package in `/tllm/XXXXXXXX/`, and two slots, the newer of
which names the current package. Every file is written under another name, synced, read back,
compared and renamed, and the slot comes last, so that a card pulled out at any moment holds the
old model or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from host.atomic import new_file
from host.board.contents import SLOT_BYTES, CardFile, Contents, next_slot
from host.board.fat32 import MIN_BYTES, SECTOR, format_fat32
from host.board.stored import PART, full_card, removable, removable_bytes, room_for, stored_on
from host.board.ui import size_text
from host.errors import InputError, OutputError, ToolError, explain_os_error

_ROOT = "tllm"
_SLOTS = ("slot0", "slot1")
_BLOCK = 1 << 20
_SPARE_BYTES = 4 << 20


@dataclass
class Written:
    """How it went. Sizes in bytes."""

    where: str
    files: int = 0
    skipped: int = 0
    bytes: int = 0
    switched: bool = False

    def sentence(self) -> str:
        """The result in a line."""
        same = f", {self.skipped} were there already" if self.skipped else ""
        return (
            f"{self.where}: {self.files} files written ({size_text(self.bytes)}){same}, read back "
            "and equal."
        )


Progress = Callable[[int], None]


def write_target(
    target: Path,
    contents: Contents,
    progress: Progress = lambda _: None,
    *,
    there: Progress | None = None,
    remove_old: bool = False,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Written:
    """Writes a package to a folder, a mounted card or, where the name ends in `.img`, an image.

    An image is always made anew; one that is there goes only with `force`. For the rest see
    `write_card`.

    Raises:
        OutputError: It does not fit, the card does not keep what is written, or an image is there.
        InputError: The target cannot be used.
    """
    if target.suffix.lower() == ".img":
        if not force and target.is_file() and target.stat().st_size:
            raise OutputError(
                f"{target} is there already, and all that it holds would be replaced",
                "Choose another name, add --force, or mount it and name the mount point",
            )
        return write_image(target, contents, progress)
    if target.is_block_device():
        raise InputError(
            f"{target} is a disk, not a folder",
            "Mount it and name the mount point, or make a .img file and copy it with `dd`",
        )
    return write_card(target, contents, progress, there=there, remove_old=remove_old, say=say)


def write_card(
    card: Path,
    contents: Contents,
    progress: Progress = lambda _: None,
    *,
    there: Progress | None = None,
    remove_old: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Written:
    """Writes a package to a card's folder and makes it current. What is there and equal stays.

    Args:
        card: The folder.
        contents: The package.
        progress: Called with the bytes written.
        there: Called instead with those of files that were there already.
        remove_old: First remove the packages that are neither current nor this one, unless even
            that frees too little.
        say: Called with a line for each package that is removed.

    Raises:
        OutputError: It does not fit, or the card does not keep what is written.
    """
    done = Written(str(card))
    there = progress if there is None else there
    folder = card / _ROOT / contents.folder
    try:
        if not card.is_dir():
            if not card.parent.is_dir():
                wrong = "is no folder" if card.parent.exists() else "does not exist"
                raise InputError(f"{card.parent} {wrong}", "Mount the card, check its name")
            card.mkdir()
        todo = []
        for file in contents.files:
            if _is_equal(folder / file.name, file):
                done.skipped += 1
                there(file.size)
            else:
                todo.append(file)
        _check_space(card, contents, todo, remove_old=remove_old)
        if remove_old:
            _remove_old(card, contents, say)
            _check_space(card, contents, todo)
        folder.mkdir(parents=True, exist_ok=True)
        for file in todo:
            _write_file(folder, file, progress)
            done.files += 1
            done.bytes += file.size
        _sync_folder(folder)
        done.switched = _switch(card / _ROOT, contents.fingerprint)
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise OutputError(
                f"{card} is full, and the package is not all on it",
                "Remove other files, or old packages with --remove-old, and run this again: what "
                "is whole stays",
            ) from exc
        raise explain_os_error(exc, exc.filename or card) from exc
    return done


def _check_space(
    card: Path, contents: Contents, todo: list[CardFile], *, remove_old: bool = False
) -> None:
    root, current = card / _ROOT, read_slot_fingerprint(card)
    folder = root / contents.folder
    block = os.statvfs(card).f_frsize if hasattr(os, "statvfs") else 1
    need = sum(room_for(file.size, block) for file in todo)
    for file in todo:
        with contextlib.suppress(OSError):
            need -= room_for((folder / f"{file.name}{PART}").stat().st_size, block)
    if current != contents.fingerprint and not all((root / name).exists() for name in _SLOTS):
        need += block
    if not root.is_dir():
        need += block
    if not folder.is_dir():
        # FAT has entries of 32 bytes: one a name, and one for each 13 of its characters.
        entries = sum(1 + room_for(len(file.name + PART), 13) // 13 for file in todo)
        need += room_for(32 * (2 + entries), block)
    free = shutil.disk_usage(card).free
    if need <= free:
        return
    stored = stored_on(root, current)
    if not remove_old or need > free + removable_bytes(stored, folder.name, block):
        raise OutputError(*full_card(str(card), free, need, stored, folder.name, block))


def _remove_old(card: Path, contents: Contents, say: Callable[[str], None]) -> None:
    root = card / _ROOT
    for package in stored_on(root, read_slot_fingerprint(card)):
        names = removable([package], contents.folder)
        if names:
            unfinished = "unfinished files of " if package.is_current else ""
            say(f"Removing {unfinished}{package.sentence()}")
        for name in names:
            path = root / name
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()


def _is_equal(path: Path, file: CardFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return _crc_of(path) == file.crc32


def _crc_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as handle:
        _forget(handle)
        while data := handle.read(_BLOCK):
            crc = zlib.crc32(data, crc)
    return crc


def _forget(handle: BinaryIO) -> None:
    """Has a file read from the card, not from what this computer remembers of writing it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _spoilt(path: Path | str) -> OutputError:
    return OutputError(f"{path} does not read back as it was written", "Try another card or reader")


def _write_file(folder: Path, file: CardFile, progress: Progress) -> None:
    part = folder / f"{file.name}{PART}"
    try:
        with part.open("wb") as handle:
            for offset in range(0, file.size, _BLOCK):
                data = file.read(offset, min(_BLOCK, file.size - offset))
                handle.write(data)
                progress(len(data))
            handle.flush()
            os.fsync(handle.fileno())
        if part.stat().st_size != file.size or _crc_of(part) != file.crc32:
            raise _spoilt(part)
        part.replace(folder / file.name)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _switch(root: Path, fingerprint: str) -> bool:
    paths = [root / name for name in _SLOTS]
    choice = next_slot((_read_slot(paths[0]), _read_slot(paths[1])), fingerprint)
    if choice is None:
        return False
    index, data = choice
    # In place, as the board does it: the other slot stays valid whatever happens here.
    handle = os.open(paths[index], os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.write(handle, data)
        os.ftruncate(handle, len(data))
        os.fsync(handle)
    finally:
        os.close(handle)
    _sync_folder(root)
    if _read_slot(paths[index]) != data:
        raise _spoilt(paths[index])
    return True


def _read_slot(path: Path) -> bytes:
    """What a slot holds, a byte too many where it is longer; nothing where it is not there."""
    if not path.is_file():
        return b""
    with path.open("rb") as handle:
        _forget(handle)
        return handle.read(SLOT_BYTES + 1)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_image(image: Path, contents: Contents, progress: Progress = lambda _: None) -> Written:
    """Makes a FAT32 image with the package on it, for `dd` and emulators.

    The image has no partition table, which boards and computers accept; it is at least 64 MiB, as
    FAT32 asks for more than 65,525 clusters, and mostly holes.

    Raises:
        ToolError: fatfs-ng is not installed.
        OutputError: It cannot be written.
    """
    try:
        import fatfs
    except ImportError:
        raise ToolError(
            "To make an image, fatfs-ng is missing",
            "Run `pip install fatfs-ng`, or write to a mounted card or a folder instead",
        ) from None
    size = max(MIN_BYTES, contents.size + contents.size // 16 + _SPARE_BYTES)
    storage = bytearray(-(-size // _BLOCK) * _BLOCK)
    format_fat32(storage, "NO NAME", contents.fingerprint.encode())
    base = fatfs.Partition(fatfs.RamDisk(storage, sector_size=SECTOR))
    done = Written(str(image))
    try:
        base.mount()
        fat = fatfs.PartitionExtended(base)
        root = f"/{_ROOT}"
        folder = f"{root}/{contents.folder}"
        fat.mkdir(root)
        fat.mkdir(folder)
        for file in contents.files:
            data = file.read(0, file.size)
            fat.write_file(f"{folder}/{file.name}", data)
            if zlib.crc32(fat.read_file(f"{folder}/{file.name}")) != file.crc32:
                raise OutputError(
                    f"{file.name} does not read back from the image as it was written"
                )
            progress(file.size)
            done.files += 1
            done.bytes += file.size
        choice = next_slot((b"", b""), contents.fingerprint)
        assert choice is not None
        fat.write_file(f"{root}/{_SLOTS[choice[0]]}", choice[1])
        base.unmount()
    except (fatfs.FatFSException, OSError) as exc:
        raise ToolError(f"The FAT file system could not be made: {exc}") from exc
    done.switched = True
    _save_image(image, storage)
    return done


def _save_image(image: Path, storage: bytearray) -> None:
    zeros = bytes(_BLOCK)
    with new_file(image) as file:
        for offset in range(0, len(storage), _BLOCK):
            block = storage[offset : offset + _BLOCK]
            if block == zeros[: len(block)]:
                file.seek(len(block), os.SEEK_CUR)
            else:
                file.write(block)
        file.truncate(len(storage))


def read_slot_fingerprint(card: Path) -> str | None:
    """The fingerprint of the package that a card's folder has made current; None for none."""
    from host.board.contents import parse_slot

    found = []
    for name in _SLOTS:
        with contextlib.suppress(OSError):
            if slot := parse_slot(_read_slot(card / _ROOT / name)):
                found.append(slot)
    return max(found)[1] if found else None
