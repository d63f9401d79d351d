"""The simulator's second core: every part is done once, asleep or awake, and nothing races."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import FIRMWARE, Compile

CORES_C = FIRMWARE / "ports" / "posix" / "cores.c"


@pytest.mark.parametrize("flags", [["-O2"], ["-O1", "-g", "-fsanitize=thread"]], ids=str)
def test_every_part_is_done_once(clang: str, compile_c: Compile, flags: list[str]) -> None:
    sources = [CORES_C, Path(__file__).with_name("cores_work.c")]
    program = compile_c("cores-work", clang, [*flags, "-pthread"], sources)
    result = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "3000 jobs\n"
