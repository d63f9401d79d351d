"""The text of an answer over a line that loses some of it: whole, or said to be missing."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

import pytest
from fake_board import KEPT, FakeBoard, FakeLine, Faults
from hypothesis import given
from hypothesis import strategies as st

from host.board.chat import Sampling, chat
from host.errors import CheckFailed, LinkError
from host.link.client import Device, End, Refused, Request, Status
from host.link.frames import Decoder, Frame, encode
from host.link.talk import Text

EVENT = Request.GENERATE | 0x40
ANSWER = Request.GENERATE | 0x80
WORDS = ("Ünï", "cödé,", "漢字", "and", "🙂", "tell", "the dog", "a", "story", "", "old", "sea.")


class Tampered(FakeLine):
    """A line on which a function changes what frames the board sends."""

    def __init__(self, board: FakeBoard, change: Callable[[list[Frame]], list[Frame]]) -> None:
        super().__init__(board)
        self.change = change

    def write(self, data: bytes) -> None:
        before = len(self._inbox)
        super().write(data)
        came = bytes(self._inbox[before:])
        frames = [f for f in Decoder().feed(came) if isinstance(f, Frame)]
        self._inbox[before:] = b"".join(encode(f) for f in self.change(frames))


def make_board(count: int = 60) -> FakeBoard:
    board = FakeBoard()
    board.pieces = [f"{WORDS[i % len(WORDS)]} " for i in range(count)]
    return board


def ask(line: FakeLine) -> tuple[str, int]:
    """Text and missing bytes of an answer; the text must come in order, piece by piece."""
    device = Device(line)
    device.session_reset()
    pieces: list[str] = []
    done = device.generate("Tell", 0, pieces.append)
    assert (done.end, done.tokens) == (End.LENGTH, len(line.board.pieces))
    return "".join(pieces), done.missing


@pytest.mark.parametrize("seed", range(20))
def test_events_lost_doubled_and_out_of_order_make_the_whole_text(seed: int) -> None:
    chance = random.Random(seed)

    def change(frames: list[Frame]) -> list[Frame]:
        events = [f for f in frames if f.type == EVENT for _ in range(chance.choice((0, 1, 1, 2)))]
        chance.shuffle(events)
        return events + [f for f in frames if f.type != EVENT for _ in range(chance.choice((1, 2)))]

    board = make_board()
    assert ask(Tampered(board, change)) == ("".join(board.pieces), 0)
    assert Request.TEXT in [kind for kind, _ in board.runs]


@pytest.mark.parametrize("rate", [0.0001, 0.001, 0.005, 0.01])
@pytest.mark.parametrize("seed", range(6))
def test_a_bad_line_loses_no_text(seed: int, rate: float) -> None:
    board = make_board()
    kinds = dict.fromkeys(("drop", "flip", "duplicate", "insert"), rate / 4)
    assert ask(FakeLine(board, Faults(seed, **kinds))) == ("".join(board.pieces), 0)
    assert [kind for kind, _ in board.runs].count(Request.GENERATE) == 1


def test_the_last_event_is_missed_too() -> None:
    def change(frames: list[Frame]) -> list[Frame]:
        return [f for f in frames if f.type != EVENT]

    board = make_board()
    assert ask(Tampered(board, change)) == ("".join(board.pieces), 0)


def test_a_clean_line_asks_for_no_text() -> None:
    board = make_board()
    assert ask(FakeLine(board)) == ("".join(board.pieces), 0)
    assert Request.TEXT not in [kind for kind, _ in board.runs]


def test_what_the_board_no_longer_keeps_is_counted_and_marked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def change(frames: list[Frame]) -> list[Frame]:
        events = [f for f in frames if f.type == EVENT]
        return [f for f in frames if f.type != EVENT or f in (events[0], events[-1])]

    board = make_board(1000)
    whole = "".join(board.pieces).encode()
    text, missing = ask(Tampered(board, change))
    first = board.pieces[0].encode()
    assert missing == len(whole) - KEPT - len(first)
    start, end = text.split("\ufffd", 1)
    assert start.encode() == first
    assert whole.endswith(end.lstrip("\ufffd").encode())
    assert len(end.encode()) <= KEPT + 9

    board.current = "00" * 32
    with pytest.raises(CheckFailed, match=f"lost {missing:,} bytes of the answers") as caught:
        chat(Device(Tampered(board, change)), ["Tell"], Sampling(), n=0, as_json=True)
    assert caught.value.exit_code == 1
    said = capsys.readouterr()
    assert f'"bytes_missing": {missing}' in said.out
    assert f"{missing:,} bytes of this answer were lost on the line" in said.err


def test_a_board_that_does_not_give_the_text_again_leaves_it_missing() -> None:
    def change(frames: list[Frame]) -> list[Frame]:
        events = [f for f in frames if f.type == EVENT]
        return [f for f in frames if f.type != Request.TEXT | 0x80 and f not in events[3:5]]

    board = make_board()
    text, missing = ask(Tampered(board, change))
    lost = "".join(board.pieces[3:5])
    assert missing == len(lost.encode())
    assert text == "".join(board.pieces).replace(lost, "\ufffd", 1)


def test_text_that_is_not_what_the_board_wrote_is_not_passed_for_it() -> None:
    def change(frames: list[Frame]) -> list[Frame]:
        return [
            Frame(f.type, f.seq, f.payload.replace(b"dog", b"cat")) if f.type == EVENT else f
            for f in frames
        ]

    with pytest.raises(LinkError, match="is not what the board wrote"):
        ask(Tampered(make_board(), change))


def test_a_board_that_restarted_does_not_answer_in_another_conversation() -> None:
    board = make_board()
    device = Device(FakeLine(board))
    device.session_reset()
    board.reset()
    with pytest.raises(Refused, match="forgotten") as caught:
        device.generate("Tell", 0, lambda _: None)
    assert caught.value.status == Status.STATE
    device.session_reset()
    assert device.generate("Tell", 0, lambda _: None).missing == 0


def test_a_lost_stop_is_sent_again_and_nothing_runs_twice() -> None:
    class LosesStop(FakeLine):
        stops = 0

        def write(self, data: bytes) -> None:
            for frame in Decoder().feed(data):
                if isinstance(frame, Frame) and frame.type == Request.STOP:
                    self.stops += 1
                    if self.stops == 1:
                        return
            super().write(data)

    board = make_board()
    line = LosesStop(board)
    device = Device(line)
    # The board answers only once it is stopped.
    held: list[bytes] = []
    real = board._send

    def send(kind: int, seq: int, payload: bytes) -> None:
        if kind == ANSWER and not line.stops > 1:
            held.append(encode(Frame(kind, seq, payload)))
            return
        real(kind, seq, payload)
        if kind == Request.STOP | 0x80:
            for answer in held:
                board._out.extend(answer)
            held.clear()

    board._send = send  # type: ignore[method-assign]
    asked = [True]

    def interrupt(_: str) -> None:
        if asked.pop() if asked else False:
            raise KeyboardInterrupt

    done = device.generate("x", 0, interrupt)
    assert done.missing == 0
    assert line.stops >= 2
    assert [kind for kind, _ in board.runs].count(Request.GENERATE) == 1


def test_a_second_interrupt_is_the_caller_s() -> None:
    device = Device(FakeLine(make_board()))

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.generate("x", 0, interrupt)


def test_long_answers_come_in_parts_where_they_are_lost_whole() -> None:
    """3 % of the bytes: a frame of 200 would survive one time in 400."""
    board = FakeBoard()
    line = FakeLine(board, Faults(seed=1))
    device = Device(line)
    line.faults = Faults(seed=4, drop=0.01, flip=0.01, insert=0.01)
    text = "a story " * 3
    assert device.encode(text) == list(text.encode())
    assert Request.PART in [kind for kind, _ in board.runs]


@given(st.text(max_size=60), st.randoms(use_true_random=False))
def test_any_pieces_in_any_order_make_the_text(text: str, chance: random.Random) -> None:
    data = text.encode()
    shown: list[str] = []
    taken = Text(shown.append)
    cuts = sorted(chance.randint(0, len(data)) for _ in range(5))
    pieces = [(a, data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    for _ in range(3):
        a = chance.randint(0, len(data))
        pieces.append((a, data[a : chance.randint(a, len(data))]))
    chance.shuffle(pieces)
    for offset, piece in pieces:
        taken.take(offset, piece)
    assert taken.gap(len(data)) is None
    taken.end()
    assert "".join(shown) == text
    assert (taken.shown, taken.missing, taken.crc) == (len(data), 0, zlib.crc32(data))


@given(st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=10)), max_size=10))
def test_a_gap_is_never_empty_and_skipping_ends(pieces: list[tuple[int, bytes]]) -> None:
    taken = Text(lambda _: None)
    for offset, piece in pieces:
        taken.take(offset, piece)
    while gap := taken.gap(60):
        assert gap[1] > 0
        taken.skip(sum(gap))
    assert taken.shown == 60
    assert struct.pack("<I", taken.crc)
