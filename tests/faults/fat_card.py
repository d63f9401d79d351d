"""The board's card as a real FAT volume: ChaN's FatFs (fatfs-ng) behind the device's seam.

Every sector that FatFs writes is kept in order, so that the volume as it was after any of them, the
last one whole or torn, can be made again.
"""

from __future__ import annotations

from typing import Any

import fatfs
from fatfs.diskio import Disk
from fatfs.wrapper import (
    PY_FA_OPEN_ALWAYS,
    PY_FA_READ,
    PY_FA_WRITE,
    PY_FR_NO_FILE,
    PY_FR_NO_PATH,
    DIR_Handle,
    FIL_Handle,
    FILINFO_Handle,
    pyf_close,
    pyf_closedir,
    pyf_lseek,
    pyf_mkdir,
    pyf_open,
    pyf_opendir,
    pyf_read,
    pyf_readdir,
    pyf_rename,
    pyf_stat,
    pyf_sync,
    pyf_truncate,
    pyf_unlink,
    pyf_write,
)
from ram_board import RamBoard

from host.board.fat32 import MIN_BYTES, format_fat32

SECTOR = 512
E_IO, E_FS = -5, -102
_FR_EXIST = 8
_DIRECTORY = 0xFFFFFFFF


class Sectors(Disk):  # type: ignore[misc]
    """A disk of some sectors over a base that stays as it is."""

    def __init__(self, base: bytes, changed: dict[int, bytes] | None = None) -> None:
        self._base = base
        self.changed = dict(changed or {})
        self.written: list[tuple[int, bytes]] = []  # in order

    def ioctl_get_sector_count(self) -> int:
        return len(self._base) // SECTOR

    def ioctl_get_sector_size(self) -> int:
        return SECTOR

    def ioctl_get_block_size(self) -> int:
        return 1

    def sector(self, number: int) -> bytes:
        return self.changed.get(number) or self._base[number * SECTOR : (number + 1) * SECTOR]

    def read(self, sector: int, count: int) -> bytes:
        return b"".join(self.sector(sector + n) for n in range(count // SECTOR))

    def write(self, sector: int, count: int, buff: bytes) -> None:
        assert len(buff) == count
        assert count % SECTOR == 0
        for at in range(0, count, SECTOR):
            data = bytes(buff[at : at + SECTOR])
            self.written.append((sector + at // SECTOR, data))
            self.changed[sector + at // SECTOR] = data


def empty_fat32() -> bytes:
    """An empty FAT32 volume, as small as one can be."""
    storage = bytearray(MIN_BYTES)
    format_fat32(storage, "NO NAME", b"faults")
    return bytes(storage)


class FatCard:
    """Puts a volume behind a board's file functions. Use it as a context manager."""

    def __init__(self, board: RamBoard, disk: Sectors) -> None:
        self._partition = fatfs.Partition(disk)
        self._partition.mount()
        self._open: dict[int, Any] = {}
        self._ffi = board.ffi
        self._keep = self._put_behind(board.port)

    def __enter__(self) -> FatCard:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._open.values():
            pyf_close(handle)
        self._open.clear()
        self._partition.unmount()

    def _path(self, pointer: Any) -> str:
        path: str = self._partition._adjust_path(self._ffi.string(pointer).decode())
        return path

    def _put_behind(self, port: Any) -> list[Any]:
        keep = []
        for name, signature in _SIGNATURES.items():
            callback = self._ffi.callback(signature, getattr(self, f"_{name}"), error=E_IO)
            setattr(port, name, callback)
            keep.append(callback)
        return keep

    # --- the seam ---

    def _file_open(self, _ctx: Any, path: Any, how: int) -> int:
        handle = FIL_Handle()
        mode = PY_FA_READ | (PY_FA_WRITE | PY_FA_OPEN_ALWAYS if how else 0)
        status = pyf_open(handle, self._path(path), mode)
        if status:
            return E_FS
        number = next(n for n in range(len(self._open) + 1) if n not in self._open)
        self._open[number] = handle
        return number

    def _file_close(self, _ctx: Any, file: int) -> int:
        return E_IO if pyf_close(self._open.pop(file)) else 0

    def _file_read(self, _ctx: Any, file: int, offset: int, dst: Any, length: int) -> int:
        if pyf_lseek(self._open[file], offset):
            return E_IO
        status, data = pyf_read(self._open[file], length)
        if status:
            return E_IO
        self._ffi.memmove(dst, data, len(data))
        return len(data)

    def _file_write(self, _ctx: Any, file: int, offset: int, src: Any, length: int) -> int:
        if pyf_lseek(self._open[file], offset):
            return E_IO
        status, count = pyf_write(self._open[file], bytes(self._ffi.buffer(src, length)))
        return E_IO if status or count != length else 0

    def _file_truncate(self, _ctx: Any, file: int, size: int) -> int:
        return E_IO if pyf_lseek(self._open[file], size) or pyf_truncate(self._open[file]) else 0

    def _file_sync(self, _ctx: Any, file: int) -> int:
        return E_IO if pyf_sync(self._open[file]) else 0

    def _file_rename(self, _ctx: Any, old: Any, new: Any) -> int:
        return E_FS if pyf_rename(self._path(old), self._path(new)) else 0

    def _file_remove(self, _ctx: Any, path: Any) -> int:
        return E_FS if pyf_unlink(self._path(path)) else 0

    def _file_size(self, _ctx: Any, path: Any, size: Any) -> int:
        facts = FILINFO_Handle()
        status = pyf_stat(self._path(path), facts)
        if status in (PY_FR_NO_FILE, PY_FR_NO_PATH) or (not status and facts.is_directory()):
            return E_FS
        if status:
            return E_IO
        size[0] = facts.get_size()
        return 0

    def _make_dir(self, _ctx: Any, path: Any) -> int:
        return E_FS if pyf_mkdir(self._path(path)) not in (0, _FR_EXIST) else 0

    def _list(self, _ctx: Any, path: Any, index: int, name: Any, name_len: int, size: Any) -> int:
        folder, facts = DIR_Handle(), FILINFO_Handle()
        if pyf_opendir(folder, self._path(path)):
            return E_FS
        try:
            for _ in range(index + 1):
                if pyf_readdir(folder, facts):
                    return E_IO
                if not facts.get_name():
                    return 0
        finally:
            pyf_closedir(folder)
        text = facts.get_name().encode()[: name_len - 1] + b"\0"
        self._ffi.memmove(name, text, len(text))
        size[0] = _DIRECTORY if facts.is_directory() else facts.get_size()
        return 1


_SIGNATURES = {
    "file_open": "int(void *, const char *, enum dev_open)",
    "file_close": "int(void *, int)",
    "file_read": "int(void *, int, uint32_t, void *, uint32_t)",
    "file_write": "int(void *, int, uint32_t, const void *, uint32_t)",
    "file_truncate": "int(void *, int, uint32_t)",
    "file_sync": "int(void *, int)",
    "file_rename": "int(void *, const char *, const char *)",
    "file_remove": "int(void *, const char *)",
    "file_size": "int(void *, const char *, uint32_t *)",
    "make_dir": "int(void *, const char *)",
    "list": "int(void *, const char *, uint32_t, char *, uint32_t, uint32_t *)",
}
