"""What the tests of the ESP-IDF layer share."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from host.board.contents import Contents, slot_bytes
from host.link.client import Device
from host.link.transports import open_port
from tests.conftest import FIRMWARE, Build, Compile, Quantized, insert_card, portable_sources

FOLDER = Path(__file__).resolve().parent
STUBS = FOLDER / "include"
LAYER = sorted((FIRMWARE / "src").glob("*.c"))
FAKES = sorted((FOLDER / "fakes").glob("*.c"))
SANITIZED = (
    *("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "-DTLLM_RED_ZONE=64u",
)

# Less than the model: some of each token's weights come from the card.
STREAMING = 600_000
ASK = "/temp 0\n/n 24\nOnce upon a time\n"


class Run(Protocol):
    """Boots the board with a card and faults, types lines, and returns what happened."""

    def __call__(
        self, typed: str = ASK, *, expect: int = 0, **faults: str | int | Path
    ) -> subprocess.CompletedProcess[str]: ...


def layer_flags(chip: str) -> list[str]:
    """Flags that compile `LAYER` against the stubs; they change when a stub does."""
    digest = hashlib.sha256()
    for header in sorted(STUBS.rglob("*.h")):
        digest.update(header.read_bytes())
    return [f"-I{STUBS}", f"-DCONFIG_IDF_TARGET_{chip}=1", f"-DSTUBS_{digest.hexdigest()[:16]}"]


@pytest.fixture(scope="session")
def build_board(compile_c: Compile) -> Callable[..., Path]:
    """Builds the firmware on the fakes."""

    def build(cc: str, flags: Sequence[str] = ("-O2",), chip: str = "ESP32") -> Path:
        sources = [*LAYER, *portable_sources(), *FAKES]
        return compile_c("board", cc, [*flags, *layer_flags(chip), "-pthread"], sources)

    return build


def runner(program: Path, package: Path) -> Run:
    """Runs a board that was built."""

    def run(
        typed: str = ASK, *, expect: int = 0, **faults: str | int | Path
    ) -> subprocess.CompletedProcess[str]:
        settings = {"CARD": package, **faults}
        fakes = {f"FAKE_{name}": str(value) for name, value in settings.items()}
        done = subprocess.run(
            [program],
            input=typed,
            env={**os.environ, **fakes},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def package(quantized: Quantized) -> Path:
    return quantized("stories260K")


@pytest.fixture
def in_slot(package: Path, tmp_path: Path) -> Path:
    """A card that an upload has written, with a large file beside it."""
    contents = Contents.of(package)
    folder = tmp_path / "in slot" / "tllm"
    shutil.copytree(package, folder / contents.folder)
    (folder / "slot0").write_bytes(slot_bytes(1, contents.fingerprint))
    (folder / "big").write_bytes(bytes(60 * 4096))
    return folder.parent


@pytest.fixture(scope="session")
def board(build_board: Callable[..., Path], clang: str, package: Path) -> Run:
    return runner(build_board(clang, SANITIZED), package)


@pytest.fixture
def script(
    build_board: Callable[..., Path], clang: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Makes a board the simulated one of `-p sim`; returns the file of what it notes."""

    def make(chip: str = "ESP32", **faults: str | int) -> Path:
        program = build_board(clang, SANITIZED, chip=chip)
        notes = tmp_path / "notes"
        settings = "".join(f"FAKE_{name}='{value}' " for name, value in faults.items())
        text = f'FAKE_LIVE=1 FAKE_CARD="$3" {settings} exec "{program}" 2>"{notes}"'
        path = tmp_path / "board"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("TLLM_SIM", str(path))
        return notes

    return make


@contextmanager
def connected(state: Path, card: Path) -> Iterator[Device]:
    """A client of the board that `script` made, with that card in it."""
    insert_card(state, card)
    with Device(open_port("sim", sim_dir=state)) as device:
        yield device


@pytest.fixture(scope="session")
def answer(build_sim: Build, gcc: str, package: Path) -> str:
    """What the simulated board answers to `ASK`."""
    said = ""
    with subprocess.Popen(
        [build_sim(gcc), "--card", str(package)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as simulator:
        assert simulator.stdin is not None
        assert simulator.stdout is not None
        simulator.stdin.write(ASK)
        simulator.stdin.flush()
        for line in simulator.stdout:  # its line's end would stop the answer
            said += line
            if line.startswith("["):
                break
        simulator.stdin.close()
    return texts_of(said)[0]


def texts_of(output: str) -> list[str]:
    """The whole answers to `ASK` in what a board printed."""
    found = re.findall(r"Once upon a time\n([^>]*?)\n\[24 tokens", output)
    assert found, output
    return found


def stops_of(notes: str) -> list[int]:
    """Microseconds from each stop to the end of what it stopped."""
    return [int(us) for us in re.findall(r"stopped after (\d+) us", notes)]
