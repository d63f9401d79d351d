"""Runs each fuzzer from its corpus, a fixed number of inputs; and its corpus under plain gcc.

To look for longer, and keep what reaches further:  TLLM_FUZZ_SECONDS=600 pytest tests/fuzz -k card
A finding's input is printed in base64; its case goes into the corpus once it is mended.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import FIRMWARE, Compile
from tests.fuzz.seeds import write_package, write_seeds

HERE = Path(__file__).resolve().parent
RAM_BOARD = HERE.parent / "ram_board" / "ram_board.c"
FLAGS = (
    *("-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"),
    "-DTLLM_RED_ZONE=64u",
)
LIMITS = (
    "-seed=1",
    "-len_control=0",  # short inputs are no better here
    "-timeout=60",
    "-rss_limit_mb=0",  # libFuzzer's counts what the parent held when it forked
    "-malloc_limit_mb=64",
)
ASAN = "hard_rss_limit_mb=512:quarantine_size_mb=8"


@dataclass(frozen=True)
class Target:
    """A `fuzz_NAME.c`: how many inputs it gets, and how long they may be."""

    runs: int
    max_len: int


TARGETS = {
    "frame": Target(60_000, 9000),
    "device": Target(2_500, 2400),
    "card": Target(2_000, 400),
    "descriptor": Target(150_000, 2500),
    "tokenizer": Target(200_000, 8192),
    "text": Target(50_000, 500),
}
SECONDS = os.environ.get("TLLM_FUZZ_SECONDS")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("fuzz") / "package")


def _sources(name: str) -> list[Path]:
    libraries = ["tinyllm"] if name in ("descriptor", "tokenizer") else ["tinyllm", "device"]
    sources = [HERE / f"fuzz_{name}.c"]
    for library in libraries:
        sources += sorted((FIRMWARE / "lib" / library).glob("*.c"))
    if name in ("device", "card", "text"):
        sources += [HERE / "card.c", RAM_BOARD]
    return sources


def _run(program: Path, package: Path, *options: object) -> str:
    """What it prints; what it leaves behind where it fails is part of the failure."""
    left = package.parent / f"{program.name}-"
    fuzzer = [] if program.name.startswith("replay") else [f"-artifact_prefix={left}"]
    ended = subprocess.run(
        [program, *fuzzer, *map(str, options)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=os.environ | {"TLLM_FUZZ_PACKAGE": str(package), "ASAN_OPTIONS": ASAN},
    )
    found = [base64.b64encode(p.read_bytes()) for p in left.parent.glob(f"{left.name}*")]
    assert ended.returncode == 0, (ended.stderr[-6000:], found)
    return ended.stdout + ended.stderr


# --- The corpora: an archive each, so that a listing stays short ----------------------------------


def _corpus(name: str) -> Path:
    return HERE / "corpus" / f"{name}.tar.xz"


def _unpack(name: str, folder: Path) -> Path:
    folder.mkdir()
    with tarfile.open(_corpus(name)) as archive:
        for index, member in enumerate(archive):
            stored = archive.extractfile(member)
            assert stored is not None
            (folder / f"{index:04}").write_bytes(stored.read())
    return folder


def _pack(name: str, folder: Path) -> None:
    """The same inputs give the same archive."""
    with tarfile.open(_corpus(name), "w:xz", preset=9) as archive:
        for path in sorted(folder.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            with path.open("rb") as data:
                archive.addfile(member, data)


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_crashes_hangs_or_reads_out_of_bounds(
    compile_c: Compile,
    clang: str,
    package: Path,
    tmp_path: Path,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    fuzzer = compile_c(f"fuzz_{name}", clang, FLAGS, _sources(name))
    target = TARGETS[name]
    corpus = _unpack(name, tmp_path / "corpus")
    write_seeds(name, package, corpus)
    end = f"-max_total_time={SECONDS}" if SECONDS else f"-runs={target.runs}"
    options = [*LIMITS, f"-max_len={target.max_len}"]
    said = _run(fuzzer, package, *options, end, "-print_final_stats=1", corpus)
    runs = re.search(r"number_of_executed_units: (\d+)", said)
    assert runs is not None
    assert SECONDS or int(runs.group(1)) >= target.runs
    record_property("inputs", runs.group(1))
    if SECONDS:
        least = tmp_path / "least"
        least.mkdir()
        _run(fuzzer, package, *options, "-merge=1", least, corpus)
        _pack(name, least)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_under_gcc(
    compile_c: Compile,
    gcc: str,
    package: Path,
    tmp_path: Path,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Another compiler, optimised and without sanitizers, as the board's program is built."""
    sources = [*_sources(name), HERE / "replay.c"]
    replay = compile_c(f"replay_{name}", gcc, ("-O2",), sources)
    inputs = sorted(_unpack(name, tmp_path / "corpus").iterdir())
    assert f"{len(inputs)} inputs" in _run(replay, package, *inputs)
    record_property("inputs", len(inputs))
