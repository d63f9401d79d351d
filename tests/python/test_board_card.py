"""Cards: folders and images hold the package, the slot is the last word, nothing is half there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import types
import zlib
from pathlib import Path

import fatfs
import pytest
from test_upload import make_contents

from host.board.card import read_slot_fingerprint, write_card, write_target
from host.board.contents import Contents, next_slot, parse_slot, slot_bytes
from host.board.fat32 import MIN_BYTES, format_fat32
from host.errors import HostError, InputError, OutputError

A, B = "aa" * 32, "bb" * 32


@pytest.fixture
def contents(tmp_path: Path) -> Contents:
    (tmp_path / "package").mkdir()
    return make_contents(tmp_path / "package", {"a.bin": 10000, "b.json": 77})


def test_a_slot_is_64_bytes_of_which_the_last_vouch_for_the_rest() -> None:
    data = slot_bytes(7, A)
    assert len(data) == 64
    assert data[:8] == b"TSLT\x07\0\0\0"
    assert data[8:40] == bytes.fromhex(A)
    assert data[40:60] == bytes(20)
    assert int.from_bytes(data[60:], "little") == zlib.crc32(data[:60])
    assert parse_slot(data) == (7, A)
    for at in range(64):
        assert parse_slot(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]) is None
    assert parse_slot(data + b"\0") is None


def test_a_switch_writes_the_slot_that_is_not_current() -> None:
    assert next_slot((b"", b""), A) == (0, slot_bytes(1, A))
    assert next_slot((slot_bytes(1, A), b""), B) == (1, slot_bytes(2, B))
    assert next_slot((slot_bytes(5, A), slot_bytes(4, B)), B) == (1, slot_bytes(6, B))
    assert next_slot((slot_bytes(5, A), slot_bytes(6, B)), A) == (0, slot_bytes(7, A))
    assert next_slot((slot_bytes(5, A), b"torn"), B) == (1, slot_bytes(6, B))
    assert next_slot((slot_bytes(5, A), slot_bytes(4, B)), A) is None


def test_a_slot_that_is_too_long_is_none_as_on_the_board(
    tmp_path: Path, contents: Contents
) -> None:
    write_card(tmp_path / "card", contents)
    with (tmp_path / "card" / "tllm" / "slot0").open("ab") as slot:
        slot.write(b"\0")
    assert read_slot_fingerprint(tmp_path / "card") is None
    assert write_card(tmp_path / "card", contents).switched
    assert read_slot_fingerprint(tmp_path / "card") == contents.fingerprint


def test_a_sequence_at_its_end_is_a_sentence() -> None:
    last = slot_bytes(0xFFFFFFFF, A)
    assert next_slot((last, b""), A) is None
    with pytest.raises(InputError, match="at its end"):
        next_slot((last, slot_bytes(3, B)), B)


def test_a_card_gets_every_file_and_the_slot(tmp_path: Path, contents: Contents) -> None:
    progress: list[int] = []
    done = write_card(tmp_path / "card", contents, progress.append)
    folder = tmp_path / "card" / "tllm" / "1a2b3c4d"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        f.name: f.path.read_bytes() for f in contents.files
    }
    assert sum(progress) == contents.size
    assert (done.files, done.skipped, done.switched) == (2, 0, True)
    assert read_slot_fingerprint(tmp_path / "card") == contents.fingerprint


def test_equal_files_are_left_alone_and_wrong_ones_written_again(
    tmp_path: Path, contents: Contents
) -> None:
    write_card(tmp_path / "card", contents)
    path = tmp_path / "card" / "tllm" / "1a2b3c4d" / "a.bin"
    before = path.stat().st_ino
    done = write_card(tmp_path / "card", contents)
    assert (done.files, done.skipped, done.switched) == (0, 2, False)
    assert path.stat().st_ino == before
    data = bytearray(path.read_bytes())
    data[9999] ^= 1
    path.write_bytes(data)
    assert write_card(tmp_path / "card", contents).files == 1
    assert path.read_bytes() == contents.files[0].path.read_bytes()


def test_a_card_that_does_not_keep_what_is_written_is_refused(
    tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def forget(handle: int) -> None:
        real(handle)
        os.pwrite(handle, b"\xff", 3)

    monkeypatch.setattr(os, "fsync", forget)
    with pytest.raises(OutputError, match="does not read back"):
        write_card(tmp_path / "card", contents)
    assert list((tmp_path / "card").rglob("*.bin*")) == []
    assert read_slot_fingerprint(tmp_path / "card") is None


def test_a_slot_that_is_not_kept_is_refused_and_the_old_model_stays(
    tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_card(tmp_path / "card", Contents(A, contents.files))
    real = os.write

    def spoil(handle: int, data: bytes) -> int:
        return real(handle, data[:40] + b"\xff" + data[41:])

    monkeypatch.setattr(os, "write", spoil)
    with pytest.raises(OutputError, match=r"slot1 does not read back .* Try another card"):
        write_card(tmp_path / "card", contents)
    assert read_slot_fingerprint(tmp_path / "card") == A
    monkeypatch.undo()
    assert write_card(tmp_path / "card", contents).switched
    assert read_slot_fingerprint(tmp_path / "card") == contents.fingerprint


@pytest.mark.parametrize("target", ["card", "card.img"])
def test_a_package_that_has_changed_is_no_fault_of_the_card(
    tmp_path: Path, contents: Contents, target: str
) -> None:
    contents.files[0].path.write_bytes(bytes(10000))
    with pytest.raises(InputError, match="has changed since this command began"):
        write_target(tmp_path / target, contents)
    assert read_slot_fingerprint(tmp_path / "card") is None
    assert not (tmp_path / "card.img").exists()


def test_a_disk_that_fills_up_leaves_the_old_model_current(
    tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    old = make_contents(tmp_path / "old", {"a.bin": 5000}, seed=9)
    old = Contents(A, old.files)
    write_card(tmp_path / "card", old)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match=r"card is full, .* Remove other files.* run this again"):
        write_card(tmp_path / "card", contents)
    assert read_slot_fingerprint(tmp_path / "card") == A
    assert not list((tmp_path / "card").rglob("*.part"))


def test_a_full_card_names_what_lies_on_it_and_removes_the_old_when_asked(
    tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "card"
    write_card(card, contents)
    old, part = card / "tllm" / "00000001", card / "tllm" / contents.folder / "a.bin.part"
    old.mkdir()
    (old / "descriptor.bin").write_bytes(b"TLLM" + bytes(124) + b"tiny dog".ljust(32, b"\0"))
    (old / "x.bin").write_bytes(bytes(5000))
    (card / "tllm" / "photos").mkdir()
    part.write_bytes(bytes(40))
    (tmp_path / "next").mkdir()
    after = make_contents(tmp_path / "next", {"a.bin": 9000})
    after = Contents(B, after.files)
    usage = shutil.disk_usage(card)._replace(free=5000)
    monkeypatch.setattr("os.statvfs", lambda _: types.SimpleNamespace(f_frsize=4096))
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError) as caught:
        write_card(card, after)
    said = str(caught.value)
    assert "has 5,000 bytes free and the package needs 20,480: 15,480 are missing" in said
    assert "00000001: tiny dog, 5.2 kB" in said
    assert f"{contents.folder}: no whole package, 10.1 kB, the current model" in said
    assert "--remove-old removes what is not current and frees 16,384" in said
    assert old.is_dir()
    assert not (card / "tllm" / after.folder).exists()
    usage = usage._replace(free=3000)
    with pytest.raises(OutputError, match="--remove-old would free 16,384, which is not enough"):
        write_card(card, after, remove_old=True)
    assert old.is_dir()
    assert part.is_file()

    lines: list[str] = []
    monkeypatch.undo()
    write_card(card, after, remove_old=True, say=lines.append)
    assert [line.split(",")[0] for line in lines] == [
        "Removing 00000001: tiny dog",
        f"Removing unfinished files of {contents.folder}: no whole package",
    ]
    assert not old.exists()
    assert not part.exists()
    assert (card / "tllm" / "photos").is_dir()
    assert (card / "tllm" / contents.folder / "a.bin").is_file()
    assert read_slot_fingerprint(card) == B


def test_room_is_counted_in_whole_blocks_and_for_folders_too(
    tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "card"
    card.mkdir()
    need = (3 + 1 + 3) * 4096  # a.bin, b.json; a slot and two folders
    usage = shutil.disk_usage(card)
    monkeypatch.setattr("os.statvfs", lambda _: types.SimpleNamespace(f_frsize=4096))
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=need - 1))
    with pytest.raises(OutputError, match=f"package needs {need:,}: 1 are missing"):
        write_card(card, contents)
    assert list(card.iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=need))
    assert write_card(card, contents).switched
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=0))
    assert write_card(card, contents).skipped == 2


def test_what_is_no_card_is_refused(tmp_path: Path, contents: Contents) -> None:
    with pytest.raises(InputError, match="does not exist"):
        write_target(tmp_path / "none" / "card", contents)
    (tmp_path / "file").touch()
    with pytest.raises(HostError):
        write_target(tmp_path / "file", contents)


@pytest.mark.parametrize("name", ["card.img", "card.IMG"])
def test_an_image_is_fat32_and_holds_the_same(
    tmp_path: Path, contents: Contents, name: str
) -> None:
    (tmp_path / name).touch()  # as mktemp does
    done = write_target(tmp_path / name, contents)
    assert done.files == 2
    data = bytearray((tmp_path / name).read_bytes())
    assert data[82:90] == b"FAT32   "
    base = fatfs.Partition(fatfs.RamDisk(data, sector_size=512))
    base.mount()
    fat = fatfs.PartitionExtended(base)
    for file in contents.files:
        assert fat.read_file(f"/tllm/1a2b3c4d/{file.name}") == file.path.read_bytes()
    slot = parse_slot(fat.read_file("/tllm/slot0"))
    assert slot == (1, contents.fingerprint)
    base.unmount()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_image_that_is_there_is_replaced_when_asked_alone(
    tmp_path: Path, contents: Contents
) -> None:
    image = tmp_path / "card.img"
    image.write_bytes(b"photos")
    with pytest.raises(OutputError, match=r"card\.img is there already, .* add --force"):
        write_target(image, contents)
    assert image.read_bytes() == b"photos"
    write_target(image, contents, force=True)
    assert image.stat().st_size >= MIN_BYTES


def test_an_image_that_is_broken_off_leaves_the_old_one(
    tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "card.img").write_bytes(b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_target(tmp_path / "card.img", contents, force=True)
    assert (tmp_path / "card.img").read_bytes() == b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"card.img", "package"}


def test_an_empty_volume_passes_fsck(tmp_path: Path) -> None:
    fsck = shutil.which("fsck.vfat") or shutil.which("fsck.vfat", path="/usr/sbin:/sbin")
    if fsck is None:
        pytest.skip("fsck.vfat is not installed")
    for size in (MIN_BYTES, MIN_BYTES + 5 * 512, 3 * MIN_BYTES):
        storage = bytearray(size)
        format_fat32(storage, "NO NAME", b"x")
        image = tmp_path / f"{size}.img"
        image.write_bytes(storage)
        done = subprocess.run([fsck, "-n", str(image)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("size", [MIN_BYTES - 512, MIN_BYTES + 1])
def test_sizes_that_are_no_fat32_volume(size: int) -> None:
    with pytest.raises(ValueError, match="no size"):
        format_fat32(bytearray(size), "X", b"")
