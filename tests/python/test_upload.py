"""Uploads: whole and equal, or a clear failure, over lines that lose, spoil and invent bytes."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest
from fake_board import CHUNK, FakeBoard, FakeLine, Faults

from host.board.contents import CardFile, Contents
from host.board.upload import upload
from host.errors import BoardError, InputError, LinkError
from host.link.client import Device, Refused, Status

RUNS = 40
RATES = (0.0001, 0.0005, 0.002, 0.01, 0.05)


def make_contents(folder: Path, sizes: dict[str, int], seed: int = 0) -> Contents:
    chance = random.Random(seed)
    files = []
    for name, size in sizes.items():
        data = chance.randbytes(size)
        (folder / name).write_bytes(data)
        chunks = tuple(zlib.crc32(data[at : at + CHUNK]) for at in range(0, size, CHUNK))
        files.append(CardFile(name, folder / name, size, zlib.crc32(data), chunks))
    return Contents("1a2b3c4d" + "00" * 28, tuple(files))


@pytest.fixture
def contents(tmp_path: Path) -> Contents:
    return make_contents(
        tmp_path, {"a.bin": 3 * CHUNK + 100, "b.bin": 64, "c.json": 1, "d.bin": CHUNK}
    )


def assert_complete(board: FakeBoard, contents: Contents) -> None:
    assert board.current == contents.fingerprint
    assert set(board.files) == {f"1a2b3c4d/{file.name}" for file in contents.files}
    for file in contents.files:
        assert board.files[f"1a2b3c4d/{file.name}"] == file.path.read_bytes()


def test_a_clean_line_carries_each_byte_once(contents: Contents) -> None:
    board = FakeBoard()
    progress: list[int] = []
    done = upload(Device(FakeLine(board)), contents, progress=progress.append)
    assert_complete(board, contents)
    assert (done.files, done.skipped, done.sent, done.lost_frames) == (4, 0, contents.size, 0)
    assert sum(progress) == contents.size
    assert done.line_bytes < contents.size * 1.02 + 200


def test_what_is_there_and_equal_is_skipped(contents: Contents) -> None:
    board = FakeBoard()
    upload(Device(FakeLine(board)), contents)
    board.runs.clear()
    done = upload(Device(FakeLine(board)), contents)
    assert (done.files, done.skipped, done.sent) == (0, 4, 0)
    assert 0x22 not in [kind for kind, _ in board.runs]


def test_one_wrong_bit_on_the_card_is_found_and_mended(contents: Contents) -> None:
    board = FakeBoard()
    upload(Device(FakeLine(board)), contents)
    data = bytearray(board.files["1a2b3c4d/a.bin"])
    data[5000] ^= 4
    board.files["1a2b3c4d/a.bin"] = bytes(data)
    done = upload(Device(FakeLine(board)), contents)
    assert (done.files, done.skipped) == (1, 3)
    assert_complete(board, contents)


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_part_is_kept_up_to_its_first_wrong_chunk(contents: Contents, spoilt: bool) -> None:
    board = FakeBoard()
    data = bytearray(contents.files[0].path.read_bytes()[: 2 * CHUNK + 10])
    if spoilt:
        data[CHUNK + 1] ^= 1
    board.files["1a2b3c4d/a.bin.part"] = bytes(data)
    done = upload(Device(FakeLine(board)), contents)
    assert done.resumed == (CHUNK if spoilt else 2 * CHUNK)
    assert_complete(board, contents)


def test_a_card_too_small_is_said_before_anything_is_sent(contents: Contents) -> None:
    board = FakeBoard()
    board.capacity = contents.size - 1
    with pytest.raises(BoardError, match=f"needs {contents.size:,}: 1 are missing") as caught:
        upload(Device(FakeLine(board)), contents)
    assert "use a larger one" in str(caught.value)
    assert caught.value.exit_code == 2
    assert board.files == {}


def crowded() -> FakeBoard:
    """A board whose card holds the current package, an old one and one that was never finished."""
    board = FakeBoard()
    board.current = "cccccccc" + "00" * 28
    board.models = {"cccccccc": "now", "00000001": "tiny dog"}
    board.files = {
        "cccccccc/a.bin": bytes(5000), "cccccccc/a.bin.part": bytes(300),
        "00000001/a.bin": bytes(7000), "00000001/b.bin": bytes(10),
        "00000002/a.bin.part": bytes(20), "notes.txt": bytes(9), "mine/x": bytes(8),
    }  # fmt: skip
    return board


def test_a_full_card_says_what_lies_on_it_and_how_to_make_room(contents: Contents) -> None:
    board = crowded()
    before = dict(board.files)
    used = sum(map(len, board.files.values()))
    board.capacity = used + contents.size - 7000
    with pytest.raises(BoardError) as caught:
        upload(Device(FakeLine(board)), contents)
    said = str(caught.value)
    assert f"has {contents.size - 7000:,} bytes free" in said
    assert f"needs {contents.size:,}: 7,000 are missing" in said
    assert "00000001: tiny dog, 7.0 kB; 00000002: no whole package, 20 B; " in said
    assert "cccccccc: now, 5.3 kB, the current model" in said
    assert "--remove-old removes what is not current and frees 7,330" in said
    assert board.files == before
    board.capacity -= 400
    for remove_old in (False, True):
        with pytest.raises(BoardError, match="would free 7,330, which is not enough"):
            upload(Device(FakeLine(board)), contents, remove_old=remove_old)
        assert board.files == before


def test_remove_old_removes_all_but_the_current_and_its_own(contents: Contents) -> None:
    board = crowded()
    board.files["1a2b3c4d/a.bin.part"] = contents.files[0].path.read_bytes()[:CHUNK]
    board.capacity = sum(map(len, board.files.values())) + contents.size - CHUNK - 7000
    said: list[str] = []
    done = upload(Device(FakeLine(board)), contents, remove_old=True, say=said.append)
    assert (done.removed, done.resumed) == (3, CHUNK)
    assert said == [
        "Removing 00000001: tiny dog, 7.0 kB",
        "Removing 00000002: no whole package, 20 B",
        "Removing unfinished files of cccccccc: now, 5.3 kB, the current model",
    ]
    others = {name for name in board.files if not name.startswith("1a2b3c4d/")}
    assert others == {"cccccccc/a.bin", "notes.txt", "mine/x"}
    assert board.current == contents.fingerprint


@pytest.mark.parametrize("seed", range(4))
def test_old_packages_go_over_a_bad_line_too(contents: Contents, seed: int) -> None:
    board = crowded()
    faults = Faults(seed, drop=0.003, flip=0.003)
    upload(Device(FakeLine(board, faults)), contents, remove_old=True)
    assert not [name for name in board.files if name.startswith("0000000")]
    assert board.current == contents.fingerprint


def test_what_was_there_before_is_not_counted_as_progress(contents: Contents) -> None:
    board = FakeBoard()
    board.files["1a2b3c4d/a.bin.part"] = contents.files[0].path.read_bytes()[: 2 * CHUNK]
    board.files["1a2b3c4d/d.bin"] = contents.files[3].path.read_bytes()
    sent: list[int] = []
    there: list[int] = []
    upload(Device(FakeLine(board)), contents, progress=sent.append, there=there.append)
    assert sorted(there) == [CHUNK, 2 * CHUNK]
    assert sum(sent) == contents.size - 3 * CHUNK


def test_a_reset_counts_nothing_twice_as_progress(tmp_path: Path) -> None:
    contents = make_contents(tmp_path, {"a.bin": 6 * CHUNK, "b.bin": 2 * CHUNK})
    board = FakeBoard()
    progress: list[int] = []
    line = FakeLine(board, baud=115200, reset_at=14000)
    done = upload(Device(line), contents, progress=progress.append)
    assert sum(progress) == contents.size
    assert done.resumed == 0
    assert_complete(board, contents)


def test_an_interrupt_leaves_the_board_usable_and_the_next_upload_goes_on(tmp_path: Path) -> None:
    contents = make_contents(tmp_path, {"a.bin": 20 * CHUNK})
    board = FakeBoard()

    def interrupt(_: int) -> None:
        if len(board.files["1a2b3c4d/a.bin.part"]) > 8 * CHUNK:
            raise KeyboardInterrupt

    line = FakeLine(board, baud=115200)
    with pytest.raises(KeyboardInterrupt), Device(line) as device:
        upload(device, contents, progress=interrupt)
    assert (line.baud, board.baud, line.closed) == (115200, 115200, True)
    assert board.current == ""
    with Device(FakeLine(board, baud=115200)) as device:
        assert device.encode("ab") == [97, 98]
        assert upload(device, contents).resumed > 8 * CHUNK
    assert_complete(board, contents)


def test_a_card_that_fills_up_on_the_way_is_an_error_and_no_switch(contents: Contents) -> None:
    board = FakeBoard()

    def fill(frame: object) -> None:
        if getattr(frame, "type", 0) == 0x22:
            board.capacity = 10

    board.before_answer = fill
    with pytest.raises(Refused) as caught:
        upload(Device(FakeLine(board)), contents)
    assert caught.value.status == Status.FULL
    assert board.current == ""


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seed", range(RUNS // len(RATES)))
def test_a_bad_line_ends_complete_and_equal_or_with_a_sentence(
    tmp_path: Path, rate: float, seed: int
) -> None:
    contents = make_contents(tmp_path, {"a.bin": 5 * CHUNK + 77, "b.json": 300}, seed)
    board = FakeBoard()
    kinds = random.Random(seed).sample(("drop", "flip", "duplicate", "insert"), 2)
    faults = Faults(seed, **dict.fromkeys(kinds, rate / 2))
    line = FakeLine(board, faults)
    try:
        upload(Device(line), contents)
        ended = ""
    except (LinkError, BoardError) as exc:
        ended = str(exc)
    assert line.now() < 300
    if rate < 0.05:
        assert ended == ""
    if ended:
        assert board.current == ""
    else:
        assert_complete(board, contents)


@pytest.mark.parametrize("at", [20, 300, 5000, 9000, 14000, 20000, 24000])
def test_a_board_that_resets_is_found_again_and_the_upload_goes_on(tmp_path: Path, at: int) -> None:
    contents = make_contents(tmp_path, {"a.bin": 4 * CHUNK, "b.bin": 2 * CHUNK})
    board = FakeBoard()
    line = FakeLine(board, baud=115200, reset_at=at)
    done = upload(Device(line), contents)
    assert_complete(board, contents)
    assert done.sent < contents.size + 5 * CHUNK


@pytest.mark.parametrize("way", ["other bytes", "shorter", "gone"])
def test_a_package_that_changes_meanwhile_is_said_at_once(contents: Contents, way: str) -> None:
    path = contents.files[1].path

    def change(_: int) -> None:
        if way == "gone":
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(bytes(64 if way == "other bytes" else 63))

    line = FakeLine(FakeBoard())
    with pytest.raises(InputError, match=r"has changed since .* Start the command again\.$"):
        upload(Device(line), contents, progress=change)
    assert line.now() < 10
    assert line.board.current == ""
    assert line.board.files["1a2b3c4d/a.bin"] == contents.files[0].path.read_bytes()


def test_a_line_that_dies_is_a_sentence_and_what_arrived_is_kept(contents: Contents) -> None:
    class Dies(FakeLine):
        def write(self, data: bytes) -> None:
            if self.written < 10000:
                super().write(data)

    board = FakeBoard()
    with pytest.raises(LinkError):
        upload(Device(Dies(board)), contents)
    assert board.current == ""
    assert len(board.files["1a2b3c4d/a.bin.part"]) >= CHUNK
    done = upload(Device(FakeLine(board)), contents)
    assert done.resumed >= CHUNK
    assert_complete(board, contents)


def test_the_fastest_rate_that_works_is_used_and_left_again(contents: Contents) -> None:
    board = FakeBoard()
    board.max_baud = 500_000
    line = FakeLine(board, baud=115200)
    with Device(line) as device:
        done = upload(device, contents)
    assert done.baud == 460800
    assert line.baud == board.baud == 115200
    assert_complete(board, contents)


def test_one_damaged_frame_in_a_hundred_costs_less_than_half_as_much_again(tmp_path: Path) -> None:
    contents = make_contents(tmp_path, {"a.bin": 1 << 20})
    times = []
    for rate in (0.0, 0.01):
        line = FrameLoss(FakeBoard(), rate)
        device = Device(line)
        line.baud_now = 921600
        start = line.now()
        upload(device, contents)
        times.append(line.now() - start)
        assert_complete(line.board, contents)
    assert times[0] < times[1] < 1.5 * times[0]


class FrameLoss(FakeLine):
    """Damages whole frames, in both directions."""

    baud_now: int | None = None

    def __init__(self, board: FakeBoard, rate: float) -> None:
        super().__init__(board)
        self._rate, self._random = rate, random.Random(11)

    def write(self, data: bytes) -> None:
        before = len(self._inbox)
        if self._random.random() < self._rate and len(data) > 4:
            data = data[:3] + bytes((data[3] ^ 1 or 1,)) + data[4:]
        super().write(data)
        self._clock += len(data) * 10 / 921600
        if self._random.random() < self._rate and len(self._inbox) > before + 4:
            self._inbox[before + 3] ^= 0x40
