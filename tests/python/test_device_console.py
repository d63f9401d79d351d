"""The board's terminal: what a person with a serial monitor meets."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from device_board import SANITIZED, Board, Kind, answered, make_package, sampling

Boot = Callable[..., Board]


@pytest.fixture(scope="module")
def package(stories260k_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(stories260k_bin, tmp_path_factory.mktemp("console") / "package")


@pytest.fixture
def boot(build_sim: Callable[..., Path], gcc: str, package: Path) -> Iterator[Callable[..., Board]]:
    boards = []

    def start(*options: object, card: Path = package) -> Board:
        boards.append(Board(build_sim(gcc, SANITIZED), card, options))
        return boards[-1]

    yield start
    for board in boards:
        code, complaint = board.close()
        assert code == 0, complaint


def test_the_banner_says_what_the_board_is_and_holds(boot: Boot) -> None:
    banner = boot().until("\n> ")
    for part in (
        "tinyllm 0.1.0 on a simulated board",
        "reset: power-on",
        "bytes fast, 3900000 bytes bulk",
        "card: directory",
        "model: stories260K (",
        "context 512",
        "weights 260736",
    ):
        assert part in banner


def test_a_prompt_is_answered_and_counted(boot: Boot) -> None:
    board = boot()
    board.until("\n> ")
    assert board.enter("/temp 0").endswith("> ")
    board.enter("/n 20")
    said = board.enter("Once upon a time")
    assert said.startswith("Once upon a time\r\n, there was a little ")
    found = re.search(r"\n\[20 tokens, [\d.]+ tokens/s, \d+ % reading, length\]\r\n> $", said)
    assert found is not None
    board.enter("/reset")
    assert board.enter("Once upon a time").split("\n")[1] == said.split("\n")[1]


def test_the_same_seed_gives_the_same_text_and_another_another(boot: Boot) -> None:
    board = boot()
    board.until("\n> ")
    texts = []
    for seed in (7, 7, 8):
        board.enter("/reset")
        board.enter(f"/seed {seed}")
        board.enter("/n 40")
        texts.append(board.enter("One day").rsplit("[", 1)[0])
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_what_is_typed_can_be_edited(boot: Boot) -> None:
    board = boot()
    board.until("\n> ")
    board.enter("/n 4")
    board.enter("/temp 0")
    plain = board.enter("A big dog").split("\r\n")[1]
    for typed in (
        b"A big cat\x08\x08\x7fdog",
        "A big é\x08dog".encode(),
        b"nonsense\x15A big dog",
        b"A big \x1b[A\x1b[1;5C\x1bOPdog",
        b"A big dog",
    ):
        board.enter("/reset")
        assert board.enter(typed).split("\r\n")[1] == plain
    board.enter("/reset")
    board.write(b"A big dog\r\n/stats\n")
    assert board.until("\n> ").split("\r\n")[1] == plain
    assert "session:    " in board.until("\n> ")


def test_a_wrong_edit_gives_another_answer(boot: Boot) -> None:
    board = boot()
    board.until("\n> ")
    board.enter("/n 8")
    board.enter("/temp 0")
    plain = board.enter("A big dog").split("\r\n")[1]
    board.enter("/reset")
    assert board.enter("The sun was hot and").split("\r\n")[1] != plain


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/temp 101", "That is not a value of /temp"),
        ("/temp 0.009", "That is not a value of /temp"),
        ("/temp x", "That is not a value of /temp"),
        ("/temp", "That is not a value of /temp"),
        ("/top-p 1.1", "That is not a value of /top-p"),
        ("/penalty 0.9", "That is not a value of /penalty"),
        ("/penalty 2.5", "That is not a value of /penalty"),
        ("/top-k -1", "That is not a value of /top-k"),
        ("/top-k 4294967296", "That is not a value of /top-k"),
        ("/seed 18446744073709551616", "That is not a value of /seed"),
        ("/n 1e3", "That is not a value of /n"),
        ("/context keep", "That is not a value of /context"),
        ("/nonsense 1", "There is no command /nonsense"),
        ("/stop", "Nothing is running."),
        (b"\xff\xfe", "not UTF-8"),
        ("x" * 3000, "longer than 2048 bytes"),
        ("word " * 400, "longer than the context allows"),
    ],
)
def test_bad_input_gets_a_sentence_and_the_console_goes_on(
    boot: Boot, line: str | bytes, sentence: str
) -> None:
    board = boot()
    board.until("\n> ")
    assert sentence in board.enter(line)
    assert "session:    0 tokens" in board.enter("/stats")


@pytest.mark.parametrize(
    "line",
    [
        "/temp 0", "/temp 0.01", "/temp 100", "/temp .5", "/top-p 1", "/top-p 0", "/penalty 1",
        "/penalty 2.0", "/top-k 0", "/seed 18446744073709551615", "/n 0", "/context drop",
        "/context stop", "/reset", "/help", "/info", "/stats", "",
    ],
)  # fmt: skip
def test_good_commands_raise_no_complaint(boot: Boot, line: str) -> None:
    board = boot()
    board.until("\n> ")
    said = board.enter(line)
    assert "not a value" not in said
    assert "no command" not in said


@pytest.mark.parametrize("stop", [b"\x03", b"/stop\r"])
def test_an_answer_can_be_stopped(boot: Boot, stop: bytes) -> None:
    board = boot("--card-latency-us", 1000, "--bulk", 600000)
    board.until("\n> ")
    board.enter("/n 0")
    board.write(b"Once upon a time\r")
    board.until("Once upon a time\r\n")
    board.pump(60)
    board.write(stop)
    assert "stopped]" in board.until("\n> ")
    assert "session:" in board.enter("/stats")


def test_what_is_typed_during_an_answer_is_run_after_it(boot: Boot) -> None:
    board = boot()
    board.until("\n> ")
    board.enter("/n 30")
    board.write(b"Once upon a time\r/seed 5\r")
    assert "30 tokens" in board.until("]\r\n> ")
    board.until("/seed 5\r\n> ")


def test_characters_are_never_split(boot: Boot) -> None:
    board = boot()
    board.until("\n> ")
    board.enter("/temp 50")
    board.enter("/n 200")
    said = board.enter("é 日本")
    assert said.startswith("é 日本\r\n")
    assert said.encode()  # what is not UTF-8 would be surrogates here, which do not encode
    assert not board.frames
    board.good(Kind.SAMPLING, sampling(temperature=50 * 65536, seed=3))
    answer = board.good(Kind.GENERATE, b"\xc8" + bytes(7) + b"Go")
    assert len([event[4:].decode() for event in answer.events]) > 100
    assert "\ufffd" in answered(answer).decode()


def test_a_zero_in_a_text_begins_no_frame(boot: Boot) -> None:
    board = boot()
    board.until("\n> ")
    for seed in range(300):
        board.good(Kind.SESSION, bytes(6))
        board.good(Kind.SAMPLING, sampling(temperature=100 * 65536, seed=seed))
        answer = board.good(Kind.GENERATE, struct.pack("<II", 12, 0) + b"Go")
        if b"\0" in (text := answered(answer)):
            break
    else:
        pytest.fail("no seed made a zero")
    board.wake_console()
    for line in ("/reset", "/temp 100", "/top-p 1", f"/seed {seed}", "/n 12"):
        board.enter(line)
    said = board.enter("Go").encode().split(b"\r\n", 1)[1]
    assert said.startswith(text.replace(b"\0", b"").replace(b"\n", b"\r\n"))
    assert b"12 tokens" in said


def test_the_context_s_end_stops_or_drops_as_asked(boot: Boot) -> None:
    board = boot("--context", 24)
    assert "context 24" in board.until("\n> ")
    board.enter("/n 0")
    board.enter("/temp 1")
    assert "context full]" in board.enter("Once upon a time there was")
    assert "The context is full" in board.enter("and then the dog")
    board.enter("/context drop")
    board.enter("/n 60")
    assert re.search(r"\[\d+ tokens, .*(length|end of text)\]", board.enter("and then the dog"))


def test_a_board_without_a_model_says_so_and_goes_on(boot: Boot, tmp_path: Path) -> None:
    board = boot(card=tmp_path)
    assert "There is no model on the card" in board.until("\n> ")
    assert "There is no model on the card" in board.enter("Hello")
    assert "model:    none." in board.enter("/info")
    assert "There is no model" in board.ask(Kind.GENERATE, bytes(8) + b"Hello").text


def test_reboot_begins_anew(boot: Boot) -> None:
    board = boot()
    board.until("\n> ")
    board.enter("Once")
    board.write(b"/reboot\r")
    assert "reset: software" in board.until("Type a prompt")
    board.until("\n> ")
    assert "session:    0 tokens" in board.enter("/stats")
