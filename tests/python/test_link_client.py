"""The client against a board written from the specification: answers, resends, events, refusals."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable

import pytest
from fake_board import FakeBoard, FakeLine, Faults, Refusal
from hypothesis import given
from hypothesis import strategies as st

from host.errors import BoardError, LinkError
from host.link.client import (
    Ack,
    Device,
    End,
    LineTooBad,
    NoAnswer,
    Refused,
    Request,
    Status,
    stages_of,
)
from host.link.frames import Decoder, Frame, encode

LOSSY = Faults(seed=5, drop=0.0004, flip=0.0004, duplicate=0.0004, insert=0.0004)


def connect(
    board: FakeBoard | None = None, faults: Faults | None = None
) -> tuple[Device, FakeBoard]:
    board = board or FakeBoard()
    return Device(FakeLine(board, faults)), board


def test_hello_says_who_is_there() -> None:
    device, _ = connect()
    assert device.hello.text == "fake 1.0"
    assert device.hello.window_bytes == 32768


def test_a_line_with_nobody_on_it_is_a_sentence_and_is_closed() -> None:
    class Silent(FakeLine):
        def write(self, data: bytes) -> None:
            pass

    line = Silent(FakeBoard())
    with pytest.raises(NoAnswer, match="Nothing answers") as caught:
        Device(line, patience=2.0)
    assert caught.value.exit_code == 2
    assert line.closed
    assert 2.0 <= line.now() < 4.0


def test_a_board_that_boots_late_is_waited_for() -> None:
    class Late(FakeLine):
        def write(self, data: bytes) -> None:
            if self.now() > 3.0:
                super().write(data)

    assert Device(Late(FakeBoard())).hello.text == "fake 1.0"


def test_console_text_before_and_between_frames_is_skipped() -> None:
    class Chatty(FakeLine):
        def write(self, data: bytes) -> None:
            super().write(data)
            self._inbox += b"ets Jul 29 2019\r\nrst:0x1\r\n> "

    device = Device(Chatty(FakeBoard()))
    assert device.info()["state"] == "no-model"


def test_a_lost_answer_is_asked_for_again_and_the_request_not_run_twice() -> None:
    class DropsOne(FakeLine):
        drop = False

        def write(self, data: bytes) -> None:
            super().write(data)
            if self.drop:
                self._inbox.clear()
                self.drop = False

    board = FakeBoard()
    line = DropsOne(board)
    device = Device(line)
    board.runs.clear()
    line.drop = True
    before = line.now()
    assert device.encode("ab") == [97, 98]
    assert board.runs == [(Request.ENCODE, b"ab")]
    assert device.resent == 1
    assert 0.02 <= line.now() - before < 0.1


def test_a_silent_board_is_given_up_in_time() -> None:
    class Dies(FakeLine):
        dead = False

        def write(self, data: bytes) -> None:
            if not self.dead:
                super().write(data)

    line = Dies(FakeBoard())
    device = Device(line)
    line.dead = True
    before = line.now()
    with pytest.raises(NoAnswer, match="does not answer"):
        device.info()
    assert device.resent >= 8
    assert 4.5 <= line.now() - before < 5.1


def test_a_slow_line_is_given_more_time_before_a_frame_is_taken_for_lost() -> None:
    class Slow(FakeLine):
        def read(self, timeout: float) -> bytes:
            self._clock += 0.1 if self._inbox else 0.0
            return super().read(timeout)

    device = Device(Slow(FakeBoard()))
    for _ in range(20):
        device.encode("abc")
    assert device.resent == 0
    assert device.resend_after == pytest.approx(0.4, abs=0.1)


def test_a_line_that_brings_only_damage_is_given_up_in_time() -> None:
    class Garbles(FakeLine):
        bad = False

        def write(self, data: bytes) -> None:
            super().write(data)
            if self.bad:
                self._inbox[:] = bytes(byte ^ 0x20 for byte in self._inbox)

    line = Garbles(FakeBoard())
    device = Device(line)
    line.bad = True
    before = line.now()
    with pytest.raises(LineTooBad, match="loses nearly everything"):
        device.encode("a")
    assert 30 <= line.now() - before < 32


class Talkative(FakeLine):
    """A board that, once asked, never ceases to send, and heeds nothing any more."""

    endless = b""

    def read(self, timeout: float) -> bytes:
        assert self.now() < 200, "the wait has no end"
        if not self.endless:
            return super().read(timeout)
        self._clock += 0.01
        return self.endless

    def write(self, data: bytes) -> None:
        if not self.endless:
            super().write(data)


FOREIGN = encode(Frame(0x7F, 9, b"abc"))


@pytest.mark.parametrize(
    ("first", "endless"),
    [(b"\0", b"I (420) boot: log\r\n"), (b"", b"ab\0cdef"), (b"", FOREIGN), (b"", 3 * FOREIGN)],
)
def test_a_board_that_never_ceases_to_send_is_given_up_in_time(
    first: bytes, endless: bytes
) -> None:
    for ask in (Device.info, lambda device: device.generate("a", 0, str)):
        line = Talkative(FakeBoard(), baud=115200)
        device = Device(line)
        line._inbox += first
        assert device._line.next_frame(0.0) is None
        line.endless = endless
        before = line.now()
        with pytest.raises(LineTooBad, match="loses nearly everything"):
            ask(device)
        assert 30 <= line.now() - before < 125


@pytest.mark.parametrize("refuses", [False, True])
def test_a_board_of_another_protocol_version_is_a_sentence(refuses: bool) -> None:
    class Other(FakeBoard):
        def _on_01(self, _: Frame, __: bytes) -> bytes:
            if refuses:
                raise Refusal(Status.VERSION, "This firmware speaks version 3.")
            return struct.pack("<HHI", 1, 4128, 32768) + b"old"

    with pytest.raises(BoardError, match=r"version [13]") as caught:
        connect(Other())
    assert "Flash the firmware of this version" in str(caught.value)


def test_sequence_numbers_wrap_past_zero() -> None:
    device, board = connect()
    seen = []
    board.before_answer = lambda frame: seen.append(frame.seq)
    for _ in range(600):
        device.encode("x")
    assert 0 not in seen
    assert set(seen) == set(range(1, 256))


def test_a_request_never_has_the_number_of_the_last_one_that_was_answered() -> None:
    device, _ = connect()
    for count in range(250, 260):
        assert device.encode("a") == [97]
        for _ in range(count):
            device.stop()
        assert device.encode("b") == [98]


def test_an_answer_to_another_request_is_not_taken() -> None:
    class Stale(FakeLine):
        def write(self, data: bytes) -> None:
            for frame in Decoder().feed(data):
                if isinstance(frame, Frame) and frame.type == Request.ENCODE:
                    late = Frame(frame.type | 0x80, frame.seq - 1, struct.pack("<iI", 0, 7))
                    other = Frame(Request.DECODE | 0x80, frame.seq, struct.pack("<iI", 0, 7))
                    self._inbox += encode(late) + encode(other)
            super().write(data)

    assert Device(Stale(FakeBoard())).encode("q") == [113]


def test_generate_streams_whole_characters_and_reports() -> None:
    board = FakeBoard()
    board.pieces = ["Ünï", " 漢字", "🙂"]
    device, _ = connect(board)
    pieces: list[str] = []
    done = device.generate("hi", 0, pieces.append)
    assert pieces == ["Ünï", " 漢字", "🙂"]
    assert (done.end, done.prompt_tokens, done.tokens) == (End.LENGTH, 3, 3)
    assert done.answer_s == pytest.approx(0.002)
    assert done.reading_share == pytest.approx(500 / 3000)


def test_split_characters_are_held_until_they_are_whole() -> None:
    board = FakeBoard()
    device, _ = connect(board)
    data = "né漢🙂".encode()

    def split(frame: Frame) -> None:
        if frame.type == Request.GENERATE:
            for offset, byte in enumerate(data):
                board._send(frame.type | 0x40, frame.seq, struct.pack("<IB", offset, byte))

    board.before_answer = split
    board.pieces = [data.decode()]
    pieces: list[str] = []
    device.generate("", 4, pieces.append)
    assert pieces == ["n", "é", "漢", "🙂"]


def test_ctrl_c_stops_the_answer_and_is_not_lost() -> None:
    board = FakeBoard()
    device, _ = connect(board)
    board.runs.clear()
    asked = [True]

    def interrupt(_: str) -> None:
        if asked.pop() if asked else False:
            raise KeyboardInterrupt

    done = device.generate("x", 4, interrupt)
    assert done.tokens == 4
    assert Request.STOP in [kind for kind, _ in board.runs]


def test_a_prompt_longer_than_a_frame_is_refused_before_it_is_sent() -> None:
    device, board = connect()
    board.runs.clear()
    with pytest.raises(BoardError, match="5,000 bytes"):
        device.generate("x" * 5000, 1, lambda _: None)
    assert board.runs == []


def test_a_refusal_carries_status_and_words() -> None:
    device, _ = connect()
    with pytest.raises(Refused) as caught:
        device.rewind(5)
    assert caught.value.status == Status.STATE
    with pytest.raises(Refused, match="does not know"):
        device.sample()


@pytest.mark.parametrize(("batch", "each"), [(1, True), (3, True), (8, True), (8, False)])
def test_feed_returns_a_row_a_position(batch: int, each: bool) -> None:
    device, _ = connect()
    fed = device.feed(range(100, 100 + batch), each=each, stages=True, layers=1)
    assert fed.n_past == batch
    for position, row in enumerate(fed.crcs):
        stages = stages_of(1, head=each)
        assert len(row) == len(stages)
        assert row == [(position << 16 | stage << 8) + 100 + position for stage, _ in stages]


def test_a_long_answer_that_is_lost_is_sent_again_and_not_worked_out_again() -> None:
    class DropsFeeds(FakeLine):
        left = 3

        def write(self, data: bytes) -> None:
            is_feed = any(
                isinstance(f, Frame) and f.type == Request.FEED for f in Decoder().feed(data)
            )
            super().write(data)
            if is_feed and self.left:
                self.left -= 1
                self._inbox.clear()

    board = FakeBoard()
    device = Device(DropsFeeds(board))
    device.feed([1, 2])
    fed = device.feed(range(8), each=True, stages=True, layers=1)
    assert fed.n_past == board.n_past == 10
    assert fed.crcs[0][0] == 2 << 16
    assert [kind for kind, _ in board.runs].count(Request.FEED) == 2


def test_capture_puts_the_pieces_together_and_repeats_what_was_lost() -> None:
    device, board = connect(faults=Faults(seed=3, drop=2e-5))
    for position in range(20):
        got = device.capture(7, 0, 42, position)
        assert got.exponent == -20
        assert got.mantissas.tolist() == [7, 42, -position] * 700
        assert board.n_past == position + 1


def test_files_are_listed_to_the_end() -> None:
    board = FakeBoard()
    board.files = {f"1a2b3c4d/f{i}.bin": bytes(i) for i in range(10)}
    device, _ = connect(board)
    assert device.files() == [(f"1a2b3c4d/f{i}.bin", i) for i in range(10)]


@pytest.mark.parametrize(
    ("request_type", "answer", "ask"),
    [
        (Request.LIST, b"5 a\n" * 1000, Device.entries),
        (Request.INFO, b"[" * 4000, Device.info),
        (Request.INFO, b'{"context": ' + b"9" * 4000 + b"}", Device.info),
        (Request.INFO, b"\xff", Device.info),
        (
            Request.GENERATE,
            struct.pack("<BIIQQQQII", 9, 1, 0, 0, 0, 0, 0, 0, 0),
            lambda device: device.generate("a", 0, str),
        ),
    ],
)
def test_answers_that_mean_nothing_are_a_sentence(
    request_type: Request, answer: bytes, ask: Callable[[Device], object]
) -> None:
    board = FakeBoard()
    setattr(board, f"_on_{request_type:02x}", lambda *_: answer)
    device, _ = connect(board)
    with pytest.raises(LinkError, match="host flash"):
        ask(device)


def test_a_size_that_is_no_number_is_no_file() -> None:
    board = FakeBoard()
    lines = ["\u00b2 a\n7 b\n".encode(), b""]
    setattr(board, f"_on_{Request.LIST:02x}", lambda *_: lines.pop(0))
    device, _ = connect(board)
    assert device.files() == [("b", 7)]


@pytest.mark.parametrize(
    "facts",
    [
        {"state": "ready", "vocab": 512},
        {"state": "ready", "vocab": 512, "context": 0},
        {"state": "ready", "vocab": "many", "context": 512},
        {"state": "no-model", "fast_bytes": -1},
        {"state": "no-card", "psram_bytes": True},
    ],
)
def test_numbers_of_info_that_are_none(facts: dict[str, object]) -> None:
    board = FakeBoard()
    device, _ = connect(board)
    setattr(board, f"_on_{Request.INFO:02x}", lambda *_: json.dumps(facts).encode())
    with pytest.raises(LinkError, match=r"^The board says .* for its .*host flash"):
        device.info()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("", "The board has no card, or cannot read it. Check that"),
        ("The card is gone.", "The card is gone. Check that a card"),
        ("The card is gone: put it in.", "The card is gone: put it in.$"),
    ],
)
def test_what_a_board_advises_stands_alone(said: str, shown: str) -> None:
    assert re.match(shown, str(Refused(Status.NO_CARD, said)))


def test_baud_goes_up_and_comes_back() -> None:
    board = FakeBoard()
    line = FakeLine(board, baud=115200)
    with Device(line) as device:
        assert device.set_baud(921600)
        assert (device.baud, board.baud) == (921600, 921600)
        assert device.encode("a") == [97]
    assert (line.baud, board.baud) == (115200, 115200)


def test_a_rate_that_does_not_work_is_given_up() -> None:
    board = FakeBoard()
    board.max_baud = 500_000
    line = FakeLine(board, baud=115200)
    device = Device(line)
    assert not device.set_baud(2_000_000)
    assert line.baud == 115200
    assert device.encode("a") == [97]


def test_a_board_left_at_another_rate_is_found() -> None:
    board = FakeBoard()
    board.baud = 921600
    line = FakeLine(board, baud=115200)
    assert Device(line, patience=1.0).baud == 921600


def test_rates_that_the_adapter_cannot_do_are_passed_over() -> None:
    class Slow(FakeLine):
        def set_baud(self, baud: int) -> None:
            if baud > 921600:
                raise LinkError(f"COM7 cannot do {baud} baud")
            super().set_baud(baud)

    board = FakeBoard()
    board.baud = 921600
    assert Device(Slow(board, baud=115200), patience=1.0).baud == 921600


def test_requests_survive_a_lossy_line() -> None:
    device, board = connect(faults=LOSSY)
    for number in range(200):
        text = f"text {number}" * 5
        assert device.decode(device.encode(text)) == text
    assert device.resent > 0
    assert board.current == ""


@given(st.binary(max_size=100))
def test_acks_of_any_bytes_parse_or_are_none(payload: bytes) -> None:
    ack = Ack.parse(payload)
    if ack is not None:
        assert len(ack.held) == payload[12] + 1
        assert ack.written == struct.unpack_from("<I", payload)[0]


def test_stages_are_in_the_order_of_the_pass() -> None:
    assert stages_of(2, head=True)[0] == (0, 0)
    assert stages_of(2, head=True)[-2:] == [(12, 0), (13, 0)]
    assert len(stages_of(2, head=False)) == 1 + 2 * 11
