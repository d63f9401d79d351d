"""Conversations over bad lines with the board's program: texts whole, or a clear failure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ram_board import RamBoard, chance
from test_upload_faults import KINDS

from host.board.chat import Sampling
from host.errors import HostError
from host.link.client import Device

RUNS = 300
RATES = (0.0001, 0.0005, 0.001, 0.005, 0.01)
LIMIT_S = 900.0
TALKS = (
    [("ab", 20), ("", 30), ("cd ef", 0)],
    [("a longer prompt", 120), ("and one more", 120), ("", 60)],
    [("x", 600), ("", 600)],
)


def talk(library: Any, package: Path, seed: int, rate: float = 0.0, *, reset: bool = False) -> Any:
    """One conversation: its texts, the bytes missing of them, and the failure's sentence or ""."""
    drawn = random.Random(seed)
    board = RamBoard(library, baud=drawn.choice((None, 115_200)))
    board.install(package)
    kinds = drawn.sample(KINDS, drawn.randint(1, 3))
    for noise in (board.faults.to_board, board.faults.from_board):
        for kind in kinds:
            setattr(noise, kind, chance(rate / len(kinds)))
    board.faults.seed = seed
    if reset:
        board.faults.reset_after = drawn.randint(1, 400)
    assert board.boot() == 0
    texts: list[str] = []
    missing, sentence = 0, ""
    try:
        with Device(board) as device:
            device.session_reset(drop=True)
            device.sampling(*Sampling(temperature=1, seed=seed).q16())
            for prompt, n in TALKS[seed % len(TALKS)]:
                pieces: list[str] = []
                texts.append("")
                done = device.generate(prompt, n, pieces.append)
                texts[-1] = "".join(pieces)
                missing += done.missing
                assert ("\ufffd" in texts[-1]) >= (done.missing > 0)
    except HostError as exc:
        sentence = str(exc)
        assert sentence
        texts.pop()
    assert board.now() < LIMIT_S
    return texts, missing, sentence


@pytest.mark.parametrize("part", range(5))
def test_every_text_is_whole_or_the_failure_is_said(
    library: Any, package: Path, part: int, record_property: Callable[[str, object], None]
) -> None:
    ended: Counter[str] = Counter()
    for seed in range(part, RUNS, 5):
        rate, reset = RATES[seed // 5 % len(RATES)], seed % 7 == 0
        clean, *_ = talk(library, package, seed)
        assert len(clean) == len(TALKS[seed % len(TALKS)])
        texts, missing, sentence = talk(library, package, seed, rate, reset=reset)
        if not missing:
            assert texts == clean[: len(texts)], f"seed {seed}"
        if not sentence and not missing:
            assert len(texts) == len(clean)
        if not reset:
            assert not sentence, f"seed {seed}, {rate:.2%} of the bytes: {sentence}"
            assert not missing, f"seed {seed}"
        ended["failed clearly" if sentence or missing else "whole"] += 1
    for what, count in ended.items():
        record_property(f"conversations {what}", count)
    assert ended["whole"] >= ended.total() * 3 // 4
