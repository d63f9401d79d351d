"""A card that fails, a package that is damaged, memory that does not do."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from device_board import CHUNK, RED_ZONE, SANITIZED, Board, Kind, Status, make_package

Boot = Callable[..., Board]
# The head's last rows, which is all that stays on the card, are read once a token.
STREAMING = ("--bulk", 560000)
LINE = "Once upon a time"


@pytest.fixture(scope="module")
def package(stories260k_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(stories260k_bin, tmp_path_factory.mktemp("card") / "package")


@pytest.fixture(scope="module")
def sim(build_sim: Callable[..., Path], gcc: str) -> Path:
    return build_sim(gcc, SANITIZED)


@pytest.fixture
def boot(sim: Path, package: Path) -> Iterator[Callable[..., Board]]:
    boards = []

    def start(*options: object, card: Path = package) -> Board:
        boards.append(Board(sim, card, options))
        return boards[-1]

    yield start
    for board in boards:
        code, complaint = board.close()
        assert code == 0, complaint


@pytest.fixture
def card(package: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(package, tmp_path / "card"))


@pytest.fixture(scope="module")
def text(sim: Path, package: Path) -> str:
    """What a board that nothing happens to answers."""
    with Board(sim, package) as board:
        board.greedy()
        return board.generate(LINE, 12)


def stats(board: Board) -> dict[str, int]:
    content: dict[str, int] = json.loads(board.good(Kind.STATS).text)
    return content


def state(board: Board) -> tuple[str, str]:
    content = json.loads(board.good(Kind.INFO).text)
    return content["state"], content["error"]


# --- reads that fail ---


@pytest.mark.parametrize("fault", ["--read-fail", "--read-short", "--read-flip"])
def test_every_read_may_fail_once(boot: Boot, text: str, fault: str) -> None:
    struck = 0
    for turn in [*range(1, 70, 3), *range(70, 140, 11)]:
        board = boot(*STREAMING, fault, turn)
        assert "context 512" in board.until("\n> ")
        board.greedy()
        assert board.generate(LINE, 12) == text
        counts = stats(board)
        struck += counts["read_errors"] > 0
        assert counts["remounts"] == 0, "once is no reason to slow the card down"
        board.close()
    assert struck > 20


@pytest.mark.parametrize("turn", [1, 2, 3, 5, 9, 20, 40, 60])
def test_reads_that_fail_for_ever_end_in_a_sentence(boot: Boot, turn: int) -> None:
    board = boot(*STREAMING, "--read-fail", f"{turn}:forever")
    said = board.until("\n> ")
    if "context 512" in said:
        said = board.enter(LINE)
    assert re.search(r"The card failed while reading [a-z0-9_]+\.bin at byte \d+", said)
    assert "tinyllm" in board.enter("/info")
    answer = board.ask(Kind.GENERATE, b"\x05" + bytes(7) + b"Hello")
    assert answer.status == Status.CARD_READ
    assert ".bin at byte" in answer.text


def test_a_card_pulled_out_ends_the_answer_and_comes_back(boot: Boot, text: str) -> None:
    board = boot(*STREAMING, "--card-gone-after", "60:2")
    board.until("\n> ")
    board.enter("/n 0")
    said = board.enter(LINE)
    assert "The card is gone" in said
    back = board.until("Type a prompt, or /help.\r\n> ")
    assert "context 512" in back
    board.greedy()
    assert board.generate(LINE, 12) == text


def test_a_card_gone_for_good_leaves_the_board_usable(boot: Boot) -> None:
    board = boot(*STREAMING, "--card-gone-after", 60)
    board.until("\n> ")
    board.good(Kind.SAMPLING, struct.pack("<4IQ", 0, 0, 65536, 65536, 1))
    answer = board.ask(Kind.GENERATE, bytes(8) + LINE.encode())
    assert answer.status == Status.NO_CARD
    assert answer.events
    assert state(board)[0] == "no-card"
    for kind in (Kind.STAT, Kind.REMOVE):
        assert board.ask(kind, b"1a2b3c4d/x.bin").status == Status.NO_CARD
    assert board.ask(Kind.SPACE).status == Status.NO_CARD
    opened = board.ask(Kind.OPEN, struct.pack("<4I", 1, 1, 1, 0) + b"x.bin")
    assert opened.status == Status.NO_CARD
    board.wake_console()
    assert "no card" in board.enter("Hello")


def test_another_card_is_noticed_and_its_model_loaded(boot: Boot, card: Path) -> None:
    board = boot(*STREAMING, card=card)
    board.until("\n> ")
    board.enter("/n 3")
    board.enter(LINE)
    streamed = bytearray((card / "embed_tokens.bin").read_bytes())
    descriptor = bytearray((card / "descriptor.bin").read_bytes())
    last = len(streamed) - CHUNK
    streamed[last:] = bytes(CHUNK)
    descriptor[96] ^= 1
    chunk_sum, file_sum = (zlib.crc32(bytes(streamed[i:])) for i in (last, 0))
    old = zlib.crc32((card / "embed_tokens.bin").read_bytes()[last:])
    whole = zlib.crc32((card / "embed_tokens.bin").read_bytes())
    for before, after in ((old, chunk_sum), (whole, file_sum)):
        descriptor = descriptor.replace(struct.pack("<I", before), struct.pack("<I", after))
    descriptor[-4:] = struct.pack("<I", zlib.crc32(descriptor[:-4]))
    (card / "embed_tokens.bin").write_bytes(streamed)
    (card / "descriptor.bin").write_bytes(descriptor)
    assert "The card gave wrong bytes of embed_tokens.bin" in board.enter(LINE)
    assert f"({descriptor[96:100].hex()})" in board.until("Type a prompt, or /help.\r\n> ")
    assert "3 tokens" in board.enter(LINE)


def test_a_card_put_into_a_board_that_had_none(boot: Boot, text: str) -> None:
    board = boot("--card-gone-after", "1:3")
    assert "card" in board.until("\n> ")
    board.until("Type a prompt, or /help.\r\n> ")
    board.greedy()
    assert board.generate(LINE, 12) == text


# --- packages that are damaged ---


def _files(package: Path) -> list[str]:
    return sorted(p.name for p in package.glob("*.bin"))


def test_every_file_missing_short_or_long_is_named(boot: Boot, card: Path) -> None:
    for name in _files(card):
        data = (card / name).read_bytes()
        for damaged in (None, data[:-1], data + b"x", b""):
            (card / name).unlink()
            if damaged is not None:
                (card / name).write_bytes(damaged)
            board = boot(card=card)
            said = board.until("\n> ")
            assert name in said or (name == "descriptor.bin" and "There is no model" in said)
            assert "context 512" not in said
            assert board.ask(Kind.FEED, bytes(5)).status < 0
            board.close()
            (card / name).write_bytes(data)


def test_one_wrong_bit_in_any_file_is_named(boot: Boot, card: Path) -> None:
    for name in _files(card):
        data = bytearray((card / name).read_bytes())
        data[len(data) // 2] ^= 0x20
        (card / name).write_bytes(data)
        board = boot(card=card)
        said = board.until("\n> ")
        assert re.search(rf"(Chunk \d+ of )?{re.escape(name)} (has not its|is damaged)", said)
        assert state(board)[0] == "error"
        board.close()
        data[len(data) // 2] ^= 0x20
        (card / name).write_bytes(data)


def test_one_wrong_bit_in_what_is_streamed_stops_the_answer(boot: Boot, card: Path) -> None:
    path = card / "embed_tokens.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    board = boot(*STREAMING, card=card)
    assert "context 512" in board.until("\n> ")
    said = board.enter(LINE)
    last = (len(data) - 1) // CHUNK * CHUNK
    assert "The card gave wrong bytes of embed_tokens.bin at byte" in said
    found = re.search(r"at byte (\d+)", said)
    assert found is not None
    assert int(found.group(1)) <= last
    assert board.ask(Kind.FEED, struct.pack("<BI", 1, 5)).status == Status.CRC
    path.write_bytes(bytes(data[:-1]) + bytes([data[-1] ^ 1]))
    assert board.feed([5], 1).status == 0


def test_any_byte_of_the_descriptor(boot: Boot, card: Path) -> None:
    path = card / "descriptor.bin"
    data = path.read_bytes()
    for at in [*range(0, 160, 7), *range(160, len(data), 211), len(data) - 1]:
        damaged = bytearray(data)
        damaged[at] ^= 0x81
        path.write_bytes(damaged)
        board = boot(card=card)
        assert "context 512" not in board.until("\n> "), at
        assert state(board)[0] == "error"
        board.close()


def test_a_descriptor_in_another_packages_folder(boot: Boot, card: Path) -> None:
    (card / "tllm").mkdir()
    shutil.copytree(card, card / "tllm" / "12345678", ignore=shutil.ignore_patterns("tllm"))
    body = b"TSLT" + struct.pack("<I", 1) + b"\x12\x34\x56\x78" + bytes(48)
    (card / "tllm" / "slot0").write_bytes(body + struct.pack("<I", zlib.crc32(body)))
    said = boot(card=card).until("\n> ")
    assert "descriptor.bin is of another package" in said


# --- memory ---


def _needs(said: str) -> tuple[str, int, int]:
    found = re.search(r"needs (\d+) bytes of (\w+) memory and this board has (\d+)", said)
    assert found is not None, said
    return found.group(2), int(found.group(1)), int(found.group(3))


def test_one_byte_of_bulk_memory_too_few(boot: Boot, text: str) -> None:
    region, need, have = _needs(boot("--bulk", 300000).until("\n> "))
    assert (region, have) == ("bulk", 300000)
    region, again, have = _needs(boot("--bulk", need - 1).until("\n> "))
    assert (region, again, have) == ("bulk", need, need - 1)
    board = boot("--bulk", need)
    assert "weights 0, free 0" in board.until("\n> ")
    board.greedy()
    assert board.generate(LINE, 12) == text
    assert stats(board)["mapped_bytes"] == 0


def test_one_byte_of_fast_memory_too_few(boot: Boot, text: str) -> None:
    given = 12000
    region, need, have = _needs(boot("--fast", given).until("\n> "))
    assert region == "fast"
    least = given - have + need
    assert _needs(boot("--fast", least - 1).until("\n> ")) == ("fast", need, need - 1)
    board = boot("--fast", least)
    engine = need - 4096 - 2 * RED_ZONE
    assert f"fast: program {4096 + RED_ZONE}, engine {engine}, free 0" in board.until("\n> ")
    board.greedy()
    assert board.generate(LINE, 12) == text


def test_memory_that_does_not_hold_the_program(sim: Path, package: Path) -> None:
    for options in (("--fast", "100"), ("--fast", "5000"), ("--bulk", "10000"), ("--bulk", "0")):
        ended = subprocess.run(
            [sim, "--card", package, *options], capture_output=True, check=False, timeout=60
        )
        assert ended.returncode == 2
        assert ended.stderr.count(b"\n") == 1
        assert b"memor" in ended.stderr


def test_tiny_llm_fits_the_board(sim: Path, surrogate_dir: Path, tmp_path: Path) -> None:
    package = make_package(surrogate_dir, tmp_path / "package")
    report = subprocess.run(
        [sim, "--card", package, "--size"], capture_output=True, check=True, text=True
    ).stdout
    assert "context 1024" in report
    rows = {row[:30].strip(): row[30:].split() for row in report.splitlines()[1:]}
    assert sum(int(v[0]) for v in list(rows.values())[1:]) <= 163840
    assert sum(int(v[1]) for v in list(rows.values())[1:]) <= 3900000
    assert int(rows["resident weights"][1]) > 1500000
    with Board(sim, package) as board:
        board.until("\n> ")
        board.greedy()
        assert len(board.generate("Once upon a time", 6)) > 10


def test_size_of_what_does_not_fit(sim: Path, package: Path) -> None:
    ended = subprocess.run(
        [sim, "--card", package, "--size", "--bulk", "300000"], capture_output=True, check=False
    )
    assert ended.returncode == 1
    assert b"bytes of bulk memory" in ended.stderr


# --- the command line ---


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "No card is given"),
        (["--card", "/nowhere/at/all"], "There is no directory /nowhere/at/all"),
        (["--card", "/", "--tcp", "x"], "--tcp does not take x"),
        (["--card", "/", "--tcp", "65536"], "--tcp does not take 65536"),
        (["--card", "/", "--tcp"], "--tcp does not take nothing"),
        (["--card", "/", "--threads", "3"], "1 or 2 cores"),
        (["--card", "/", "--rx-drop", "1.5"], "--rx-drop does not take 1.5"),
        (["--card", "/", "--read-fail", "1:never"], "--read-fail does not take 1:never"),
        (["--card", "/", "--nonsense"], "There is no option --nonsense"),
        (["x"], "x is not an option"),
    ],
)
def test_wrong_options_get_a_sentence(sim: Path, options: list[str], sentence: str) -> None:
    ended = subprocess.run([sim, *options], capture_output=True, check=False, text=True)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
