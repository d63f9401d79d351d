"""The C engine, built in every way, against the numpy reference; and that a wrong bit is found.

Issue and docs/NUMERICS.md ask for equality whatever the compiler, the optimisation and the
placement of weights; each build here runs 512 positions of each model with sanitizers on.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from host.board.verify import Verified, verify
from host.errors import CheckFailed
from host.link.client import Device
from host.link.transports import open_port
from host.package import Package
from tests.conftest import FIRMWARE, Build, Quantized, insert_card

SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
POSITIONS = 512


def run_verify(
    sim: Path, card: Path, package: Path, state: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> Verified:
    """`host verify`'s body, on a simulator and a card of one's choice."""
    insert_card(state, card)
    monkeypatch.setenv("TLLM_SIM", str(sim))
    with Device(open_port("sim", sim_dir=state)) as device:
        return verify(device, Package.open(package), positions=n)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("model", ["stories260K", "tiny-llm-surrogate"])
@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_equal_with_every_compiler(
    cc: str,
    level: str,
    model: str,
    build_sim: Build,
    quantized: Quantized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = quantized(model)
    sim = build_sim(cc, (level, *SANITIZERS))
    done = run_verify(sim, package, package, tmp_path / "state", monkeypatch, POSITIONS)
    assert done.positions == POSITIONS
    assert done.stages >= POSITIONS * 14


def flip_unnoticed(package: Path, name: str, offset: int, copy: Path) -> None:
    """Copies a package with one wrong bit that every checksum on the card vouches for."""
    shutil.copytree(package, copy)
    data = bytearray((copy / name).read_bytes())
    data[offset] ^= 0x40
    (copy / name).write_bytes(data)
    path = copy / "descriptor.bin"
    facts = Package.open(package).model
    index = next(i for i, file in enumerate(facts.files) if file.name == name)
    descriptor = bytearray(path.read_bytes())
    struct.pack_into("<I", descriptor, 160 + 48 * index + 40, zlib.crc32(data))
    chunk = offset // 4096
    crcs = len(descriptor) - 4 - 4 * len(facts.crcs)
    at = crcs + 4 * (facts.files[index].first_crc + chunk)
    struct.pack_into("<I", descriptor, at, zlib.crc32(data[chunk * 4096 : chunk * 4096 + 4096]))
    struct.pack_into("<I", descriptor, len(descriptor) - 4, zlib.crc32(descriptor[:-4]))
    path.write_bytes(descriptor)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("layer02_gate_proj.bin", "stage gate, layer 2, position 0"),
        ("layer04_v_proj.bin", "stage v, layer 4, position 0"),
        ("final_norm.bin", "stage final_norm, position "),
    ],
)
def test_one_wrong_bit_of_a_weight_is_found(
    name: str,
    place: str,
    gcc: str,
    build_sim: Build,
    quantized: Quantized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = quantized("stories260K")
    flip_unnoticed(package, name, 77, tmp_path / "card")
    sim = build_sim(gcc, ("-O3",))
    with pytest.raises(CheckFailed) as failed:
        run_verify(sim, tmp_path / "card", package, tmp_path / "state", monkeypatch, 8)
    assert place in str(failed.value)
    assert "values differ, by up to" in str(failed.value)


def build_wrong(gcc: str, folder: Path, file: str, right: str, wrong: str) -> Path:
    """Builds the simulated board from sources in which one line is wrong."""
    sources = folder / "firmware"
    shutil.copytree(FIRMWARE, sources)
    path = sources / "lib" / "tinyllm" / file
    text = path.read_text()
    assert text.count(right) >= 1, f"{file} no longer has {right!r}"
    path.write_text(text.replace(right, wrong, 1))
    sim = folder / "tllm-sim"
    files = [
        p
        for part in ("lib/tinyllm", "lib/device", "ports/posix")
        for p in sorted((sources / part).glob("*.c"))
    ]
    includes = [f"-I{sources / 'lib' / part}" for part in ("tinyllm", "device")]
    command = [gcc, "-std=c11", "-O2", "-pthread", *includes, *map(str, files), "-o", str(sim)]
    subprocess.run(command, check=True)
    return sim


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "right", "wrong", "place"),
    [
        ("kernels.c", "sum += w[j] * x[j];\n    return sum;", "sum += w[j] * x[j];\n    return "
         "sum + (n == 172);", "stage ffn_out, layer 0, position "),
        ("tables.c", "1073741824, 107", "1073745920, 107", "stage attn, layer 0, position "),
    ],
    ids=["kernel", "table"],
)  # fmt: skip
def test_one_wrong_line_of_the_engine_is_found(
    file: str,
    right: str,
    wrong: str,
    place: str,
    gcc: str,
    quantized: Quantized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = quantized("stories260K")
    sim = build_wrong(gcc, tmp_path, file, right, wrong)
    with pytest.raises(CheckFailed) as failed:
        run_verify(sim, package, package, tmp_path / "state", monkeypatch, 64)
    assert place in str(failed.value)
