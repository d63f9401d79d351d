"""The ESP-IDF layer compiles against stubs of ESP-IDF 5.5.3: each chip, each compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import FIRMWARE, INCLUDES, WARNINGS
from tests.espidf.conftest import LAYER, layer_flags

SPECS = Path("/usr/lib/xtensa-lx106-elf/picolibc.specs")
# Of the smallest stack, 4,096 bytes, that calls of the driver go through as well.
LARGEST_FRAME = 1024


def compile_layer(
    command: list[str], chip: str, source: Path, folder: Path
) -> subprocess.CompletedProcess[str]:
    includes = [f"-I{FIRMWARE / path}" for path in (*INCLUDES, "src")]
    flags = [*layer_flags(chip), *includes, "-O2", f"-Wframe-larger-than={LARGEST_FRAME}"]
    return subprocess.run(
        [*command, *flags, "-c", str(source), "-o", str(folder / "layer.o")],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(params=["gcc", "clang", "xtensa_gcc"])
def compiler(request: pytest.FixtureRequest) -> list[str]:
    program: str = request.getfixturevalue(request.param)
    if request.param != "xtensa_gcc":
        return [program]
    if not SPECS.is_file():
        pytest.skip("picolibc for xtensa-lx106-elf is not installed")
    return [program, f"--specs={SPECS}", "-mlongcalls"]


@pytest.mark.parametrize("standard", ["-std=c11", "-std=gnu11"])
@pytest.mark.parametrize("chip", ["ESP32", "ESP32S3"])
def test_compiles_without_a_warning(
    compiler: list[str], chip: str, standard: str, tmp_path: Path
) -> None:
    for source in LAYER:
        done = compile_layer([*compiler, *WARNINGS, standard], chip, source, tmp_path)
        assert done.returncode == 0, done.stderr


def test_another_chip_is_refused(gcc: str, tmp_path: Path) -> None:
    source = FIRMWARE / "src" / "main.c"
    done = compile_layer([gcc, *WARNINGS], "ESP32C3", source, tmp_path)
    assert done.returncode != 0
    assert "boards with an ESP32 or an ESP32-S3 only" in done.stderr
