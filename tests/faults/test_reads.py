"""Every read of the card fails, comes short or brings a wrong bit: the right answer, or a sentence.

The package is read through an external memory that leaves no room for weights, so that every
tensor and every embedding row is streamed, and once more with all of it resident.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ram_board import BULK, RamBoard, logits_crcs

from host.board.contents import CHUNK_BYTES, Contents
from host.errors import BoardError
from host.link.client import Device, Refused, Status
from tests.faults.conftest import make_package

TOKENS = [1, 70, 200, 5]
ERROR, SHORT, WRONG = range(3)
NAMED = re.compile(
    r"The card failed while reading ([a-z0-9_]+\.bin) at byte (\d+)"
    r"|The card gave wrong bytes of ([a-z0-9_]+\.bin) at byte (\d+)"
    r"|Chunk (\d+) of ([a-z0-9_]+\.bin) has not its checksum"
    r"|(descriptor|tokenizer)\.bin is (?:damaged|of a version)"
)


@dataclass(frozen=True)
class Right:
    """The answer, and how many reads it takes in each memory."""

    crcs: list[int]
    reads: dict[str, int]


def answer(board: RamBoard) -> list[int]:
    """CRC-32s of the logits at each position, or what the board refuses with."""
    with Device(board) as device:
        info = device.info()
        if info["state"] != "ready":
            raise Refused(Status.NO_MODEL, info["error"])
        return logits_crcs(device, TOKENS)


def answer_or_sentence(board: RamBoard) -> tuple[list[int], str]:
    """The CRC-32s, or the board's refusal."""
    try:
        return answer(board), ""
    except BoardError as refused:
        return [], str(refused)


def least_bulk(library: Any, package: Path) -> int:
    """Bytes of external memory that hold the model's state and none of its weights."""
    bulk = 60_000
    while True:
        board = RamBoard(library, bulk=bulk)
        board.install(package)
        assert board.boot() == 0
        _, refused = answer_or_sentence(board)
        if not refused:
            return bulk
        found = re.search(rf"needs (\d+) bytes of bulk memory and this board has {bulk}:", refused)
        assert found is not None, refused
        bulk = int(found.group(1))


@pytest.fixture(scope="module")
def memories(library: Any, package: Path) -> dict[str, int]:
    return {"streamed": least_bulk(library, package), "resident": BULK}


@pytest.fixture(scope="module")
def right(library: Any, package: Path, memories: dict[str, int]) -> Right:
    """The answer, and the reads it takes streamed and resident."""
    found = []
    for bulk in memories.values():
        board = RamBoard(library, bulk=bulk)
        board.install(package)
        assert board.boot() == 0
        found.append((answer(board), board.reads))
    assert found[0][0] == found[1][0]
    assert len(set(found[0][0])) == len(TOKENS)
    return Right(found[0][0], {"streamed": found[0][1], "resident": found[1][1]})


def test_a_byte_less_of_memory_is_refused(
    library: Any, package: Path, memories: dict[str, int]
) -> None:
    board = RamBoard(library, bulk=memories["streamed"] - 1)
    board.install(package)
    assert board.boot() == 0
    with pytest.raises(BoardError, match=f"needs {memories['streamed']} bytes of bulk memory"):
        answer(board)


@pytest.mark.parametrize("fault", [ERROR, SHORT, WRONG])
@pytest.mark.parametrize("memory", ["streamed", "resident"])
def test_every_read_may_go_wrong_once(
    library: Any,
    package: Path,
    memories: dict[str, int],
    right: Right,
    memory: str,
    fault: int,
) -> None:
    reads = right.reads[memory]
    assert reads >= 15
    damaged = []
    for turn in range(1, reads + 1):
        board = RamBoard(library, bulk=memories[memory])
        board.install(package)
        board.faults.read, board.faults.read_fault = turn, fault
        assert board.boot() == 0
        crcs, sentence = answer_or_sentence(board)
        if sentence:
            assert NAMED.search(sentence), (turn, sentence)
            damaged.append(turn)
        else:
            assert crcs == right.crcs, turn
            assert board.reads > reads or fault == WRONG, turn
    # A bad bit in the descriptor's few reads is seen, and not read again.
    assert len(damaged) <= (2 if fault == WRONG else 0), damaged


@pytest.mark.parametrize("fault", [ERROR, SHORT, WRONG])
@pytest.mark.parametrize("memory", ["streamed", "resident"])
def test_reads_that_stay_wrong_end_in_a_sentence(
    library: Any,
    package: Path,
    memories: dict[str, int],
    right: Right,
    memory: str,
    fault: int,
) -> None:
    sizes = {path.name: path.stat().st_size for path in package.iterdir()}
    named = set()
    for turn in range(1, right.reads[memory] + 1):
        board = RamBoard(library, bulk=memories[memory])
        board.install(package)
        board.faults.read, board.faults.read_fault = turn, fault
        board.faults.for_ever = True
        assert board.boot() == 0
        with pytest.raises(BoardError) as refused:
            answer(board)
        found = NAMED.search(str(refused.value))
        assert found is not None, (turn, refused.value)
        name, at = found.group(1) or found.group(3), found.group(2) or found.group(4)
        if name is None:
            name = found.group(6) or f"{found.group(7)}.bin"
            at = str(int(found.group(5) or 0) * CHUNK_BYTES)
        assert 0 <= int(at) < sizes[name]
        named.add(name)
    if (memory, fault) == ("streamed", WRONG):
        # Wrong bytes are read again from the first embedding row on, which is then wrong itself.
        assert named == {"descriptor.bin", "tokenizer.bin", "embed_tokens.bin"}
    else:
        assert named == {name for name in sizes if name.endswith(".bin")}


@pytest.mark.parametrize("name", ["descriptor.bin", "tokenizer.bin"])
def test_a_file_of_another_version_is_named(library: Any, package: Path, name: str) -> None:
    """Its checksums are right: nothing but the version differs."""
    files = {path.name: path.read_bytes() for path in package.glob("*.bin")}
    changed = bytearray(files[name])
    changed[4] += 1
    descriptor = bytearray(changed if name == "descriptor.bin" else files["descriptor.bin"])
    if name == "tokenizer.bin":
        old, new = (
            zlib.crc32(data[:CHUNK_BYTES]).to_bytes(4, "little") for data in (files[name], changed)
        )
        assert descriptor.count(old) == 1
        descriptor = descriptor.replace(old, new)
    files |= {name: bytes(changed), "descriptor.bin": bytes(descriptor[:-4])}
    files["descriptor.bin"] += zlib.crc32(descriptor[:-4]).to_bytes(4, "little")
    board = RamBoard(library)
    for path, data in files.items():
        board.put(f"/{path}", data)
    assert board.boot() == 0
    with pytest.raises(BoardError, match=rf"{name} is of a version that this firmware does not"):
        answer(board)


def test_any_byte_of_the_descriptor(library: Any, package: Path) -> None:
    data = (package / "descriptor.bin").read_bytes()
    for at in range(len(data)):
        board = RamBoard(library)
        board.install(package)
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        board.put("/descriptor.bin", bytes(changed))
        assert board.boot() == 0
        with pytest.raises(BoardError, match=r"descriptor\.bin"):
            answer(board)


@pytest.mark.parametrize("memory", ["streamed", "resident"])
def test_a_byte_in_each_file(
    library: Any,
    package: Path,
    memories: dict[str, int],
    right: Right,
    memory: str,
) -> None:
    """Wherever the engine reads, resident or streamed, a wrong byte never becomes an answer."""
    files = [file for file in Contents.of(package).files if file.name.endswith(".bin")]
    for file in files:
        data = file.path.read_bytes()
        # Of the embedding only the rows that are used are read while it is streamed.
        used = TOKENS[1] * len(data) // 264 if file.name == "embed_tokens.bin" else 0
        for at in {used, len(data) // 2, len(data) - 1}:
            board = RamBoard(library, bulk=memories[memory])
            board.install(package)
            changed = bytearray(data)
            changed[at] ^= 0x10
            board.put(f"/{file.name}", bytes(changed))
            assert board.boot() == 0
            crcs, sentence = answer_or_sentence(board)
            if sentence:
                assert file.name in sentence, (at, sentence)
            else:
                assert file.name == "embed_tokens.bin"
                assert at // CHUNK_BYTES != used // CHUNK_BYTES
                assert crcs == right.crcs


def test_another_models_files_under_this_ones_names(
    library: Any, package: Path, other: Path, right: Right
) -> None:
    """Every subset of one file swapped: a mix of two models is refused by name."""
    for path in sorted(package.glob("*.bin")):
        if path.read_bytes() == (other / path.name).read_bytes():
            continue
        board = RamBoard(library)
        board.install(package)
        board.put(f"/{path.name}", (other / path.name).read_bytes())
        assert board.boot() == 0
        with pytest.raises(BoardError):
            answer(board)
    board = RamBoard(library)
    board.install(other)
    assert board.boot() == 0
    assert answer(board) != right.crcs


def test_each_file_is_looked_up_once(library: Any, tmp_path: Path) -> None:
    """Of more files than can stay open the first stay, and the others take turns in one place."""
    held = 62
    package = make_package(tmp_path / "deep", 4, layers=9)
    streamed = len(list(package.glob("*.bin"))) - 2  # not the descriptor, not the tokenizer
    assert streamed > held + 10
    opened = Counter[str]()
    for bulk in (least_bulk(library, package), BULK):
        board = RamBoard(library, bulk=bulk)
        board.install(package)
        original = board.port.file_open

        def count(ctx: Any, path: Any, how: int, board: RamBoard = board, f: Any = original) -> int:
            opened[board.ffi.string(path).decode()] += 1
            return int(f(ctx, path, how))

        keep = board.ffi.callback("int(void *, const char *, enum dev_open)", count)
        board.port.file_open = keep
        assert board.boot() == 0
        opened.clear()
        with Device(board) as device:
            crcs = logits_crcs(device, TOKENS)
        if bulk == BULK:
            assert not opened
        else:
            streamed_crcs, passes = crcs, len(TOKENS)
            assert sum(opened.values()) <= held + passes * (streamed - held + 2)
            assert sum(n == 1 for n in opened.values()) > held - 5
    assert crcs == streamed_crcs
