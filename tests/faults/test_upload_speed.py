"""What damaged frames cost an upload, in the line's own time: nothing here depends on the machine.

The line carries 10 bits a byte at its baud rate, both ways at once; the board's own work takes no
time, which makes lost time the larger share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ram_board import RamBoard, chance
from test_upload_faults import assert_complete

from host.board.contents import Contents
from host.board.upload import upload
from host.link.client import Device
from tests.conftest import Quantized

BAUD = 921_600


def seconds(library: Any, contents: Contents, damaged: float, seed: int = 1) -> float:
    """The line's seconds of a whole upload, which must end complete and equal."""
    board = RamBoard(library, baud=BAUD)
    board.faults.seed = seed
    board.faults.frames = chance(damaged)
    assert board.boot() == 0
    with Device(board) as device:
        start = board.now()
        result = upload(device, contents, max_baud=BAUD)
        took = board.now() - start
    assert_complete(board, contents)
    assert (result.lost_frames > 0) == (damaged > 0)
    assert took > contents.size * 10 / BAUD
    return took


def compare(
    library: Any, contents: Contents, record_property: Callable[[str, object], None]
) -> None:
    clean = seconds(library, contents, 0.0)
    bad = seconds(library, contents, 0.01)
    record_property("clean line, s", round(clean, 2))
    record_property("1 % of the frames damaged, s", round(bad, 2))
    print(f"{contents.size:,} bytes: clean {clean:.2f} s, damaged {bad:.2f} s, {bad / clean:.2f}")
    assert clean < 1.25 * contents.size * 10 / BAUD
    assert bad <= 1.5 * clean


def test_one_frame_in_a_hundred(
    library: Any, quantized: Quantized, record_property: Callable[[str, object], None]
) -> None:
    """stories260K: half a MB."""
    compare(library, Contents.of(quantized("stories260K")), record_property)


@pytest.mark.slow
def test_tiny_llm_with_one_frame_in_a_hundred_damaged(
    library: Any, quantized: Quantized, record_property: Callable[[str, object], None]
) -> None:
    """13.6 MB, two and a half minutes of the line's time."""
    compare(library, Contents.of(quantized("tiny-llm-surrogate")), record_property)
