"""The engine's objects need nothing but memory and integer helpers, and hold no variables."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import engine_library
import pytest

from tests.conftest import WARNINGS

# bcmp: what clang makes of memcmp(..) == 0.
MEMORY = {"memcpy", "memset", "memmove", "memcmp", "bcmp", "memchr", "strlen"}
# libgcc's integers: multiplication, division, shifts, comparison, leading zeros; no sf or df.
INTEGER_HELPER = re.compile(r"__u?(mul|div|mod|divmod|ashl|ashr|lshr|cmp|clz|ctz|ffs)[sd]i[234]?")
INTEGER_HELPER_2 = re.compile(r"__umulsidi3|_GLOBAL_OFFSET_TABLE_")


def nm(tool: str, objects: list[Path]) -> list[tuple[str, str, str]]:
    """(object, type, symbol) of every symbol."""
    found = []
    for path in objects:
        out = subprocess.run([tool, str(path)], capture_output=True, text=True, check=True).stdout
        for line in out.splitlines():
            kind, symbol = line.split()[-2:]
            found.append((path.name, kind, symbol))
    return found


def check(symbols: list[tuple[str, str, str]]) -> list[str]:
    """What is wrong, one line each."""
    defined = {symbol for _, kind, symbol in symbols if kind != "U"}
    wrong = []
    for name, kind, symbol in symbols:
        helper = INTEGER_HELPER.fullmatch(symbol) or INTEGER_HELPER_2.fullmatch(symbol)
        if kind == "U" and symbol not in defined | MEMORY and not helper:
            wrong.append(f"{name} needs {symbol}")
        if kind in "bBdDcC":
            wrong.append(f"{name} has the variable {symbol}")
    return wrong


def compile_all(compiler: list[str], sources: list[Path], folder: Path) -> list[Path]:
    objects = []
    for source in sources:
        objects.append(folder / f"{source.stem}.o")
        files = ["-c", str(source), "-o", str(objects[-1])]
        command = [*compiler, *WARNINGS, f"-I{engine_library.TINYLLM}", *files]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    return objects


@pytest.fixture(params=["gcc", "clang", "xtensa_gcc"])
def compiler(request: pytest.FixtureRequest) -> list[str]:
    path: str = request.getfixturevalue(request.param)
    if request.param != "xtensa_gcc":
        return [path]
    listed = subprocess.run(
        [path, "-print-sysroot"], capture_output=True, text=True, check=True
    ).stdout.strip()
    places = [Path(listed or "/"), Path("/usr/lib/xtensa-lx106-elf"), Path(path).parent.parent]
    specs = [p / "picolibc.specs" for p in places if (p / "picolibc.specs").is_file()]
    if not specs:
        pytest.skip("picolibc for xtensa-lx106-elf is not installed")
    return [path, f"--specs={specs[0]}", "-mlongcalls"]


@pytest.mark.parametrize("optimise", ["-O0", "-O2", "-Os"])
def test_only_integers_and_memory(compiler: list[str], optimise: str, tmp_path: Path) -> None:
    tool = "xtensa-lx106-elf-nm" if "xtensa" in compiler[0] else "nm"
    objects = compile_all(
        [*compiler, optimise], sorted(engine_library.TINYLLM.glob("*.c")), tmp_path
    )
    assert check(nm(tool, objects)) == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("double f(double a, double b); double f(double a, double b) { return a * b; }", "muldf3"),
        ("#include <stdlib.h>\nvoid *f(void); void *f(void) { return malloc(9); }", "malloc"),
        ('#include <stdio.h>\nint f(void); int f(void) { return puts(""); }', "puts"),
        ("int f(void); int f(void) { static int n; return n++; }", "variable n"),
    ],
)
def test_the_check_can_fail(xtensa_gcc: str, code: str, fault: str, tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    source.write_text(code)
    specs = Path("/usr/lib/xtensa-lx106-elf/picolibc.specs")
    if not specs.is_file():
        pytest.skip("picolibc for xtensa-lx106-elf is not installed")
    objects = compile_all([xtensa_gcc, f"--specs={specs}"], [source], tmp_path)
    assert any(fault in line for line in check(nm("xtensa-lx106-elf-nm", objects)))


def test_only_the_allowed_headers_are_included() -> None:
    allowed = {"<stdint.h>", "<stddef.h>", "<stdbool.h>", "<string.h>"}
    for path in engine_library.TINYLLM.glob("*.[ch]"):
        included = re.findall(
            r'^#include ([<"].*)$', path.read_text(encoding="utf-8"), re.MULTILINE
        )
        for header in included:
            assert header in allowed or header.startswith('"'), f"{path.name} includes {header}"
