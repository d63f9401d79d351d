"""The board's frames: requests of the model, and what a damaged line may do to them."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cobs import cobs
from device_board import (
    SANITIZED,
    Answer,
    Board,
    Kind,
    Status,
    answered,
    encode_frame,
    fingerprint,
    make_package,
    sampling,
)

Boot = Callable[..., Board]
LAYERS, STAGES = 5, 11
TOKENS = [1, 403, 407, 261, 378, 32, 99, 5]


@pytest.fixture(scope="module")
def package(stories260k_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(stories260k_bin, tmp_path_factory.mktemp("link") / "package")


@pytest.fixture
def boot(build_sim: Callable[..., Path], gcc: str, package: Path) -> Iterator[Callable[..., Board]]:
    boards = []

    def start(*options: object, card: Path = package, quiet: bool = True) -> Board:
        board = Board(build_sim(gcc, SANITIZED), card, options)
        boards.append(board)
        if quiet:
            board.until("\n> ")
        return board

    yield start
    for board in boards:
        code, complaint = board.close()
        assert code == 0, complaint


@pytest.fixture
def board(boot: Boot) -> Board:
    return boot()


# --- who is there ---


def test_hello(board: Board) -> None:
    answer = board.good(Kind.HELLO, struct.pack("<H", 2))
    version, payload, window = struct.unpack("<HHI", answer.body[:8])
    assert (version, payload, window) == (2, 4128, 32768)
    assert answer.body[8:] == b"tinyllm 0.1.0"
    assert board.ask(Kind.HELLO, struct.pack("<H", 1)).status == Status.VERSION


def test_info(board: Board, package: Path) -> None:
    info = json.loads(board.good(Kind.INFO).text)
    assert info["state"] == "ready"
    assert info["error"] == ""
    assert info["model"] == "stories260K"
    assert info["fingerprint"] == fingerprint(package).hex()
    assert (info["vocab"], info["hidden"], info["layers"], info["context"]) == (512, 64, 5, 512)
    assert info["bulk_bytes"] == 3900000
    assert info["resident_bytes"] == 260736
    assert info["reset_reason"] == "power-on"
    assert {"version", "board", "psram_bytes", "fast_bytes", "card", "card_mode", "baud"} <= {*info}


def test_nothing_is_printed_once_frames_are_spoken(board: Board) -> None:
    board.console.clear()
    board.good(Kind.INFO)
    board.generate("Once upon a time", 5)
    board.good(Kind.STATS)
    assert bytes(board.console) == b""


# --- errors ---


@pytest.mark.parametrize(
    ("kind", "payload", "status"),
    [
        (0x7E, b"", Status.UNKNOWN),
        (Kind.INFO, b"x", Status.PAYLOAD),
        (Kind.FEED, b"", Status.PAYLOAD),
        (Kind.FEED, b"\x00\x01\x00", Status.PAYLOAD),
        (Kind.FEED, b"\x08" + bytes(4), Status.PAYLOAD),
        (Kind.FEED, b"\x00", Status.STATE),
        (Kind.FEED, struct.pack("<BI", 0, 512), Status.PAYLOAD),
        (Kind.FEED, struct.pack("<B513I", 0, *[5] * 513), Status.CONTEXT),
        (Kind.FEED, struct.pack("<B100I", 4, *[5] * 100), Status.PAYLOAD),
        (Kind.CAPTURE, struct.pack("<BHI", 14, 0, 1), Status.PAYLOAD),
        (Kind.CAPTURE, struct.pack("<BHI", 1, 5, 1), Status.PAYLOAD),
        (Kind.SAMPLE, b"", Status.STATE),
        (Kind.REWIND, struct.pack("<I", 1), Status.STATE),
        (Kind.SESSION, b"\x02" + bytes(5), Status.PAYLOAD),
        (Kind.SESSION, b"\x00\x02" + bytes(4), Status.PAYLOAD),
        (Kind.SAMPLING, sampling(temperature=1), Status.PAYLOAD),
        (Kind.SAMPLING, sampling(temperature=6553601), Status.PAYLOAD),
        (Kind.SAMPLING, sampling(penalty=65535), Status.PAYLOAD),
        (Kind.SAMPLING, sampling(penalty=131073), Status.PAYLOAD),
        (Kind.ENCODE, b"\xff", Status.UTF8),
        (Kind.DECODE, b"\x01\x00\x00", Status.PAYLOAD),
        (Kind.DECODE, struct.pack("<I", 512), Status.PAYLOAD),
        (Kind.GENERATE, b"\x01", Status.PAYLOAD),
        (Kind.GENERATE, b"\x01" + bytes(7) + b"\xc3", Status.UTF8),
        (Kind.GENERATE, b"\x01" + bytes(7) + b"word " * 800, Status.TOO_LONG),
        (Kind.BAUD, struct.pack("<I", 300), -1),
    ],
)
def test_a_wrong_request_is_refused_and_changes_nothing(
    board: Board, kind: int, payload: bytes, status: int
) -> None:
    answer = board.ask(kind, payload)
    assert answer.status == status
    assert len(answer.text) > 15
    stats = json.loads(board.good(Kind.STATS).text)
    assert (stats["n"], stats["n_past"]) == (0, 0)
    assert board.generate("Once upon a time", 4)


def test_one_request_at_a_time(boot: Boot) -> None:
    board = boot("--card-latency-us", 2000, "--bulk", 600000)
    seq = board.send(Kind.GENERATE, bytes(8) + b"Once upon a time")
    board.send(Kind.GENERATE, bytes(8) + b"Once upon a time", seq)
    busy = board.ask(Kind.INFO, seq=200)
    assert busy.status == Status.BUSY
    assert board.ask(Kind.STOP, seq=201).status == 0
    answer = board.answer(Kind.GENERATE, seq)
    assert answer.status == 0
    assert answer.body[0] == 4, "cancelled"
    assert json.loads(board.good(Kind.INFO).text)["state"] == "ready"


def test_a_long_request_gives_signs_of_life(boot: Boot) -> None:
    board = boot("--card-rate", 0.5, "--bulk", 600000)
    seq = board.send(Kind.FEED, struct.pack("<B8I", 3, *[7] * 8))
    while (frame := board.frame()).kind == Kind.FEED | 0x40:
        assert (frame.payload, frame.seq) == (b"", seq)
    assert frame.kind == Kind.FEED | 0x80
    assert frame.seq == seq


def test_a_stopped_request_leaves_the_session_as_it_was(boot: Boot, board: Board) -> None:
    slow = boot("--card-latency-us", 20000, "--bulk", 560000)
    whole = board.feed([1, 403, *TOKENS], 3)
    assert slow.feed([1, 403]).status == 0
    seq = slow.send(Kind.FEED, struct.pack(f"<B{len(TOKENS)}I", 3, *TOKENS))
    assert slow.ask(Kind.STOP, seq=201).status == 0
    assert slow.answer(Kind.FEED, seq).status == Status.CANCELLED
    counts = json.loads(slow.good(Kind.STATS).text)
    assert (counts["n"], counts["n_past"]) == (2, 2)
    assert slow.feed(TOKENS, 3).words[1:] == whole.words[3:]


# --- evaluating ---


def _crcs(answer: Answer) -> list[int]:
    assert answer.status == 0, answer.body
    return list(answer.words[1:])


def test_every_way_to_feed_gives_the_same_sums(board: Board) -> None:
    each = _crcs(board.feed(TOKENS, 6))
    stride = 1 + LAYERS * STAGES + 2
    assert len(each) == len(TOKENS) * stride
    assert 0 not in each
    board.good(Kind.SESSION, bytes(6))
    whole = _crcs(board.feed(TOKENS, 5))
    assert len(whole) == (len(TOKENS) - 1) * (stride - 2) + stride
    for i in range(len(TOKENS) - 1):
        assert whole[i * (stride - 2) : (i + 1) * (stride - 2)] == each[i * stride :][: stride - 2]
    assert whole[-stride:] == each[-stride:]
    board.good(Kind.SESSION, bytes(6))
    stages = _crcs(board.feed(TOKENS, 4))
    assert stages == whole[:-2]
    board.good(Kind.SESSION, bytes(6))
    assert _crcs(board.feed(TOKENS, 2)) == each[stride - 1 :: stride]
    board.good(Kind.SESSION, bytes(6))
    assert _crcs(board.feed(TOKENS[:3], 0)) == []
    assert board.feed(TOKENS[3:], 1).words == (len(TOKENS), each[-1])


@pytest.mark.parametrize(
    "options",
    [
        ("--threads", 1),
        ("--threads", 2, "--bulk", 560000),
        ("--threads", 1, "--bulk", 540000, "--fast", 90000),
        ("--card-rate", 20, "--card-latency-us", 50, "--bulk", 560000),
    ],
)
def test_memory_cores_and_speed_change_no_result(
    boot: Boot, board: Board, options: tuple[object, ...]
) -> None:
    other = boot(*options)
    assert _crcs(other.feed(TOKENS, 6)) == _crcs(board.feed(TOKENS, 6))


def test_another_token_gives_other_sums(board: Board) -> None:
    first = _crcs(board.feed([1, 403], 6))
    board.good(Kind.SESSION, bytes(6))
    second = _crcs(board.feed([1, 404], 6))
    half = len(first) // 2
    assert first[:half] == second[:half]
    assert all(a != b for a, b in zip(first[half:], second[half:], strict=True))


@pytest.mark.parametrize(
    ("stage", "layer"), [(0, 0), (2, 1), (5, 4), (8, 0), (11, 4), (12, 0), (13, 0)]
)
def test_a_captured_stage_has_the_sum_that_feed_gives(board: Board, stage: int, layer: int) -> None:
    board.feed(TOKENS[:3])
    sums = _crcs(board.feed(TOKENS[3:4], 6))
    board.good(Kind.REWIND, struct.pack("<I", 3))
    answer = board.good(Kind.CAPTURE, struct.pack("<BHI", stage, layer, TOKENS[3]))
    n, size, exponent = struct.unpack("<IBi", answer.body)
    parts = {struct.unpack("<I", e[:4])[0]: e[4:] for e in answer.events}
    data = b"".join(parts[i] for i in sorted(parts))
    assert len(data) == n * size
    index = {0: 0, 12: -2, 13: -1}.get(stage, 1 + layer * STAGES + stage - 1)
    assert zlib.crc32(data + struct.pack("<i", exponent)) == sums[index]


def test_sampling_appends_and_feeding_nothing_goes_on(board: Board) -> None:
    board.greedy()
    whole = board.generate("Once upon a time", 12)
    board.good(Kind.SESSION, bytes(6))
    prompt = board.good(Kind.ENCODE, b"Once upon a time").words
    board.feed([1, *prompt], 1)
    tokens = []
    for _ in range(12):
        tokens.append(board.good(Kind.SAMPLE).words[0])
        assert board.ask(Kind.SAMPLE).status == Status.STATE
        assert board.feed([], 1).status == 0
    text = board.good(Kind.DECODE, struct.pack("<13I", 1, *tokens)).text
    assert text == whole.removeprefix(" ")


def test_an_answer_goes_on_where_it_was(board: Board) -> None:
    board.greedy()
    whole = board.generate("Once upon a time", 20)
    board.good(Kind.SESSION, bytes(6))
    parts = board.generate("Once upon a time", 9) + board.generate("", 11)
    assert parts == whole


def test_seeds_make_the_text(board: Board) -> None:
    texts = []
    for seed in (1, 1, 2):
        board.good(Kind.SESSION, bytes(6))
        board.good(Kind.SAMPLING, sampling(temperature=65536, seed=seed))
        texts.append(board.generate("One day", 30))
    assert texts[0] == texts[1] != texts[2]


def test_generate_counts(board: Board) -> None:
    board.greedy()
    answer = board.good(Kind.GENERATE, struct.pack("<II", 10, 0) + b"Once upon a time")
    end, prompt, tokens = struct.unpack("<BII", answer.body[:9])
    assert (end, tokens) == (2, 10)
    assert prompt == len(board.good(Kind.ENCODE, b"Once upon a time").words)
    assert len(answer.body) == 9 + 4 * 8 + 8


def test_text_to_tokens_and_back(board: Board) -> None:
    for text in ("Once upon a time", "é 日本 \U0001f40c", " a  b ", "x" * 500, "\n\t"):
        tokens = board.good(Kind.ENCODE, text.encode()).body
        assert board.good(Kind.DECODE, tokens).text == text
    assert board.good(Kind.ENCODE).body == b""
    assert board.ask(Kind.ENCODE, "é".encode() * 1500).status == Status.TOO_LONG


# --- a bad line ---


def test_a_repeated_request_is_answered_but_not_run_again(board: Board) -> None:
    board.good(Kind.SAMPLING, sampling(temperature=65536 * 5))
    board.feed([1, 403], 1)
    first = board.ask(Kind.SAMPLE, seq=99)
    again = board.ask(Kind.SAMPLE, seq=99)
    assert again == first
    assert json.loads(board.good(Kind.STATS).text)["n"] == 3
    sums = board.ask(Kind.FEED, struct.pack("<B40I", 6, *[9] * 12, *[8] * 28), seq=44)
    assert sums.status == Status.PAYLOAD
    sums = board.ask(Kind.FEED, struct.pack("<B12I", 6, *[9] * 12), seq=45)
    assert len(sums.body) > 2000
    assert board.ask(Kind.FEED, struct.pack("<B12I", 6, *[9] * 12), seq=45) == sums


def test_text_is_given_again_while_the_answer_runs_and_after(boot: Boot) -> None:
    board = boot("--card-latency-us", 2000, "--bulk", 600000)
    board.greedy()
    seq = board.send(Kind.GENERATE, bytes(8) + b"Once upon a time")
    said = b""
    while len(said) < 20:
        said += board.frame().payload[4:]
    again = board.good(Kind.TEXT, struct.pack("<BIB", seq, 3, 10)).body
    assert struct.unpack_from("<II", again)[0] >= len(said)
    assert (again[4:8], again[8:]) == (struct.pack("<I", 3), said[3:13])
    assert board.ask(Kind.TEXT, struct.pack("<BIB", seq + 1, 0, 10)).status == Status.STATE
    assert board.ask(Kind.PART, bytes(3)).status == Status.BUSY
    assert board.ask(Kind.STOP).status == 0
    while (frame := board.frame()).kind != Kind.GENERATE | 0x80:
        pass
    total, crc = struct.unpack("<II", frame.payload[-8:])
    text = b""
    while len(text) < total:
        text += board.good(Kind.TEXT, struct.pack("<BIB", seq, len(text), 255)).body[8:]
    assert text.startswith(said)
    assert zlib.crc32(text) == crc
    past = board.good(Kind.TEXT, struct.pack("<BIB", seq, total + 9, 255)).body
    assert past == struct.pack("<II", total, total)
    assert board.ask(Kind.TEXT, bytes(5)).status == Status.PAYLOAD


def test_only_the_last_2048_bytes_of_a_text_are_kept(board: Board) -> None:
    board.good(Kind.SESSION, b"\0\1" + bytes(4))
    board.good(Kind.SAMPLING, sampling(temperature=3 * 65536, seed=20))
    seq = board.send(Kind.GENERATE, struct.pack("<II", 1500, 0) + b"Once")
    text = answered(board.answer(Kind.GENERATE, seq))
    assert len(text) > 2500
    again = board.good(Kind.TEXT, struct.pack("<BIB", seq, 0, 255)).body
    first = len(text) - 2048
    assert struct.unpack_from("<II", again) == (len(text), first)
    at, kept = first, b""
    while at < len(text):
        part = board.good(Kind.TEXT, struct.pack("<BIB", seq, at, 250)).body[8:]
        assert part
        at, kept = at + len(part), kept + part
    assert kept == text[first:]


def test_neither_stop_nor_text_makes_a_request_run_again(board: Board) -> None:
    asked = struct.pack("<II", 5, 0) + b"Once upon a time"
    first = board.ask(Kind.GENERATE, asked, 77)
    for kind, payload in ((Kind.STOP, b""), (Kind.TEXT, bytes(6)), (Kind.PART, bytes(3))):
        board.ask(kind, payload, 78)
    again = board.ask(Kind.GENERATE, asked, 77)
    assert (again.body, again.events) == (first.body, [])
    assert json.loads(board.good(Kind.STATS).text)["n"] < 20


def test_an_answer_comes_in_parts(board: Board) -> None:
    assert board.ask(Kind.PART, bytes(3)).status == Status.STATE
    info = struct.pack("<i", 0) + board.ask(Kind.INFO, seq=60).body
    got = b""
    while len(got) < len(info):
        part = board.good(Kind.PART, struct.pack("<HB", len(got), 60)).body
        kind, seq, length, crc = struct.unpack_from("<BBHI", part)
        assert (kind, seq, length, crc) == (Kind.INFO | 0x80, 60, len(info), zlib.crc32(info))
        got += part[8:]
        assert len(part) in (68, 8 + len(info) % 60)
    assert got == info
    assert len(board.good(Kind.PART, struct.pack("<HB", 60000, 60)).body) == 8
    assert board.ask(Kind.PART, bytes(2)).status == Status.PAYLOAD


def test_a_session_that_is_no_longer_there_is_not_gone_on_with(board: Board) -> None:
    named = struct.pack("<II", 4, 1234) + b"Once upon a time"
    assert board.ask(Kind.GENERATE, named).status == Status.STATE
    board.good(Kind.SESSION, b"\0\0" + struct.pack("<I", 1234))
    board.good(Kind.SESSION, b"\1\1" + struct.pack("<I", 5678))
    assert board.ask(Kind.GENERATE, named).status == 0
    board.good(Kind.REBOOT)
    board.until("\n> ")
    answer = board.ask(Kind.GENERATE, named)
    assert answer.status == Status.STATE
    assert "forgotten this conversation" in answer.text


def _damaged(good: bytes, rng: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        what = rng.randrange(4)
        if what == 0:
            del data[at]
        elif what == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 2:
            data.insert(at, rng.randrange(256))
        else:
            data.insert(at, data[at])
    return bytes(data)


def test_damaged_frames_do_nothing_and_whole_ones_get_through(board: Board) -> None:
    rng = random.Random(5)
    board.greedy()
    for _ in range(300):
        frame = encode_frame(Kind.FEED, board.next_seq(), struct.pack("<BI", 0, 7))
        damaged = _damaged(frame, rng)
        if frame.strip(b"\0") in damaged:  # only its zeros, or what is around them, was hit
            continue
        board.write(damaged)
        answer = board.good(Kind.STATS)
        assert json.loads(answer.text)["n"] == 0
    board.console.clear()
    assert board.generate("Once upon a time", 3)


def test_what_is_no_frame_is_dropped(board: Board) -> None:
    long = b"\0" + cobs.encode(bytes(range(1, 251)) * 40) + b"\0"
    for junk in (
        b"\0\0\0\0",
        b"\0\x01\0",
        b"\0\x05ab\0",
        b"\0" + b"\xff" * 100 + b"\0",
        encode_frame(Kind.STATS, 5)[:-2] + b"\0",
        long,
        b"\0" + cobs.encode(bytes(3)) + b"\0",
        encode_frame(Kind.STATS, 7, bytes(4129)),
        b"a whole lot of text\r",
    ):
        board.write(junk)
        board.console.clear()
        assert board.good(Kind.STATS).status == 0
    assert not board.console


def test_an_unfinished_frame_is_forgotten_and_the_terminal_is_back(board: Board) -> None:
    board.good(Kind.STATS)
    board.write(encode_frame(Kind.INFO, 9)[:-5])
    board.wake_console()
    assert "session:    0 tokens" in board.enter("/stats")
    assert board.good(Kind.STATS).status == 0


def test_pieces_of_frames_are_not_taken_for_typing(board: Board) -> None:
    board.good(Kind.STATS)
    board.console.clear()
    board.write(b"Tell me a story\r/reset\r")
    stats = json.loads(board.good(Kind.STATS).text)
    assert (stats["n"], bytes(board.console)) == (0, b"")


def test_noise_both_ways_hangs_nothing(boot: Boot) -> None:
    noise = ["--fault-seed", 3, "--boot-noise"]
    for way in ("rx", "tx"):
        for what in ("drop", "flip", "dup", "insert"):
            noise += [f"--{way}-{what}", 0.0005]
    board = boot(*noise, quiet=False)
    for _ in range(100):
        seq = board.next_seq()
        assert any(_answered(board, seq) for _ in range(20))


def _answered(board: Board, seq: int) -> bool:
    board.send(Kind.STATS, seq=seq)
    while not any(f.kind == Kind.STATS | 0x80 and f.seq == seq for f in board.frames):
        if not board.pump(0.05):
            return False
    board.frames.clear()
    return True


def test_a_higher_rate_that_fails_is_given_up(boot: Boot) -> None:
    board = boot("--baud", 460800, "--max-baud", 921600)
    assert board.good(Kind.BAUD, struct.pack("<I", 921600)).status == 0
    assert json.loads(board.good(Kind.INFO).text)["baud"] == 921600
    assert board.good(Kind.BAUD, struct.pack("<I", 2000000)).status == 0
    board.send(Kind.STATS)
    while board.pump(1.2):
        pass
    assert json.loads(board.good(Kind.INFO).text)["baud"] == 921600


def test_reboot(board: Board) -> None:
    assert board.good(Kind.REBOOT).status == 0
    assert "reset: software" in board.until("\n> ")
    assert json.loads(board.good(Kind.INFO).text)["reset_reason"] == "software"


def test_a_reset_at_any_byte_boots_anew(boot: Boot) -> None:
    asked = encode_frame(Kind.GENERATE, 1, struct.pack("<II", 5, 0) + b"Once upon a time")
    for at in (1, 2, 7, len(asked) - 1, len(asked)):
        board = boot("--reset-after", at)
        board.write(asked)
        assert "reset: reset button" in board.until("\n> ")
        assert json.loads(board.good(Kind.INFO).text)["state"] == "ready"
