"""A stop is obeyed within 200 ms, whatever the card does, and costs the next answer nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from host.link.client import Device, End, Refused
from host.link.frames import Frame, encode
from tests.espidf.conftest import ASK, STREAMING, Run, connected, runner, stops_of, texts_of

LIMIT_US = 200_000
SECOND = 1_000_000
ONCE = "Once upon a time\n"
LONG = ASK.replace("/n 24", "/n 400")
WORK_US = 3_000  # 32 KB of weights, about
STOP = encode(Frame(0x05, 250, b"")).hex()
CANCELLED = -9
PROMPT, GENERATE, READ_TEST, CHECK, SUMS, COMMIT = "Once upon a time", 0x12, 0x30, 0x31, 0x21, 0x26

# A read that fails takes its command's time to fail. Of 60 reads some fail: one is tried again;
# after three the card is mounted again; after more it is given up.
CARDS = {
    "resident": {},
    "streamed": {"PSRAM": STREAMING},
    "in pieces": {"PSRAM": STREAMING, "PIECE": 1, "CSIZE": 16},
    "through FatFs": {"PSRAM": STREAMING, "PIECE": 1, "CSIZE": 1},
    "one read fails": {"PSRAM": STREAMING, "READ_FAIL": 300, "READ_FAIL_EVERY": 60},
    "three fail": {"PSRAM": STREAMING, "READ_FAIL": 300, "READ_FAIL_EVERY": 60, "READ_FAILS": 3},
    "six fail": {"PSRAM": STREAMING, "READ_FAIL": 300, "READ_FAIL_EVERY": 60, "READ_FAILS": 6},
    "all fail": {"PSRAM": STREAMING, "READ_FAIL": 300, "READ_FAILS": 1_000_000},
    "hardly mounts": {
        "PSRAM": STREAMING,
        "READ_FAIL": 300,
        "READ_FAIL_EVERY": 60,
        "READ_FAILS": 3,
        "MOUNT_US": 3 * SECOND,
    },
    "pulled": {"PSRAM": STREAMING, "PULL_AT": 1000, "MOUNT_US": 3 * SECOND},
    "slow to open": {"PSRAM": STREAMING, "OPEN_US": 400_000},
    "stuck": {"PSRAM": STREAMING, "STUCK_AT": 300, "STUCK_US": 20 * SECOND},
}


@pytest.mark.parametrize("card", CARDS)
def test_an_answer_is_stopped_at_every_point(board: Run, card: str) -> None:
    done = board(LONG + ONCE * 60, STOP_STEP_US=17_000, WORK_US=WORK_US, **CARDS[card])
    stops = stops_of(done.stderr)
    assert len(stops) >= (5 if card in ("all fail", "pulled") else 40)
    assert max(stops) < LIMIT_US
    ended = done.stdout.count("stopped]")
    failed = done.stdout.count("The card failed while reading") + done.stdout.count("There is no")
    assert ended + failed + done.stdout.count("The card is gone") >= len(stops) > 0
    assert ended >= 3
    if card == "slow to open":  # a file that was opened for nobody is closed
        assert "The card's file system refused" not in done.stdout
    if "READ_FAIL" in CARDS[card]:
        waited = set(re.findall(r"a read failed after (\d+) us", done.stderr))
        assert waited == {"150000"}, "a command blocks for longer than a card may take"


def test_a_stop_ends_the_attempts_to_mount(board: Run) -> None:
    done = board("/info\n" * 4, ABSENT=1000, MOUNT_US=3 * SECOND, STOP_AT_US=SECOND, IDLE_WAITS=200)
    assert done.stderr.count("kHz: 263") == 1
    assert done.stdout.count("model:    none. Loading was stopped") == 4


@pytest.mark.parametrize("at", range(5_000, 1_000_000, 60_000))
def test_loading_is_stopped_at_every_point(board: Run, at: int) -> None:
    done = board("/info\n/reboot\n", expect=42, STOP_AT_US=at, WORK_US=WORK_US)
    stops = stops_of(done.stderr)
    if "Type a prompt" in done.stdout:
        assert max(stops, default=0) < LIMIT_US
    else:
        assert stops[0] < LIMIT_US
        assert done.stdout.count("Loading was stopped, so there is no model: /reboot") == 2


@pytest.mark.parametrize(
    "faults",
    [
        {"READ_FAIL": 1, "READ_FAILS": 1_000_000},
        {"READ_FAIL": 20, "READ_FAILS": 1_000_000},
        {"ABSENT": 1000, "MOUNT_US": 3 * SECOND},
        {"STUCK_AT": 10, "STUCK_US": 20 * SECOND},
    ],
)
@pytest.mark.parametrize("at", [100_000, 400_000, 900_000])
def test_loading_from_a_bad_card_is_stopped(board: Run, at: int, faults: dict[str, int]) -> None:
    done = board("/info\n", STOP_AT_US=at, **faults)
    assert max(stops_of(done.stderr), default=0) < LIMIT_US
    assert "version:  " in done.stdout


def test_ctrl_c_at_an_idle_prompt_stops_no_later_load(board: Run) -> None:
    done = board(ASK + "\x03", PSRAM=STREAMING, PULL_AT=300, BACK_AT=7, END_WAITS=300)
    assert "The card is gone" in done.stdout
    assert "Loading was stopped" not in done.stdout
    assert done.stdout.count("Type a prompt") == 2


def test_what_is_typed_during_a_load_waits_for_its_end(board: Run, answer: str) -> None:
    done = board(ASK, IDLE_WAITS=0, TYPED_AHEAD=3, WORK_US=WORK_US)
    assert texts_of(done.stdout) == [answer]
    stopped = board(ASK + "\x03\n", TYPED_AHEAD=4, WORK_US=WORK_US)
    assert "Loading was stopped" in stopped.stdout


def ask(device: Device, n: int = 24) -> tuple[End, str]:
    said: list[str] = []
    device.session_reset()
    device.sampling(0, 0, 65536, 65536, 1)
    end = device.generate(PROMPT, n, said.append).end
    return end, "".join(said)


def ending_of(request_it: Callable[[Device], object], device: Device) -> int:
    """The status that a request ends with; CANCELLED also for an answer that was stopped."""
    try:
        ended = request_it(device)
    except Refused as refused:
        return refused.status
    return CANCELLED if ended is End.CANCELLED else 0


@pytest.mark.parametrize("at", [20_000, 130_000, 700_000])
@pytest.mark.parametrize(
    ("kind", "request_it"),
    [
        (GENERATE, lambda device: device.generate(PROMPT, 400, len).end),
        (READ_TEST, lambda device: device.read_test(4096, 4 << 20)),
        (CHECK, lambda device: device.check(0, 1 << 30)),
    ],
)
@pytest.mark.parametrize("faults", [{}, {"READ_FAIL_EVERY": 30, "READ_FAILS": 3}])
def test_requests_are_stopped(
    script: Callable[..., Path],
    package: Path,
    tmp_path: Path,
    answer: str,
    kind: int,
    request_it: Callable[[Device], object],
    at: int,
    faults: dict[str, int],
) -> None:
    fails = {"READ_FAIL": 200, **faults} if faults else {}
    notes = script(
        PSRAM=STREAMING,
        STOP=STOP,
        STOP_TYPE=kind,
        STOP_STEP_US=at,
        STOPS=1,
        **fails,
    )
    with connected(tmp_path, package) as device:
        assert ending_of(request_it, device) in (CANCELLED, 0 if kind != GENERATE else CANCELLED)
        assert ask(device) == (End.LENGTH, answer)
    stops = stops_of(notes.read_text())
    assert max(stops, default=0) < LIMIT_US
    assert stops or kind != GENERATE


# --- What was given up keeps its memory -----------------------------------------------------------


@pytest.mark.parametrize(
    "then",
    [
        lambda _: None,
        lambda device: device.read_test(4096, 65536),
        lambda device: device.check(0, 50),
        lambda device: device.info(),
        lambda device: device.stat("slot0"),
        lambda device: device.feed([1, 2, 3], logits=True),
        lambda device: device.commit(device.info()["fingerprint"]),
        lambda device: list(device.sums("big", 3)),
    ],
    ids=["ask", "read test", "check", "info", "stat", "feed", "load again", "sums"],
)
@pytest.mark.parametrize(
    ("kind", "stopped"),
    [
        (GENERATE, lambda device: ask(device, 400)[0]),
        (READ_TEST, lambda device: device.read_test(32768, 4 << 20)),
        (CHECK, lambda device: device.check(0, 1 << 30)),
        (COMMIT, lambda device: device.commit(device.info()["fingerprint"])),
        (SUMS, lambda device: list(device.sums("big", 60))),
    ],
    ids=["GENERATE", "READ_TEST", "CHECK", "COMMIT", "SUMS"],
)
def test_no_memory_is_used_while_the_card_is_read_into_it(
    script: Callable[..., Path],
    in_slot: Path,
    tmp_path: Path,
    answer: str,
    kind: int,
    stopped: Callable[[Device], object],
    then: Callable[[Device], object],
) -> None:
    """The read under way when the stop comes goes on for 3 s; the fakes watch its buffer."""
    notes = script(
        PSRAM=STREAMING,
        STOP=STOP,
        STOP_TYPE=kind,
        STOP_STEP_US=20_000,
        STOPS=1,
        STUCK_TYPE=kind,
        STUCK_US=3 * SECOND,
    )
    with connected(tmp_path, in_slot) as device:
        assert ending_of(stopped, device) == CANCELLED
        then(device)
        assert ask(device) == (End.LENGTH, answer)
    noted = notes.read_text()
    assert re.findall(r"stuck for (\d+) us", noted) == [str(3 * SECOND)]
    assert max(stops_of(noted)) < LIMIT_US


def test_the_engine_waits_for_memory_that_it_lent(
    script: Callable[..., Path], package: Path, tmp_path: Path, answer: str
) -> None:
    """20 KB of a small fast region reach past the streaming buffers into the activations."""
    notes = script(
        INTERNAL=40_000,
        STOP=STOP,
        STOP_TYPE=READ_TEST,
        STOP_STEP_US=20_000,
        STOPS=1,
        STUCK_TYPE=READ_TEST,
        STUCK_US=3 * SECOND,
    )
    with connected(tmp_path, package) as device:
        assert ending_of(lambda device: device.read_test(20_480, 4 << 20), device) == CANCELLED
        assert ask(device) == (End.LENGTH, answer)
    assert "misuse" not in notes.read_text()


def test_no_race_where_reads_are_given_up(
    build_board: Callable[..., Path], clang: str, package: Path
) -> None:
    program = build_board(clang, ("-O1", "-g", "-fsanitize=thread"))
    board = runner(program, package)
    bad = {"READ_FAIL": 300, "READ_FAIL_EVERY": 60, "READ_FAILS": 3, "MOUNT_US": 3 * SECOND}
    done = board(ASK + ONCE * 20, PSRAM=STREAMING, STOP_STEP_US=40_000, **bad)
    assert len(stops_of(done.stderr)) > 10
    assert "WARNING: ThreadSanitizer" not in done.stderr
