"""The board's program on an emulated Xtensa core: equal bit for bit, and no slower than it was."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, insert_card
from tools import xtensa

pytestmark = pytest.mark.qemu

COUNTED_TOKENS = 4
ALLOWED_RISE = 0.02


@pytest.fixture(scope="session")
def program(xtensa_gcc: str, qemu_xtensa: str, pytestconfig: pytest.Config) -> Path:
    assert xtensa_gcc
    assert qemu_xtensa
    assert pytestconfig.cache is not None
    return xtensa.build(pytestconfig.cache.mkdir("tllm-xtensa"))


@pytest.fixture
def board(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `-p sim` mean the emulated core."""
    script = tmp_path / "xtensa"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {REPOSITORY}/tools/xtensa.py "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("TLLM_SIM", str(script))
    monkeypatch.setenv("TLLM_XTENSA_BUILD", str(program.parent))


@pytest.mark.usefixtures("board")
@pytest.mark.parametrize(
    ("model", "positions"), [("stories260K", 64), ("tiny-llm-surrogate", 8), ("bundled", 16)]
)
def test_equals_the_reference(
    model: str,
    positions: int,
    quantized: Callable[[str], Path],
    tmp_path: Path,
    run_host: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    package = quantized(model)
    state = tmp_path / "state"
    insert_card(state, package)
    done = run_host(
        "verify",
        str(package),
        *("-p", "sim", "--sim-dir", str(state), "--positions", str(positions)),
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"{positions} positions, all equal" in done.stdout


@pytest.mark.parametrize("model", ["stories260K", "tiny-llm-surrogate", "bundled"])
def test_takes_no_more_instructions_and_memory(
    program: Path,
    model: str,
    quantized: Callable[[str], Path],
    record_property: Callable[[str, object], None],
) -> None:
    package = quantized(model)
    name = json.loads((package / "model_config.json").read_text())["name"]
    before = xtensa.kept()["models"][name]
    now = xtensa.measure(program, package, COUNTED_TOKENS)
    counts = now["instructions"]
    record_property("instructions a token", f"{counts['token']:,}")
    record_property("a multiplication", f"{counts['token'] / counts['macs']:.2f}")
    assert counts["macs"] == before["instructions"]["macs"]
    risen(counts, before["instructions"], ["token"])
    risen(now["bytes"], before["bytes"], [n for n in now["bytes"] if not n.endswith("_free")])


def risen(now: dict[str, int], before: dict[str, int], names: list[str]) -> None:
    """Fails where a figure has risen by more than what is allowed."""
    for name in names:
        assert now[name] <= before[name] * (1 + ALLOWED_RISE), (
            f"{name}: {now[name]:,}, {before[name]:,} before: a rise of "
            f"{now[name] / before[name] - 1:.1%}; tools/xtensa.py --update accepts it"
        )


def test_memory_that_is_not_there_traps(program: Path, quantized: Callable[[str], Path]) -> None:
    """With 512 KB of 4 MB the program reaches beyond the end, and does not go on quietly."""
    done = subprocess.run(
        xtensa.command(program, str(quantized("stories260K")), memory="512K"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "trap: cause" in done.stdout


def test_sizes(program: Path) -> None:
    now, before = xtensa.sizes(program), xtensa.kept()["program"]
    for part in now:
        assert now[part]["data"] == 0, "mutable data with initial values: the program has none"
        risen(now[part], before[part], ["text", "rodata", "bss"])
    assert now["engine"]["bss"] == now["tokenizer"]["bss"] == 0, (
        "the engine's state is its caller's"
    )


def test_parts_are_the_whole_program(program: Path) -> None:
    """What the linker's map says of the parts, against the program's own headers."""
    said = subprocess.run(
        [f"{xtensa.PREFIX}size", "-A", str(program)], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split() for line in said.splitlines() if line.startswith("."))
    whole = {row[0].removeprefix("."): int(row[1]) for row in rows}
    for kind in ("text", "rodata", "bss"):
        parts = sum(part[kind] for part in xtensa.sizes(program).values())
        assert parts <= whole[kind] <= parts * 1.01 + 64, f"{kind}: gaps are small"


def test_the_document_has_the_figures_kept() -> None:
    text = xtensa.DOCUMENT.read_text(encoding="utf-8")
    assert text == xtensa.document(text, xtensa.kept()), "run tools/xtensa.py PACKAGE... --update"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "name folders that `host quantize` made"),
        (["README.md"], "name folders that `host quantize` made"),
        (["--tokens", "0", "weights"], "give --tokens 1 or more"),
    ],
)
def test_what_cannot_be_counted_is_a_sentence(words: list[str], said: str) -> None:
    run = subprocess.run(
        [sys.executable, "tools/xtensa.py", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr
