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

from tests.conftest import REPOSITORY
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
    state.mkdir()
    (state / "card").symlink_to(package, target_is_directory=True)
    done = run_host(
        "verify",
        str(package),
        *("-p", "sim", "--sim-dir", str(state), "--positions", str(positions)),
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"{positions} positions, all equal" in done.stdout


@pytest.mark.parametrize("model", ["stories260K", "tiny-llm-surrogate", "bundled"])
def test_takes_no_more_instructions(
    program: Path,
    model: str,
    quantized: Callable[[str], Path],
    record_property: Callable[[str, object], None],
) -> None:
    package = quantized(model)
    name = json.loads((package / "model_config.json").read_text())["name"]
    before = json.loads(xtensa.BASELINE.read_text())[name]
    now = xtensa.count(program, package, COUNTED_TOKENS)
    record_property("instructions a token", f"{now['token']:,}")
    record_property("a multiplication", f"{now['token'] / now['macs']:.2f}")
    assert now["macs"] == before["macs"]
    assert now["token"] <= before["token"] * (1 + ALLOWED_RISE), (
        f"{now['token']:,} instructions a token, {before['token']:,} before: a rise of "
        f"{now['token'] / before['token'] - 1:.1%}; tools/xtensa.py --update accepts it"
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
    sizes = xtensa.sizes(program)
    assert sizes["data"] == 0, "mutable data with initial values: the engine has none"
    assert sizes["text"] < 128 * 1024
