"""The engine under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import engine_library
import pytest

FLAGS = [
    "-O1",
    "-g",
    "-fPIC",
    "-shared",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]


@pytest.fixture(scope="module")
def run(gcc: str, compile_c: Any) -> Any:
    path = compile_c("libtllm-san.so", gcc, FLAGS, engine_library.sources())
    preload = subprocess.run(
        [gcc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(preload).is_absolute():
        pytest.skip("gcc's address sanitizer (libasan) is not installed")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(Path(__file__).with_name("sanitized.py")), str(path), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"},
        )

    return run


def test_nothing_undefined_and_nothing_out_of_bounds(run: Any) -> None:
    result = run()
    assert (result.returncode, result.stdout) == (0, "all ran\n"), result.stderr


def test_an_overrun_would_be_seen(run: Any) -> None:
    result = run("--overrun")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
