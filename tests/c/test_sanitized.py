"""The engine under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import engine_library as el
import pytest

from tests.conftest import Compile


@pytest.fixture(scope="module")
def library(gcc: str, compile_c: Compile) -> Path:
    return compile_c("libtllm-san.so", gcc, el.SANITIZED, el.sources())


def run(gcc: str, library: Path, *words: str) -> CompletedProcess[str]:
    return el.run_sanitized(gcc, Path(__file__).with_name("sanitized.py"), str(library), *words)


def test_nothing_undefined_and_nothing_out_of_bounds(gcc: str, library: Path) -> None:
    result = run(gcc, library)
    assert (result.returncode, result.stdout) == (0, "all ran\n"), result.stderr


def test_an_overrun_would_be_seen(gcc: str, library: Path) -> None:
    result = run(gcc, library, "--overrun")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
