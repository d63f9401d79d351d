"""What the tests of the ESP-IDF layer share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import FIRMWARE, Build, Compile, portable_sources

FOLDER = Path(__file__).resolve().parent
STUBS = FOLDER / "include"
LAYER = sorted((FIRMWARE / "src").glob("*.c"))
FAKES = sorted((FOLDER / "fakes").glob("*.c"))


def layer_flags(chip: str) -> list[str]:
    """Flags that compile `LAYER` against the stubs; they change when a stub does."""
    digest = hashlib.sha256()
    for header in sorted(STUBS.rglob("*.h")):
        digest.update(header.read_bytes())
    return [f"-I{STUBS}", f"-DCONFIG_IDF_TARGET_{chip}=1", f"-DSTUBS_{digest.hexdigest()[:16]}"]


@pytest.fixture(scope="session")
def build_board(compile_c: Compile) -> Build:
    """Builds the firmware on the fakes."""

    def build(cc: str, flags: Sequence[str] = ("-O2",)) -> Path:
        sources = [*LAYER, *portable_sources(), *FAKES]
        return compile_c("board", cc, [*flags, *layer_flags("ESP32"), "-pthread"], sources)

    return build
