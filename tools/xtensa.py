#!/usr/bin/env python3
"""The board's program on an emulated Xtensa core: builds it, runs it, counts its instructions.

As a program it takes the simulator's options, so `TLLM_SIM=tools/xtensa.py host verify -p sim` runs
the emulated core instead of the simulated board.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRMWARE = ROOT / "firmware"
PORT = FIRMWARE / "ports" / "xtensa_qemu"
PREFIX = "xtensa-lx106-elf-"
SPECS = Path("/usr/lib/xtensa-lx106-elf/picolibc.specs")
FLAGS = [
    *("-std=c11", "-O2", "-mlongcalls", "-mtext-section-literals"),
    *("-nostartfiles", "-ffunction-sections", "-fdata-sections"),
    *("-Wall", "-Wextra", "-pedantic", "-Wconversion", "-Wmissing-prototypes", "-Werror"),
]
BASELINE = ROOT / "tests" / "golden" / "lx106_instructions.json"
MEMORY = "4M"
SECONDS = 300


def sources() -> list[Path]:
    """Every file of the program."""
    patterns = ("lib/tinyllm/*.c", "lib/device/*.c", "ports/xtensa_qemu/*.[cS]")
    return sorted(path for pattern in patterns for path in FIRMWARE.glob(pattern))


def build(folder: Path, flags: Sequence[str] = ()) -> Path:
    """Compiles the program into a folder and returns the ELF file's path.

    A program of the same sources and flags that is there already is returned as it is.

    Raises:
        subprocess.CalledProcessError: The compiler refused; it has said why.
    """
    files = sources()
    digest = hashlib.sha256(" ".join([*FLAGS, *flags]).encode())
    for path in [*files, *sorted(FIRMWARE.glob("**/*.h")), PORT / "sim.ld"]:
        digest.update(path.read_bytes())
    program = folder / f"tllm-lx106-{digest.hexdigest()[:16]}.elf"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        partial = Path(scratch) / "program.elf"
        subprocess.run(
            [
                f"{PREFIX}gcc",
                f"--specs={SPECS}",
                *FLAGS,
                *flags,
                f"-I{FIRMWARE / 'lib/tinyllm'}",
                f"-I{FIRMWARE / 'lib/device'}",
                f"-T{PORT / 'sim.ld'}",
                *map(str, files),
                "-Wl,--gc-sections",
                "-o",
                str(partial),
            ],
            check=True,
        )
        partial.rename(program)
    return program


def command(program: Path, *arguments: str, memory: str = MEMORY) -> list[str]:
    """The emulator's command line for a program and its arguments.

    `-icount` makes the cycle counter count instructions, the same in every run.
    """
    words = ",".join(f"arg={word}" for word in ("tllm-lx106", *arguments))
    return [
        *("timeout", str(SECONDS), "qemu-system-xtensa", "-M", "sim", "-cpu", "lx106"),
        *("-m", memory, "-display", "none", "-serial", "none", "-monitor", "none"),
        *("-icount", "shift=5,sleep=off"),
        *("-semihosting-config", f"enable=on,{words}", "-kernel", str(program)),
    ]


def count(program: Path, package: Path, tokens: int) -> dict[str, int]:
    """Instructions a token, by stage and in all (`token`), and its multiplications (`macs`).

    Args:
        program: What `build` returned.
        package: Folder that is the card.
        tokens: How many to average over.

    Raises:
        RuntimeError: The program did not end well.
    """
    done = subprocess.run(
        command(program, str(package), "--count", str(tokens)),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the program ended with {done.returncode}: {done.stdout[-500:]}")
    rows = done.stdout.split("instructions a token\n", 1)[1].split("\n")
    return {name: int(value) for name, value in (row.split() for row in rows if row)}


def sizes(program: Path) -> dict[str, int]:
    """Bytes of code with its constants (`text`), initialised (`data`) and zeroed memory (`bss`)."""
    done = subprocess.run(
        [f"{PREFIX}size", str(program)], capture_output=True, text=True, check=True
    )
    names, values = (line.split() for line in done.stdout.splitlines()[:2])
    return {name: int(value) for name, value in list(zip(names, values, strict=False))[:3]}


def table(counts: dict[str, int]) -> str:
    """The counts as lines of text."""
    lines = [f"{name:12} {n:>12,}" for name, n in counts.items()]
    lines.append(f"{'per MAC':12} {counts['token'] / counts['macs']:>12.2f}")
    return "\n".join(lines)


def _board(words: Sequence[str], store: Path) -> int:
    parser = argparse.ArgumentParser(prog="xtensa.py")
    parser.add_argument("--stdio", action="store_true", required=True)
    parser.add_argument("--card", type=Path, required=True)
    options = parser.parse_args(words)
    line = command(build(store), str(options.card.resolve()))
    os.execvp(line[0], line)  # noqa: S606


def _main() -> int:
    store = Path(os.environ.get("TLLM_XTENSA_BUILD") or ROOT / "build" / "xtensa")
    if "--stdio" in sys.argv:
        return _board(sys.argv[1:], store)
    parser = argparse.ArgumentParser(description="Count instructions a token on an emulated lx106.")
    parser.add_argument("package", type=Path, nargs="+", help="folders that `host quantize` made")
    parser.add_argument("--tokens", type=int, default=4, help="average over so many")
    parser.add_argument("--update", action="store_true", help=f"write {BASELINE.name}")
    options = parser.parse_args()
    program = build(store)
    print(json.dumps(sizes(program)))
    found = {}
    for package in options.package:
        name = json.loads((package / "model_config.json").read_text())["name"]
        found[name] = count(program, package.resolve(), options.tokens)
        print(f"\n{name}\n{table(found[name])}")
    if options.update:
        kept = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
        BASELINE.parent.mkdir(exist_ok=True)
        BASELINE.write_text(json.dumps(kept | found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
