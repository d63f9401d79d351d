"""Packages on their way to the card: lost pieces, resumed files, power cuts, switches."""

from __future__ import annotations

import json
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from device_board import (
    CHUNK,
    SANITIZED,
    Answer,
    Board,
    Closed,
    Kind,
    Status,
    fingerprint,
    make_package,
    slot,
)

Boot = Callable[..., Board]
POWER_CUT = 42


@pytest.fixture(scope="module")
def package(stories260k_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(stories260k_bin, tmp_path_factory.mktemp("upload") / "package")


@pytest.fixture(scope="module")
def other(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as another package: it has another fingerprint."""
    folder = tmp_path_factory.mktemp("other") / "package"
    shutil.copytree(package, folder)
    descriptor = bytearray((folder / "descriptor.bin").read_bytes())
    descriptor[96:100] = b"\x12\x34\x56\x78"
    descriptor[-4:] = struct.pack("<I", zlib.crc32(descriptor[:-4]))
    (folder / "descriptor.bin").write_bytes(descriptor)
    return folder


@pytest.fixture
def boot(build_sim: Callable[..., Path], gcc: str) -> Iterator[Callable[..., Board]]:
    boards = []

    def start(card: Path, *options: object) -> Board:
        board = Board(build_sim(gcc, SANITIZED), card, options)
        boards.append(board)
        board.until("\n> ")
        return board

    yield start
    for board in boards:
        code, complaint = board.close()
        assert code in (0, POWER_CUT), complaint


def names(package: Path) -> list[str]:
    """What the card needs: the descriptor comes last."""
    listed = sorted(p.name for p in package.glob("*.bin") if p.name != "descriptor.bin")
    return [*listed, "descriptor.bin"]


def open_payload(package: Path, name: str, keep: int = 0) -> bytes:
    data = (package / name).read_bytes()
    (head,) = struct.unpack(">I", fingerprint(package)[:4])
    return struct.pack("<4I", head, len(data), zlib.crc32(data), keep) + name.encode()


def piece(data: bytes, chunk: int, offset: int, size: int) -> bytes:
    whole = data[chunk * CHUNK : (chunk + 1) * CHUNK]
    head = struct.pack("<IHI", chunk, offset, zlib.crc32(whole))
    return head + whole[offset : offset + size]


def acked(payload: bytes) -> tuple[int, list[int]]:
    written, held, more = struct.unpack("<IQB", payload[:13])
    return written, [held, *struct.unpack(f"<{more}Q", payload[13:])]


def upload(board: Board, package: Path, name: str, size: int = 4096, keep: int = 0) -> Answer:
    """One file, chunk by chunk, waiting for each ack."""
    data = (package / name).read_bytes()
    assert board.ask(Kind.OPEN, open_payload(package, name, keep)).status == 0
    for chunk in range(keep // CHUNK, -(-len(data) // CHUNK)):
        for offset in range(0, min(CHUNK, len(data) - chunk * CHUNK), size):
            board.send(Kind.DATA, piece(data, chunk, offset, size))
        while (frame := board.frame()).kind != Kind.DATA | 0x40:
            pass
        assert acked(frame.payload)[0] == chunk + 1
    return board.ask(Kind.CLOSE)


def upload_all(board: Board, package: Path) -> Answer:
    for name in names(package):
        answer = upload(board, package, name)
        assert answer.status == 0, (name, answer)
    return board.ask(Kind.COMMIT, fingerprint(package))


def info(board: Board) -> dict[str, object]:
    content: dict[str, object] = json.loads(board.good(Kind.INFO).text)
    return content


def install(package: Path, card: Path, *, which: int = 0, sequence: int = 1) -> None:
    """Puts a package on a card as an upload would."""
    head = fingerprint(package).hex()[:8]
    shutil.copytree(package, card / "tllm" / head, dirs_exist_ok=True)
    (card / "tllm" / f"slot{which}").write_bytes(slot(fingerprint(package), sequence))


def test_a_package_goes_to_an_empty_card(boot: Boot, package: Path, tmp_path: Path) -> None:
    board = boot(tmp_path)
    assert info(board)["state"] == "no-model"
    assert upload_all(board, package).status == 0
    after = info(board)
    assert (after["state"], after["fingerprint"]) == ("ready", fingerprint(package).hex())
    board.greedy()
    assert board.generate("Once upon a time", 10).startswith(", there was a little")
    folder = tmp_path / "tllm" / fingerprint(package).hex()[:8]
    for name in names(package):
        assert (folder / name).read_bytes() == (package / name).read_bytes()
    assert not list(folder.glob("*.part"))
    assert (tmp_path / "tllm" / "slot0").read_bytes() == slot(fingerprint(package), 1)
    assert info(boot(tmp_path))["state"] == "ready"


def test_a_second_package_takes_over_and_the_first_stays(
    boot: Boot, package: Path, other: Path, tmp_path: Path
) -> None:
    install(package, tmp_path, sequence=7)
    board = boot(tmp_path)
    for name in names(other):
        assert upload(board, other, name).status == 0
        assert board.generate("Once", 1)
    assert info(board)["fingerprint"] == fingerprint(package).hex()
    assert board.good(Kind.COMMIT, fingerprint(other))
    assert info(board)["fingerprint"] == fingerprint(other).hex()
    assert (tmp_path / "tllm" / "slot0").read_bytes() == slot(fingerprint(package), 7)
    assert (tmp_path / "tllm" / "slot1").read_bytes() == slot(fingerprint(other), 8)


def test_no_slot_comes_after_the_last(
    boot: Boot, package: Path, other: Path, tmp_path: Path
) -> None:
    install(package, tmp_path, sequence=0xFFFFFFFF)
    install(other, tmp_path, which=1, sequence=1)
    board = boot(tmp_path)
    answer = board.ask(Kind.COMMIT, fingerprint(other))
    assert (answer.status, answer.text[:35]) == (
        Status.STATE,
        "The card's slots are at their end: ",
    )
    assert info(board)["fingerprint"] == fingerprint(package).hex()
    assert (tmp_path / "tllm" / "slot1").read_bytes() == slot(fingerprint(other), 1)


def test_what_is_incomplete_does_not_become_current(
    boot: Boot, package: Path, other: Path, tmp_path: Path
) -> None:
    install(package, tmp_path)
    board = boot(tmp_path)
    absent = board.ask(Kind.COMMIT, fingerprint(other))
    assert absent.status == Status.NO_MODEL
    folder = tmp_path / "tllm" / "12345678"
    shutil.copytree(other, folder)
    for name in names(other):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1])
        answer = board.ask(Kind.COMMIT, fingerprint(other))
        assert answer.status < 0
        assert name in answer.text
        (folder / name).write_bytes(data)
    assert info(board)["fingerprint"] == fingerprint(package).hex()
    assert board.ask(Kind.COMMIT, b"\x12\x34\x56\x78" + bytes(28)).status == Status.MISMATCH
    assert board.generate("Once", 3)
    assert not (tmp_path / "tllm" / "slot1").exists()
    assert board.ask(Kind.COMMIT, fingerprint(other)).status == 0


@pytest.mark.parametrize("size", [64, 192, 1024])
def test_pieces_in_any_order_twice_or_lost(
    boot: Boot, package: Path, tmp_path: Path, size: int
) -> None:
    rng = random.Random(size)
    name = "layer00_gate_proj.bin"
    data = (package / name).read_bytes()
    chunks = -(-len(data) // CHUNK)
    board = boot(tmp_path)
    assert board.ask(Kind.OPEN, open_payload(package, name)).status == 0
    written, held, rounds = 0, [0], 0
    while written < chunks:
        missing = [
            (chunk, offset)
            for chunk in range(written, min(written + 8, chunks))
            for offset in range(0, min(CHUNK, len(data) - chunk * CHUNK), size)
            if not ((held + [0] * 8)[chunk - written] >> (offset // 64)) & 1
        ]
        rng.shuffle(missing)
        for chunk, offset in missing:
            if rng.random() < 0.7:
                for _ in range(rng.randint(1, 2)):
                    board.send(Kind.DATA, piece(data, chunk, offset, size))
        written, held = acked(board.good(Kind.POLL).body)
        rounds += 1
    assert rounds > 2
    assert board.good(Kind.CLOSE)
    assert board.ask(Kind.CLOSE).status == Status.STATE
    stored = tmp_path / "tllm" / fingerprint(package).hex()[:8] / name
    assert stored.read_bytes() == data


def test_wrong_and_foreign_pieces_are_not_written(
    boot: Boot, package: Path, tmp_path: Path
) -> None:
    name = "layer00_q_proj.bin"
    data = (package / name).read_bytes()
    assert len(data) == CHUNK
    board = boot(tmp_path)
    board.send(Kind.DATA, piece(data, 0, 0, 64))
    assert board.ask(Kind.POLL).status == Status.STATE
    assert board.ask(Kind.OPEN, open_payload(package, name)).status == 0
    crc = zlib.crc32(data)
    for bad in (
        struct.pack("<IHI", 1, 0, crc) + data[:64],  # beyond the file
        struct.pack("<IHI", 0xFFFFFFFF, 0, crc) + data[:64],
        struct.pack("<IHI", 0, 32, crc) + data[:64],  # no multiple of 64
        struct.pack("<IHI", 0, 4096, crc) + data[:64],
        struct.pack("<IHI", 0, 4032, crc) + data[:128],
        struct.pack("<IHI", 0, 0, crc) + data[:63],
        struct.pack("<IHI", 0, 0, crc),
        b"\0" * 5,
    ):
        board.send(Kind.DATA, bad)
        assert acked(board.good(Kind.POLL).body) == (0, [0])
    wrong = bytearray(data)
    wrong[100] ^= 4
    board.send(Kind.DATA, struct.pack("<IHI", 0, 0, crc) + wrong)
    assert acked(board.good(Kind.POLL).body) == (0, [0]), "whole but wrong is forgotten"
    board.send(Kind.DATA, struct.pack("<IHI", 0, 0, crc ^ 1) + data[:2048])
    board.send(Kind.DATA, piece(data, 0, 2048, 2048))
    assert acked(board.good(Kind.POLL).body) == (0, [0xFFFFFFFF << 32])
    assert board.ask(Kind.CLOSE).status == Status.STATE
    board.send(Kind.DATA, piece(data, 0, 0, 2048))
    assert acked(board.good(Kind.POLL).body) == (1, [0])
    assert board.good(Kind.CLOSE)


def test_a_file_whose_checksum_differs_is_not_taken(
    boot: Boot, package: Path, tmp_path: Path
) -> None:
    name = "layer00_q_proj.bin"
    data = (package / name).read_bytes()
    payload = bytearray(open_payload(package, name))
    payload[8] ^= 1
    board = boot(tmp_path)
    assert board.ask(Kind.OPEN, bytes(payload)).status == 0
    board.send(Kind.DATA, piece(data, 0, 0, CHUNK))
    assert board.ask(Kind.CLOSE).status == Status.MISMATCH
    folder = tmp_path / "tllm" / fingerprint(package).hex()[:8]
    assert [p.name for p in folder.iterdir()] == [f"{name}.part"]


def test_an_upload_goes_on_after_a_reset(boot: Boot, package: Path, tmp_path: Path) -> None:
    name = "embed_tokens.bin"
    data = (package / name).read_bytes()
    board = boot(tmp_path)
    assert board.ask(Kind.OPEN, open_payload(package, name)).status == 0
    for chunk in range(3):
        board.send(Kind.DATA, piece(data, chunk, 0, CHUNK))
    assert acked(board.good(Kind.POLL).body) == (3, [0])
    board.good(Kind.REBOOT)
    board.until("\n> ")
    path = f"{fingerprint(package).hex()[:8]}/{name}".encode()
    assert board.good(Kind.STAT, path).words == (0xFFFFFFFF, 3 * CHUNK)
    sums = board.good(Kind.SUMS, struct.pack("<IHB", 0, 64, 1) + path).words
    assert list(sums) == [zlib.crc32(data[i * CHUNK : (i + 1) * CHUNK]) for i in range(3)]
    assert board.ask(Kind.OPEN, open_payload(package, name, 100)).status == Status.MISMATCH
    assert board.ask(Kind.OPEN, open_payload(package, name, 4 * CHUNK)).status == Status.MISMATCH
    assert upload(board, package, name, keep=2 * CHUNK).status == 0
    assert board.good(Kind.STAT, path).words == (len(data), 0xFFFFFFFF)
    whole = board.good(Kind.SUMS, struct.pack("<IHB", 7, 3, 0) + path).words
    assert list(whole) == [zlib.crc32(data[i * CHUNK : (i + 1) * CHUNK]) for i in range(7, 8)]


@pytest.mark.parametrize(
    "name",
    ["", "../x", "a/b/c", "/x", "x/", ".x", "a/.b", "a b", "a\\b", "é", "x" * 60, "a//b", "a\0b"],
)
def test_names_that_may_not_be_written(boot: Boot, tmp_path: Path, name: str) -> None:
    board = boot(tmp_path)
    raw = name.encode()
    bad = (Status.NAME, Status.PAYLOAD)
    assert board.ask(Kind.STAT, raw).status in bad
    assert board.ask(Kind.REMOVE, raw).status in bad
    assert board.ask(Kind.SUMS, struct.pack("<IHB", 0, 1, 0) + raw).status in bad
    assert board.ask(Kind.OPEN, struct.pack("<4I", 1, 1, 1, 0) + raw).status in bad
    assert not (tmp_path / "tllm").exists() or not any((tmp_path / "tllm").rglob("*.part"))


def test_open_takes_no_directory_and_removing_spares_what_is_needed(
    boot: Boot, package: Path, other: Path, tmp_path: Path
) -> None:
    install(package, tmp_path)
    shutil.copytree(other, tmp_path / "tllm" / "12345678")
    board = boot(tmp_path)
    assert board.ask(Kind.OPEN, struct.pack("<4I", 1, 1, 1, 0) + b"a/b").status == Status.NAME
    head = fingerprint(package).hex()[:8]
    assert board.ask(Kind.REMOVE, b"slot0").status == Status.NAME
    assert board.ask(Kind.REMOVE, head.encode()).status == Status.STATE
    assert board.ask(Kind.REMOVE, f"{head}/q.bin".encode()).status == Status.STATE
    assert board.ask(Kind.REMOVE, b"12345678").status == Status.FS, "it is not empty"
    assert board.ask(Kind.REMOVE, b"12345678/nothing.bin").status == Status.FS
    listed = _list(board)
    mine = [line.split(" ", 1)[1] for line in listed if "12345678/" in line]
    assert sorted(mine) == sorted(f"12345678/{p.name}" for p in other.iterdir())
    assert "- 12345678 stories260K" in listed
    assert f"* {head} stories260K" in listed
    part = tmp_path / "tllm" / head / "q_proj.bin.part"
    part.write_bytes(b"left over")
    assert board.good(Kind.REMOVE, f"{head}/q_proj.bin.part".encode())
    assert not part.exists()
    assert "64 slot0" in listed
    for name in mine:
        assert board.good(Kind.REMOVE, name.encode())
    assert board.good(Kind.REMOVE, b"12345678")
    assert not (tmp_path / "tllm" / "12345678").exists()
    assert info(board)["state"] == "ready"


def _list(board: Board) -> list[str]:
    lines: list[str] = []
    while True:
        part = board.good(Kind.LIST, struct.pack("<H", len(lines))).text.splitlines()
        if not part:
            return lines
        lines += part


def test_a_foreign_name_that_is_too_long_hides_no_others(
    boot: Boot, package: Path, tmp_path: Path
) -> None:
    install(package, tmp_path)
    board = boot(tmp_path)
    before = _list(board)
    (tmp_path / "tllm" / ("0" * 48)).mkdir()
    (tmp_path / "tllm" / fingerprint(package).hex()[:8] / ("0" * 48)).touch()
    assert _list(board) == before
    (tmp_path / "tllm" / ("0" * 47)).touch()
    assert sorted(_list(board)) == sorted([*before, f"0 {'0' * 47}"])


def test_space_and_tests_of_the_card(boot: Boot, package: Path, tmp_path: Path) -> None:
    install(package, tmp_path)
    board = boot(tmp_path)
    free, total = struct.unpack("<QQ", board.good(Kind.SPACE).body)
    assert 0 < free <= total == shutil.disk_usage(tmp_path).total
    files = [n for n in names(package) if n != "descriptor.bin"]
    sizes = {n: (package / n).stat().st_size for n in files}
    largest = (package / max(files, key=lambda n: sizes[n])).read_bytes()
    _, crc = struct.unpack("<QI", board.good(Kind.READ_TEST, struct.pack("<II", 512, 70000)).body)
    assert crc == zlib.crc32((largest * 9)[:70000])
    for block in (0, 100, 131072):
        status = board.ask(Kind.READ_TEST, struct.pack("<II", block, 1)).status
        assert status == Status.PAYLOAD
    chunks = sum(-(-size // CHUNK) for size in sizes.values())
    none = (0xFFFFFFFF, 0xFFFFFFFF)
    assert board.good(Kind.CHECK, struct.pack("<II", 0, 0xFFFFFFFF)).words == (0, chunks, *none)
    assert board.good(Kind.CHECK, struct.pack("<II", 3, 5)).words == (0, 5, *none)
    stored = tmp_path / "tllm" / fingerprint(package).hex()[:8] / "embed_tokens.bin"
    data = bytearray(stored.read_bytes())
    data[2 * CHUNK + 5] ^= 1
    stored.write_bytes(data)
    assert board.good(Kind.CHECK, struct.pack("<II", 0, 5)).words == (1, 5, 0, 2)
    assert board.generate("Once upon a time", 5), "what is resident is untouched"


def test_a_read_test_changes_no_answer(boot: Boot, package: Path) -> None:
    board = boot(package)
    board.greedy()
    whole = board.generate("Once upon a time", 20)
    board.good(Kind.SESSION, bytes(6))
    first = board.generate("Once upon a time", 8)
    board.good(Kind.READ_TEST, struct.pack("<II", 4096, 40000))
    assert first + board.generate("", 12) == whole


def _cut_upload(boot: Boot, card: Path, package: Path, options: Sequence[object]) -> bool:
    """Uploads until the power fails; whether it did."""
    board = boot(card, *options)
    try:
        upload_all(board, package)
    except (Closed, AssertionError):
        code, complaint = board.close()
        assert code == POWER_CUT, complaint
        return True
    return board.close()[0] == POWER_CUT


def test_power_cut_at_any_write_leaves_the_old_model_or_the_new(
    boot: Boot, package: Path, other: Path, tmp_path: Path
) -> None:
    seen = set()
    at = 0
    cut = True
    while cut:
        at += 1 if at < 12 or at > 180 else 5
        card = tmp_path / f"card{at}"
        card.mkdir()
        install(package, card)
        cut = _cut_upload(boot, card, other, ("--power-cut-after", at, "--fault-seed", at))
        board = boot(card)
        now = info(board)
        assert now["state"] == "ready", now
        seen.add(now["fingerprint"])
        assert now["fingerprint"] in (fingerprint(package).hex(), fingerprint(other).hex())
        board.greedy()
        assert board.generate("Once upon a time", 3)
        words = board.good(Kind.CHECK, struct.pack("<II", 0, 0xFFFFFFFF)).words
        assert words[0] == 0
        board.close()
        shutil.rmtree(card)
    assert seen == {fingerprint(package).hex(), fingerprint(other).hex()}


@pytest.mark.parametrize("at", [0, 3, 4, 8, 40, 59, 60, 63])
def test_a_torn_slot_is_no_slot(boot: Boot, package: Path, tmp_path: Path, at: int) -> None:
    install(package, tmp_path)
    install(package, tmp_path, which=1, sequence=2)
    path = tmp_path / "tllm" / "slot1"
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    assert info(boot(tmp_path))["state"] == "ready"
    for cut in (0, 32, 63, 65):
        path.write_bytes((slot(fingerprint(package), 9) + b"x")[:cut])
        assert info(boot(tmp_path))["state"] == "ready"
