"""Makes firmware/lib/tinyllm/tables.c, the tables of docs/NUMERICS.md section 2 and of CRC-32.

Run it with no argument to write the file, with ``--check`` to compare (exit 1 when they differ).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from decimal import Decimal, getcontext
from pathlib import Path

TABLES_C = Path(__file__).resolve().parent.parent / "firmware" / "lib" / "tinyllm" / "tables.c"
DIGITS = 60
ONE_Q30 = 1 << 30
CRC_POLYNOMIAL = 0xEDB88320  # IEEE 802.3, bit-reflected


def _nearest(value: Decimal) -> int:
    nearest = int((value + Decimal("0.5")).to_integral_value(rounding="ROUND_FLOOR"))
    if abs(abs(value - nearest) - Decimal("0.5")) < Decimal(10) ** (10 - DIGITS):
        raise ArithmeticError(f"{value} is too close to a tie for {DIGITS} digits")
    return nearest


def _arctan_inverse(n: int) -> Decimal:
    """arctan(1/n) by its Taylor series."""
    total, power, k = Decimal(0), Decimal(1) / n, 0
    while abs(power) > Decimal(10) ** (-DIGITS - 5):
        total += power / (2 * k + 1)
        power /= -n * n
        k += 1
    return total


def _sin(x: Decimal) -> Decimal:
    """The sine of 0 <= x <= 2 by its Taylor series."""
    total, term, k = Decimal(0), x, 1
    while abs(term) > Decimal(10) ** (-DIGITS - 5):
        total += term
        term *= -x * x / ((k + 1) * (k + 2))
        k += 2
    return total


def sine_table() -> list[int]:
    """2^30 sin(pi/2 * i / 512) for i = 0..512, to the nearest integer."""
    getcontext().prec = DIGITS + 10
    pi = 16 * _arctan_inverse(5) - 4 * _arctan_inverse(239)  # Machin, 1706
    inner = [_nearest(ONE_Q30 * _sin(pi / 2 * i / 512)) for i in range(1, 512)]
    return [0, *inner, ONE_Q30]


def exp2n_table() -> list[int]:
    """2^30 * 2^(-i/256) for i = 0..256, to the nearest integer."""
    getcontext().prec = DIGITS + 10
    ln2 = Decimal(2).ln()
    inner = [_nearest(ONE_Q30 * (-ln2 * i / 256).exp()) for i in range(1, 256)]
    return [ONE_Q30, *inner, ONE_Q30 // 2]


def crc_tables() -> list[list[int]]:
    """Four tables: the CRC of one byte, followed by 0, 1, 2 and 3 zero bytes."""
    first = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (CRC_POLYNOMIAL if crc & 1 else 0)
        first.append(crc)
    tables = [first]
    for _ in range(3):
        tables.append([(c >> 8) ^ first[c & 0xFF] for c in tables[-1]])
    return tables


def _rows(values: Iterable[str], per_row: int, indent: str) -> str:
    items = list(values)
    rows = [", ".join(items[i : i + per_row]) for i in range(0, len(items), per_row)]
    return "".join(f"{indent}{row},\n" for row in rows)


def render() -> str:
    """The text of tables.c."""
    crc = "".join(
        f"    {{\n{_rows((f'0x{c:08X}u' for c in table), 8, ' ' * 8)}    }},\n"
        for table in crc_tables()
    )
    return (
        "/* Made by tools/make_tables.py; do not edit. */\n"
        "/* clang-format off */\n"
        '#include "tables.h"\n\n'
        "const int32_t tllm_sin_table[513] = {\n"
        f"{_rows(map(str, sine_table()), 8, '    ')}}};\n\n"
        "const int32_t tllm_exp2n_table[257] = {\n"
        f"{_rows(map(str, exp2n_table()), 8, '    ')}}};\n\n"
        "const uint32_t tllm_crc32_table[4][256] = {\n"
        f"{crc}}};\n"
    )


def _write(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=path.name, delete=False, encoding="ascii"
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).rename(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks tables.c; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make firmware/lib/tinyllm/tables.c.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    text = render()
    if parser.parse_args(argv).check:
        if not TABLES_C.is_file() or TABLES_C.read_text(encoding="ascii") != text:
            print(f"{TABLES_C.name} is not what tools/make_tables.py makes; run it.")
            return 1
        return 0
    _write(TABLES_C, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
