"""500 uploads over bad lines to the board's own program: complete and equal, or a clear failure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ram_board import RamBoard, chance

from host.board.contents import Contents, parse_slot
from host.board.upload import upload
from host.errors import HostError
from host.link.client import Device

RUNS = 500
RATES = (0.0001, 0.0005, 0.001, 0.005, 0.02, 0.05)
KINDS = ("drop", "flip", "duplicate", "insert", "late")
LIMIT_S = 1800.0  # of the line's time; a failure takes minutes of trying


def assert_complete(board: RamBoard, contents: Contents) -> None:
    slots = [parse_slot(board.get(f"/tllm/slot{i}") or b"") for i in (0, 1)]
    assert max(slot for slot in slots if slot is not None)[1] == contents.fingerprint
    for file in contents.files:
        data = board.get(f"/tllm/{contents.folder}/{file.name}")
        assert data == file.path.read_bytes(), file.name


def is_current(board: RamBoard) -> bool:
    return board.get("/tllm/slot0") is not None or board.get("/tllm/slot1") is not None


def run(library: Any, contents: Contents, seed: int) -> tuple[float, str, float]:
    """One upload; its rate of faults, the failure's sentence or "", the line's seconds."""
    drawn = random.Random(seed)
    rate = RATES[seed % len(RATES)]
    board = RamBoard(library)
    kinds = drawn.sample(KINDS, drawn.randint(1, 3))
    for noise in (board.faults.to_board, board.faults.from_board):
        for kind in kinds:
            setattr(noise, kind, chance(rate / len(kinds)))
    board.faults.seed = seed
    board.faults.boot_noise = seed % 2 == 0
    if seed % 3 == 0:
        board.faults.reset_after = drawn.randint(1, contents.size)
    assert board.boot() == 0
    try:
        with Device(board) as device:
            upload(device, contents)
        sentence = ""
    except HostError as exc:
        sentence = str(exc)
        assert sentence
    assert board.now() < LIMIT_S
    if sentence:
        assert not is_current(board)
    else:
        assert_complete(board, contents)
    return rate, sentence, board.now()


@pytest.mark.parametrize("part", range(10))
def test_every_upload_ends_complete_or_clearly(
    library: Any, package: Path, part: int, record_property: Callable[[str, object], None]
) -> None:
    contents = Contents.of(package)
    ended: Counter[tuple[float, bool]] = Counter()
    longest = 0.0
    for seed in range(part, RUNS, 10):
        rate, sentence, seconds = run(library, contents, seed)
        longest = max(longest, seconds)
        ended[rate, sentence == ""] += 1
        if sentence and rate <= 0.02:
            pytest.fail(f"seed {seed}, {rate:.2%} of the bytes: {sentence}")
    complete = sum(n for (_, done), n in ended.items() if done)
    record_property("uploads complete", complete)
    record_property("uploads failed clearly", ended.total() - complete)
    record_property("the longest, s", round(longest))
    assert complete >= ended.total() * 9 // 10
