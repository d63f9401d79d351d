"""Power cut after each sector written to a FAT volume: the old model boots, or the new one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fat_card import SECTOR, FatCard, Sectors, empty_fat32
from ram_board import RamBoard, logits_crcs

from host.board.contents import Contents
from host.board.upload import upload
from host.link.client import Device

TOKENS = [1, 70, 200]
PARTS = 4
TORN_AT = (32, SECTOR // 2)  # bytes of a sector that are written; 32: inside of a slot

State = dict[int, bytes]
Booted = tuple[str, str, list[int]]


@pytest.fixture(scope="module")
def volume() -> bytes:
    return bytes(empty_fat32())


def boot(library: Any, disk: Sectors, package: Contents | None = None) -> Booted:
    """Boots from a volume; uploads a package if one is given. State, fingerprint and answer."""
    board = RamBoard(library)
    with FatCard(board, disk):
        assert board.boot() == 0
        with Device(board) as device:
            if package is not None:
                upload(device, package)
            info = device.info()
            crcs: list[int] = []
            if info["state"] == "ready":
                assert device.check(0, 0xFFFFFFFF)[0] == 0
                crcs = logits_crcs(device, TOKENS)
            return info["state"], info["fingerprint"], crcs


def replaced(
    library: Any, volume: bytes, package: Path, other: Path
) -> tuple[State, list[tuple[int, bytes]], dict[str, list[int]]]:
    """The volume with the old model, the sectors written to replace it, and either's answer."""
    answers = {}
    old = Sectors(volume)
    state, fingerprint, answers_of_old = boot(library, old, Contents.of(package))
    assert (state, fingerprint) == ("ready", Contents.of(package).fingerprint)
    answers[fingerprint] = answers_of_old
    new = Sectors(volume, old.changed)
    state, fingerprint, answers[Contents.of(other).fingerprint] = boot(
        library, new, Contents.of(other)
    )
    assert (state, fingerprint) == ("ready", Contents.of(other).fingerprint)
    assert len(answers) == 2
    return old.changed, new.written, answers


def torn(before: bytes, after: bytes, at: int) -> bytes:
    return after[:at] + before[at:]


@pytest.mark.parametrize("part", range(PARTS))
def test_the_old_model_or_the_new(
    library: Any,
    volume: bytes,
    package: Path,
    other: Path,
    part: int,
    record_property: Callable[[str, object], None],
) -> None:
    """After n whole sectors, and with the next one there in part."""
    state, written, answers = replaced(library, volume, package, other)
    old, new = Contents.of(package).fingerprint, Contents.of(other).fingerprint
    assert len(written) > 150
    seen: Counter[str] = Counter()
    switched = False
    for n, (sector, data) in enumerate(written):
        before = Sectors(volume, state).sector(sector)
        halves = {torn(before, data, at) for at in TORN_AT} - {before, data}
        cuts = [state, *({**state, sector: half} for half in sorted(halves))]
        for cut in cuts if n % PARTS == part else []:
            booted, fingerprint, crcs = boot(library, Sectors(volume, cut))
            assert booted == "ready", n
            assert answers[fingerprint] == crcs, n
            assert fingerprint == new or not switched, n
            switched = fingerprint == new
            seen[fingerprint] += 1
        if n % (16 * PARTS) == part:
            ended, fingerprint, crcs = boot(library, Sectors(volume, state), Contents.of(other))
            assert (ended, fingerprint, crcs) == ("ready", new, answers[new]), n
        state = {**state, sector: data}
    booted, fingerprint, _ = boot(library, Sectors(volume, state))
    assert (booted, fingerprint) == ("ready", new)
    assert seen[old] > 40
    record_property("sectors", len(written))
    record_property("power cuts", seen.total())
