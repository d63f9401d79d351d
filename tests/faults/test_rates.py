"""A serial line whose high rates garble what they carry: the board's program on virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ram_board import RamBoard, chance
from test_upload_faults import assert_complete

from host.board.contents import Contents
from host.board.upload import upload
from host.link.client import Device, Refused, Request

RATES = (2_000_000, 921_600, 460_800, 115_200)


class Picky(RamBoard):
    """Above a rate, so many of the bytes are spoilt, both ways."""

    limit, share = RATES[0], 0.0

    def set_baud(self, baud: int) -> None:
        super().set_baud(baud)
        share = self.share if baud > self.limit else 0.0
        for noise in (self.faults.to_board, self.faults.from_board):
            noise.flip = chance(share)


def picky(library: Any, limit: int, share: float) -> Picky:
    board = Picky(library, baud=115_200)
    board.limit, board.share = limit, share
    assert board.boot() == 0
    return board


@pytest.mark.parametrize("share", [0.02, 0.3])
@pytest.mark.parametrize("limit", RATES)
def test_the_highest_rate_that_carries_frames_is_used_and_left_again(
    library: Any, package: Path, limit: int, share: float
) -> None:
    contents = Contents.of(package)
    board = picky(library, limit, share)
    with Device(board) as device:
        done = upload(device, contents)
        assert done.baud == limit
        assert done.lost_frames == 0
    assert_complete(board, contents)
    assert board.baud == 115_200
    assert Device(board).info()["baud"] == 115_200


def test_a_rate_that_fails_later_is_left_for_a_lower_one(library: Any, package: Path) -> None:
    contents = Contents.of(package)
    board = picky(library, RATES[0], 0.4)

    def spoil(_: int) -> None:
        if board.limit == RATES[0]:
            board.limit = RATES[1]
            board.set_baud(board.baud or 0)

    with Device(board) as device:
        done = upload(device, contents, progress=spoil)
    assert done.baud is not None
    assert done.baud <= RATES[1]
    assert_complete(board, contents)


def test_a_long_frame_is_given_the_time_it_takes_on_the_line(library: Any) -> None:
    """4 KB take 0.35 s at 115,200 baud, many round trips of short frames."""
    board = RamBoard(library, baud=115_200)
    assert board.boot() == 0
    device = Device(board)
    for _ in range(30):
        device.space()
        device.stat("1a2b3c4d/x")
    assert device.resend_after < 0.1
    before = device.resent
    with pytest.raises(Refused, match="no model"):
        device.request(Request.GENERATE, bytes(4000).replace(b"\0", b"x"))
    assert device.resent == before


def test_a_board_left_at_a_high_rate_goes_back_by_itself(library: Any) -> None:
    board = picky(library, RATES[0], 0.0)
    device = Device(board)
    assert device.set_baud(RATES[0])
    board.read(15.0)
    assert device.info()["baud"] == RATES[0]
    start = board.now()
    while board.now() < start + 21:
        board.read(1.0)
    board.set_baud(115_200)
    assert Device(board, patience=1.0).info()["baud"] == 115_200
    assert board.baud == 115_200
