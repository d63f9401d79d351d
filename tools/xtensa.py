#!/usr/bin/env python3
"""The board's program on an emulated Xtensa core: builds, runs, counts and measures it.

As a program it takes the simulator's options, so `TLLM_SIM=tools/xtensa.py host verify -p sim` runs
the emulated core instead of the simulated board.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypedDict

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
BASELINE = ROOT / "tests" / "golden" / "lx106.json"
DOCUMENT = ROOT / "docs" / "HARDWARE.md"
BEGIN, END = "<!-- tools/xtensa.py --update writes from here -->", "<!-- to here -->"
PARTS = {
    "tokenizer": "lib/tinyllm/tokenizer",
    "engine": "lib/tinyllm/",
    "board's program": "lib/device/",
    "port": "ports/xtensa_qemu/",
}
"""The program's parts, and what their files' paths begin with."""
SECTIONS = {"text": "code", "rodata": "constants", "data": "initialised", "bss": "zeroed"}
KINDS = {**{name: name for name in SECTIONS}, "literal": "text", "COMMON": "bss"}
LABELS = {
    "token": "**a token**",
    "macs": "multiplications",
    "stack": "stack, the deepest that booting, loading and the tokens reach",
    "fast_engine": "fast: engine",
    "fast_program": "fast: the program's own",
    "fast_free": "fast: free",
    "bulk_engine": "bulk: engine (KV cache, logits)",
    "bulk_tokenizer": "bulk: tokenizer",
    "bulk_weights": "bulk: resident weights",
    "bulk_program": "bulk: the rest",
    "bulk_free": "bulk: free",
}
MEMORY = "4M"
SECONDS = 300

Figures: TypeAlias = dict[str, dict[str, int]]


class Kept(TypedDict):
    """What `BASELINE` holds: bytes by part and kind; of each model what `measure` returns."""

    program: Figures
    models: dict[str, Figures]


def kept() -> Kept:
    """The figures that were last accepted."""
    figures: Kept = json.loads(BASELINE.read_text())
    return figures


def sources() -> list[Path]:
    """Every file of the program."""
    patterns = ("lib/tinyllm/*.c", "lib/device/*.c", "ports/xtensa_qemu/*.[cS]")
    return sorted(path for pattern in patterns for path in FIRMWARE.glob(pattern))


def build(folder: Path, flags: Sequence[str] = ()) -> Path:
    """Compiles the program into a folder and returns the ELF file's path; its map lies beside it.

    A program of the same sources and flags that is there already is returned as it is.

    Raises:
        subprocess.CalledProcessError: The compiler refused; it has said why.
    """
    files = sources()
    digest = hashlib.sha256(" ".join([*FLAGS, *flags]).encode())
    for path in [*files, *sorted(FIRMWARE.glob("**/*.h")), PORT / "sim.ld"]:
        digest.update(path.read_bytes())
    program = folder / f"tllm-lx106-{digest.hexdigest()[:16]}.elf"
    if program.exists() and program.with_suffix(".map").exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    compiler = [f"{PREFIX}gcc", f"--specs={SPECS}", *FLAGS, *flags]
    includes = [f"-I{FIRMWARE / 'lib' / part}" for part in ("tinyllm", "device")]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        subprocess.run([*compiler, *includes, "-c", *map(str, files)], check=True, cwd=scratch)
        linker = [f"-T{PORT / 'sim.ld'}", "-Wl,--gc-sections", "-Wl,-Map=program.map"]
        objects = [f"{path.stem}.o" for path in files]
        subprocess.run([*compiler, *linker, *objects, "-o", "program.elf"], check=True, cwd=scratch)
        (Path(scratch) / "program.map").rename(program.with_suffix(".map"))
        (Path(scratch) / "program.elf").rename(program)
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


def measure(program: Path, package: Path, tokens: int) -> Figures:
    """Runs a model and returns its instructions and bytes.

    Args:
        program: What `build` returned.
        package: Folder that is the card.
        tokens: How many to average over.

    Returns:
        ``instructions``: of a token, by stage and in all (``token``), and its multiplications
        (``macs``). ``bytes``: the deepest stack, and what of the fast and the bulk region is whose.

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
    counts, memory = done.stdout.split("instructions a token\n", 1)[1].split("bytes\n", 1)
    return {"instructions": _rows(counts), "bytes": _rows(memory)}


def _rows(text: str) -> dict[str, int]:
    rows = (line.split() for line in text.splitlines() if line)
    return {name: int(value) for name, value in rows}


def sizes(program: Path) -> Figures:
    """Returns the bytes of each part of a program: code, constants, initialised and zeroed memory.

    The parts are those of `PARTS`, and ``libraries`` for what the compiler and its C library add.
    They are read from the linker's map, gaps between sections left out.
    """
    # A long section name has a line to itself; what --gc-sections dropped is listed before.
    text = program.with_suffix(".map").read_text().split("Linker script and memory map", 1)[1]
    lines = re.sub(r"\n( \.\S+)\n", r"\n\1", text).splitlines()
    found = {part: dict.fromkeys(SECTIONS, 0) for part in [*PARTS, "libraries"]}
    for line in lines:
        row = re.fullmatch(r" \.?(\w+)\S*\s+0x[0-9a-f]+\s+0x([0-9a-f]+) (\S+)", line)
        kind = KINDS.get(row[1]) if row else None
        if row and kind:
            found[_part_of(row[3])][kind] += int(row[2], 16)
    return found


def _part_of(object_file: str) -> str:
    for path in sources():
        if object_file == f"{path.stem}.o":
            relative = path.relative_to(FIRMWARE).as_posix()
            return next(part for part, prefix in PARTS.items() if relative.startswith(prefix))
    return "libraries"


# --- Tables ---------------------------------------------------------------------------------------


def program_table(parts: Figures) -> str:
    """The program's sizes in Markdown, a row a part."""
    total = {kind: sum(sizes[kind] for sizes in parts.values()) for kind in SECTIONS}
    rows: list[list[str | int]] = [
        [part, *(sizes[kind] for kind in SECTIONS)] for part, sizes in parts.items()
    ]
    return _table(
        ["bytes on lx106", *SECTIONS.values()],
        [*rows, ["**all**", *total.values()]],
    )


def models_tables(models: Mapping[str, Figures]) -> str:
    """The models' instructions and bytes in Markdown, a column a model."""
    names = list(models)
    tables = []
    for kind, title in (("instructions", "instructions a token, by stage"), ("bytes", "bytes")):
        labels = next(iter(models.values()))[kind]
        rows: list[list[str | int]] = [
            [LABELS.get(label, label), *(models[name][kind][label] for name in names)]
            for label in labels
        ]
        if kind == "instructions":
            each = (models[name][kind] for name in names)
            rows.append(
                [
                    "**instructions a multiplication**",
                    *(f"{counts['token'] / counts['macs']:.2f}" for counts in each),
                ]
            )
        tables.append(_table([title, *names], rows))
    return "\n\n".join(tables)


def _table(head: Sequence[str], rows: Sequence[Sequence[str | int]]) -> str:
    texts = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), ruler, *texts])


def document(text: str, figures: Kept) -> str:
    """Returns docs/HARDWARE.md with these figures between its marks."""
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    tables = f"{program_table(figures['program'])}\n\n{models_tables(figures['models'])}"
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def _board(words: Sequence[str], store: Path) -> int:
    parser = argparse.ArgumentParser(prog="xtensa.py")
    parser.add_argument("--stdio", action="store_true", required=True)
    parser.add_argument("--card", type=Path, required=True)
    options = parser.parse_args(words)
    line = command(build(store), str(options.card.resolve()))
    os.execvp(line[0], line)  # noqa: S606


def _name_of(package: Path) -> str:
    return str(json.loads((package / "model_config.json").read_text(encoding="utf-8"))["name"])


def _main() -> int:
    store = Path(os.environ.get("TLLM_XTENSA_BUILD") or ROOT / "build" / "xtensa")
    if "--stdio" in sys.argv:
        return _board(sys.argv[1:], store)
    parser = argparse.ArgumentParser(
        description="Instructions a token and bytes of code, constants, stack and memory on lx106."
    )
    parser.add_argument("package", type=Path, nargs="+", help="folders that `host quantize` made")
    parser.add_argument("--tokens", type=int, default=4, help="average over so many")
    parser.add_argument(
        "--update", action="store_true", help=f"write {BASELINE.name} and {DOCUMENT.name}"
    )
    options = parser.parse_args()
    if options.tokens < 1:
        parser.error("there is nothing to average over 0 tokens: give --tokens 1 or more")
    try:
        names = [_name_of(package) for package in options.package]
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"that is no package: {error}; name folders that `host quantize` made")
    program = build(store)
    models = {
        name: measure(program, package.resolve(), options.tokens)
        for name, package in zip(names, options.package, strict=True)
    }
    parts = sizes(program)
    print(f"{program_table(parts)}\n\n{models_tables(models)}")
    if options.update:
        figures = kept()
        figures = {"program": parts, "models": figures["models"] | models}
        BASELINE.write_text(json.dumps(figures, indent=2) + "\n")
        DOCUMENT.write_text(document(DOCUMENT.read_text(), figures))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
