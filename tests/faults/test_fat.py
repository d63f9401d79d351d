"""Uploads to a FAT volume, whose directory knows a file's length only from a sync on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fat_card import E_IO, FatCard, Sectors, empty_fat32
from ram_board import RamBoard

from host.board.contents import Contents
from host.board.upload import upload
from host.errors import BoardError
from host.link.client import Device
from tests.faults.conftest import make_package

CHUNK = 4096
STOP_AFTER = 50 * CHUNK
SYNC = 32 * CHUNK  # what a reset may cost of a file, as docs/RELIABILITY.md says


class Stopped(Exception):
    """The host goes away."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    """A package whose embedding has 78 chunks and a piece."""
    return Contents.of(make_package(tmp_path_factory.mktemp("fat") / "large", 3, vocab=20_000))


def stop_in(device: Device, contents: Contents) -> None:
    certain = 0

    def progress(n: int) -> None:
        nonlocal certain
        certain += n
        if certain > STOP_AFTER:
            raise Stopped

    with pytest.raises(Stopped):
        upload(device, contents, progress=progress)


def test_a_host_that_comes_again_goes_on(library: Any, large: Contents) -> None:
    board = RamBoard(library)
    with FatCard(board, Sectors(empty_fat32())):
        assert board.boot() == 0
        with Device(board) as device:
            stop_in(device, large)
        with Device(board) as device:
            assert upload(device, large).resumed >= STOP_AFTER
            assert device.info()["fingerprint"] == large.fingerprint


def test_a_reset_costs_what_came_after_the_last_sync(library: Any, large: Contents) -> None:
    disk, board = Sectors(empty_fat32()), RamBoard(library)
    with FatCard(board, disk):
        assert board.boot() == 0
        with Device(board) as device:
            stop_in(device, large)
        cut = dict(disk.changed)
    board = RamBoard(library)
    with FatCard(board, Sectors(empty_fat32(), cut)):
        assert board.boot() == 0
        with Device(board) as device:
            done = upload(device, large)
            assert STOP_AFTER - SYNC < done.resumed <= STOP_AFTER + 8 * CHUNK
            assert device.info()["fingerprint"] == large.fingerprint


@contextmanager
def before(board: RamBoard, **functions: Callable[..., int]) -> Iterator[None]:
    """Puts functions before the card's own, which they get as their first argument."""
    port, ffi = board.port, board.ffi
    own = {name: getattr(port, name) for name in functions}
    put = {
        name: ffi.callback(ffi.typeof(own[name]), partial(function, own[name]), error=E_IO)
        for name, function in functions.items()
    }
    for name, callback in put.items():
        setattr(port, name, callback)
    yield
    for name, function in own.items():
        setattr(port, name, function)


def test_a_card_that_fails_at_its_clock_is_written_at_a_lower_one(
    library: Any, large: Contents
) -> None:
    """From one write on it keeps nothing and finds nothing, until it is mounted again slower."""
    board, fails, mounts = RamBoard(library), False, list[bool]()

    def file_write(write: Any, ctx: Any, file: int, offset: int, src: Any, n: int) -> int:
        nonlocal fails
        fails = fails or (offset == STOP_AFTER and not mounts)
        return E_IO if fails else int(write(ctx, file, offset, src, n))

    def file_size(size: Any, ctx: Any, path: Any, found: Any) -> int:
        return E_IO if fails else int(size(ctx, path, found))

    def card_mount(mount: Any, ctx: Any, slower: bool) -> int:
        nonlocal fails
        fails = False
        mounts.append(slower)
        return int(mount(ctx, slower))

    assert board.boot() == 0
    with (
        before(board, file_write=file_write, file_size=file_size, card_mount=card_mount),
        Device(board) as device,
    ):
        upload(device, large)
        assert device.info()["fingerprint"] == large.fingerprint
    assert mounts == [True]


def test_what_a_close_could_not_keep_is_not_written_around(library: Any, large: Contents) -> None:
    """After a write that fails the directory knows no more than at the last sync."""
    board, offsets = RamBoard(library), list[int]()

    def file_write(write: Any, ctx: Any, file: int, offset: int, src: Any, n: int) -> int:
        offsets.append(offset)
        return E_IO if offset == STOP_AFTER else int(write(ctx, file, offset, src, n))

    def file_size(size: Any, ctx: Any, path: Any, found: Any) -> int:
        status = int(size(ctx, path, found))
        found[0] = SYNC if STOP_AFTER in offsets else found[0]
        return status

    assert board.boot() == 0
    with before(board, file_write=file_write, file_size=file_size):
        with Device(board) as device, pytest.raises(BoardError, match="The card failed"):
            upload(device, large)
        assert offsets.count(STOP_AFTER) == 1
        assert max(offsets) == STOP_AFTER


class Forgetful(Sectors):
    """A card that says it wrote a slot, and did not."""

    def write(self, sector: int, count: int, buff: bytes) -> None:
        if bytes(buff[:4]) != b"TSLT":
            super().write(sector, count, buff)


@pytest.mark.parametrize("before", [1, 2, 3], ids=["to another", "and back", "and there again"])
def test_a_switch_that_the_card_does_not_keep_is_said(
    library: Any, package: Path, other: Path, before: int
) -> None:
    """Also where the slot still holds the model's name of an earlier switch."""
    disk, board = Sectors(empty_fat32()), RamBoard(library)
    *kept, lost = [Contents.of((package, other)[n % 2]) for n in range(before + 1)]
    with FatCard(board, disk):
        assert board.boot() == 0
        with Device(board) as device:
            for contents in kept:
                upload(device, contents)
    board = RamBoard(library)
    with FatCard(board, Forgetful(empty_fat32(), disk.changed)):
        assert board.boot() == 0
        with Device(board) as device:
            with pytest.raises(BoardError, match="does not keep what is written"):
                upload(device, lost)
            assert device.info()["fingerprint"] == kept[-1].fingerprint
