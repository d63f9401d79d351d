"""An empty FAT32 volume, by Microsoft's "FAT: General Overview of On-Disk Format", version 1.03.

fatfs-ng writes files to FAT32 but formats FAT12 and FAT16 alone.
"""

from __future__ import annotations

import struct
import zlib

SECTOR = 512
MIN_BYTES = 64 << 20
_RESERVED = 32
_FATS = 2
_MEDIA = 0xF8
_END = 0x0FFFFFFF
_INFO_SECTOR, _BACKUP_SECTOR, _ROOT_CLUSTER = 1, 6, 2


def format_fat32(storage: bytearray, label: str, identity: bytes) -> None:
    """Makes zeroed storage an empty FAT32 volume without a partition table.

    Args:
        storage: A multiple of `SECTOR`, at least `MIN_BYTES`: below some 33 MB it could not be
            FAT32.
        label: Of the volume, up to 11 ASCII characters.
        identity: Anything that sets this volume apart; the same bytes give the same volume.
    """
    sectors = len(storage) // SECTOR
    if len(storage) % SECTOR or len(storage) < MIN_BYTES:
        raise ValueError(f"{len(storage)} bytes are no size for a FAT32 volume")
    per_cluster = 1
    while sectors // per_cluster > 1 << 20:
        per_cluster *= 2
    clusters = (sectors - _RESERVED) // per_cluster
    fat_sectors = -(-(clusters + 2) * 4 // SECTOR)
    clusters = (sectors - _RESERVED - _FATS * fat_sectors) // per_cluster
    boot = struct.pack(
        "<3s8sHBHBHHBHHHIIIHHIHH12xBBBI11s8s",
        b"\xeb\x58\x90", b"MSWIN4.1", SECTOR, per_cluster, _RESERVED, _FATS, 0, 0, _MEDIA, 0,
        63, 255, 0, sectors, fat_sectors, 0, 0, _ROOT_CLUSTER, _INFO_SECTOR, _BACKUP_SECTOR,
        0x80, 0, 0x29, zlib.crc32(identity), label.encode("ascii").ljust(11), b"FAT32   ",
    ).ljust(510, b"\0") + b"\x55\xaa"  # fmt: skip
    info = (
        struct.pack("<I480xIII12x", 0x41615252, 0x61417272, clusters - 1, _ROOT_CLUSTER + 1)
        + b"\0\0\x55\xaa"
    )
    for at in (0, _BACKUP_SECTOR):
        storage[at * SECTOR : (at + 1) * SECTOR] = boot
        storage[(at + _INFO_SECTOR) * SECTOR : (at + _INFO_SECTOR + 1) * SECTOR] = info
    head = struct.pack("<III", 0x0FFFFF00 | _MEDIA, _END, _END)
    for fat in range(_FATS):
        at = (_RESERVED + fat * fat_sectors) * SECTOR
        storage[at : at + len(head)] = head
