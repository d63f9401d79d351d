"""The firmware's own app_main on fakes of ESP-IDF that fail as the real thing does."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.espidf.conftest import ASK, SANITIZED, STREAMING, Run, runner, texts_of

RESTART, WATCHDOG = 42, 43
HELP = "/help\n"


def text_of(output: str) -> str:
    return texts_of(output)[0]


def mounts(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The mounts that were tried, those that worked with an exclamation mark."""
    found = re.findall(r"mount (\d)-bit (\d+)000 kHz: (\d+)", done.stderr)
    return [f"{width}x{mhz}{'!' if error == '0' else ''}" for width, mhz, error in found]


def sectors(done: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    """Sectors that were read by their place, and through FatFs."""
    found = re.search(r"sectors: (\d+) raw, (\d+) through FatFs", done.stderr)
    assert found is not None
    return int(found[1]), int(found[2])


# --- A board on which all is well -----------------------------------------------------------------


def test_answers_as_the_simulated_board(board: Run, answer: str, package: Path) -> None:
    done = board()
    assert text_of(done.stdout) == answer
    assert "on ESP32-CAM\nreset: power-on\n" in done.stdout
    assert "\nlargest free blocks: 163840 internal, 4194304 PSRAM\n" in done.stdout
    assert "card: SDHC 15.9 GB FAKE, 4-bit 40 MHz\n" in done.stdout
    weights = sum(path.stat().st_size for path in package.glob("*.bin"))
    assert sectors(done)[0] * 512 >= weights
    assert sectors(done)[1] == 0


@pytest.mark.parametrize("piece", [1, 2, 64])
def test_streams_through_the_clusters(board: Run, answer: str, piece: int) -> None:
    done = board(PSRAM=STREAMING, PIECE=piece, CSIZE=16)
    assert text_of(done.stdout) == answer
    assert sectors(done)[0] > 5000
    assert sectors(done)[1] == 0


def test_reads_a_file_in_too_many_pieces_through_fatfs(board: Run, answer: str) -> None:
    done = board(PSRAM=STREAMING, PIECE=1, CSIZE=1)
    assert text_of(done.stdout) == answer
    assert sectors(done)[1] > 1000


@pytest.mark.parametrize("streaming", [STREAMING, 4 << 20])
def test_bytes_that_come_late_are_waited_for(
    build_board: Callable[..., Path], clang: str, package: Path, answer: str, streaming: int
) -> None:
    program = build_board(clang, ("-O1", "-g", "-fsanitize=thread"))
    done = runner(program, package)(PSRAM=streaming, LATE_US=200)
    assert text_of(done.stdout) == answer
    assert "WARNING: ThreadSanitizer" not in done.stderr


def test_computes_and_works_on_the_card_beside_the_listener(board: Run) -> None:
    done = board(HELP)
    assert "task worker on core 1, " in done.stderr
    assert "task card on core 1, " in done.stderr
    assert "log * 0" in done.stderr


@pytest.mark.parametrize(
    ("reason", "words"), [(3, "restart"), (9, "brown-out: the supply is too weak"), (6, "watchdog")]
)
def test_reset_reason_is_said(board: Run, reason: int, words: str) -> None:
    assert f"reset: {words}\n" in board(HELP, RESET_REASON=reason).stdout


def test_reboots_when_asked(board: Run) -> None:
    assert "restart" in board("/reboot\n", expect=RESTART).stderr


# --- Cards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "khz", "tried", "mode"),
    [
        (4, 40000, ["4x40!"], "4-bit 40 MHz"),
        (4, 20000, ["4x40", "4x20!"], "4-bit 20 MHz"),
        (1, 40000, ["4x40", "4x20", "1x40!"], "1-bit 40 MHz"),
        (1, 20000, ["4x40", "4x20", "1x40", "1x20!"], "1-bit 20 MHz"),
    ],
)
def test_takes_the_fastest_mode_that_works(
    board: Run, answer: str, width: int, khz: int, tried: list[str], mode: str
) -> None:
    done = board(WIDTH=width, KHZ=khz)
    assert mounts(done) == tried
    assert f", {mode}\n" in done.stdout
    assert text_of(done.stdout) == answer
    led = re.findall(r"gpio 4 (\w+.*)", done.stderr)
    assert led == ([] if width == 4 else ["reset", "output", "level 0"])


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("ABSENT", "There is no card, or it does not answer: put in a card formatted as FAT32."),
        ("NO_FAT", "There is a card, but no FAT file system that can be read: format it as FAT32"),
    ],
)
def test_no_card_is_said_and_the_console_stays(board: Run, fault: str, sentence: str) -> None:
    done = board(ASK + HELP, **{fault: 1000})
    assert done.stdout.count(sentence) >= 2
    assert "a prompt; Ctrl-C" in done.stdout
    assert done.stderr.rstrip().count("gpio 4 level 0") >= 1


def test_a_card_of_another_format_is_told_from_none(board: Run) -> None:
    done = board(HELP, ABSENT=6, NO_FAT=1, IDLE_WAITS=60)
    none = done.stdout.index("There is no card")
    assert none < done.stdout.index("There is a card, but no FAT file system")
    assert done.stdout.count("There is") == 2


def test_a_card_without_a_model_is_said(board: Run, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    done = board(ASK + HELP, CARD=tmp_path)
    assert done.stdout.count("There is no model on the card: `host upload` or `host card`") == 2
    assert "a prompt; Ctrl-C" in done.stdout


def test_a_card_is_found_when_it_is_put_in(board: Run, answer: str) -> None:
    done = board(ABSENT=6, IDLE_WAITS=60)
    all_modes = ["4x40", "4x20", "1x40", "1x20"]
    assert mounts(done) == [*all_modes, "1x20", "1x20", "1x20!", "4x40!"]
    assert text_of(done.stdout) == answer


def test_a_slow_dead_card_does_not_starve_the_watchdog(board: Run) -> None:
    done = board(HELP, ABSENT=1000, MOUNT_US=2_000_000, IDLE_WAITS=30)
    longest = re.search(r"watchdog fed at least each (\d+) us", done.stderr)
    assert longest is not None
    assert 0 < int(longest[1]) < 200_000  # the loop waits for 100 ms


def test_a_mount_that_hangs_ends_in_the_watchdog(board: Run) -> None:
    assert "watchdog: not fed for" in board(MOUNT_US=100_000_000, expect=WATCHDOG).stderr
    assert "watchdog" not in board(HELP, MOUNT_US=50_000_000).stdout


def test_one_failed_read_is_repeated(board: Run, answer: str) -> None:
    done = board(PSRAM=STREAMING, READ_FAIL=100)
    assert text_of(done.stdout) == answer
    assert mounts(done) == ["4x40!"]


def test_reads_that_keep_failing_slow_the_card_down(board: Run, answer: str) -> None:
    done = board(PSRAM=STREAMING, READ_FAIL=100, READ_FAILS=3)
    assert text_of(done.stdout) == answer
    assert mounts(done) == ["4x40!", "4x20!"]


def test_a_dying_card_is_said_and_the_console_stays(board: Run) -> None:
    done = board(ASK + HELP, PSRAM=STREAMING, READ_FAIL=100, READ_FAILS=1_000_000)
    assert "The card failed while reading layer" in done.stdout
    assert "a prompt; Ctrl-C" in done.stdout


@pytest.mark.parametrize("at", [1, 3, 30])
def test_a_card_that_dies_at_boot_is_said(board: Run, at: int) -> None:
    done = board(HELP, READ_FAIL=at, READ_FAILS=1_000_000)
    assert "The card failed while reading " in done.stdout
    assert "a prompt; Ctrl-C" in done.stdout


def test_a_short_read_is_repeated(board: Run, answer: str) -> None:
    done = board(PSRAM=STREAMING, PIECE=1, CSIZE=1, SHORT_AT=200)
    assert text_of(done.stdout) == answer


@pytest.mark.parametrize(("psram", "at"), [(STREAMING, 900), (520_000, 1500)])
def test_a_pulled_card_is_said_and_comes_back(board: Run, answer: str, psram: int, at: int) -> None:
    done = board(ASK + ASK + HELP * 150 + ASK, PSRAM=psram, PULL_AT=at, BACK_AT=7)
    assert "The card is gone or cannot be read" in done.stdout
    gone, back = done.stdout.index("The card is gone"), done.stdout.rindex("model: stories260K")
    assert gone < back
    assert texts_of(done.stdout[:gone]) == [answer]
    assert texts_of(done.stdout[back:]) == [answer]
    assert "asked to close a file" not in done.stderr


# --- Memory ---------------------------------------------------------------------------------------


def test_no_psram_is_refused_again_and_again(board: Run) -> None:
    done = board(PSRAM=0)
    assert done.stdout.count("No PSRAM was found, and the model needs it: use a board with") == 3
    assert mounts(done) == []


def test_psram_that_does_not_keep_what_is_written_is_refused(board: Run) -> None:
    done = board(HALF_PSRAM=1)
    assert done.stdout.count("The PSRAM does not keep what is written to it: build for PSRAM") == 3
    assert mounts(done) == []


def test_too_little_psram_is_said(board: Run) -> None:
    done = board(HELP, PSRAM=400_000)
    assert "bytes of bulk memory and this board has" in done.stdout
    assert "a prompt; Ctrl-C" in done.stdout


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            "FAIL_ALLOC",
            "The internal memory has no block of 4096 bytes for the engine; the largest free one "
            "has 163840: this build is too large.",
        ),
        (
            "FAIL_PSRAM_ALLOC",
            "PSRAM of 4194304 bytes was found, but no block of 4096 bytes in it could be had; the "
            "largest free one has 4194304.",
        ),
        ("FAIL_TASK", "There is no internal memory for the tasks"),
        ("FAIL_SEMAPHORE", "There is no internal memory for the tasks"),
    ],
)
def test_failed_allocation_is_said(board: Run, fault: str, sentence: str) -> None:
    assert board(ASK, **{fault: 1000}).stdout.count(sentence) == 3


def test_restarts_where_even_the_line_has_no_memory(board: Run) -> None:
    assert board(FAIL_UART=1, expect=RESTART).stdout == ""


def test_the_fast_region_leaves_room_for_the_drivers(board: Run) -> None:
    done = board(HELP, INTERNAL=170_000, OTHERS=0)
    assert int(re.findall(r"fast region (\d+)", done.stderr)[0]) <= 170_000 - 80 * 1024


def test_a_small_internal_memory_still_answers(board: Run, answer: str) -> None:
    done = board(INTERNAL=40_000)
    assert text_of(done.stdout) == answer


# --- The line -------------------------------------------------------------------------------------


def test_lost_bytes_cost_a_line_and_no_more(board: Run, answer: str) -> None:
    # Of what is typed the bytes 20 to 147 are lost, and with them the end of the first line.
    done = board("/" + "x" * 99 + "\n" + "z" * 60 + "\n" + ASK, LOSE_AT=20)
    assert "There is no command /" + "x" * 18 + "z" * 14 in done.stdout
    assert text_of(done.stdout) == answer


# --- The other chip -------------------------------------------------------------------------------


def test_an_esp32_s3_answers_the_same(
    build_board: Callable[..., Path], clang: str, package: Path, answer: str
) -> None:
    board = runner(build_board(clang, SANITIZED, chip="ESP32S3"), package)
    done = board(PSRAM=STREAMING)
    assert text_of(done.stdout) == answer
    assert "on ESP32-S3\n" in done.stdout
    assert "pins: clk 39, cmd 38, d0 40, d1 41, d2 42, d3 47" in done.stderr
    for faults in ({"WIDTH": 1}, {"ABSENT": 1000}):
        assert "gpio" not in board(HELP, **faults).stderr
