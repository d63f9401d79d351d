"""The generated header states what the descriptor states, as C reads both."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from checkpoint_files import SMALL, TIED, Shape, save_huggingface

from host import __version__
from host.checkpoint import load_checkpoint
from host.errors import HostError, InputError
from host.headers import HEADER, generate_headers, render_header
from host.package import Package, Scale
from host.package.descriptor import pack_descriptor
from host.quantize import quantize_checkpoint
from tests.conftest import WARNINGS

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINE = REPOSITORY / "firmware" / "lib" / "tinyllm"


def make_package(folder: Path, shape: Shape = SMALL) -> Path:
    checkpoint = load_checkpoint(save_huggingface(folder / "tiny model?", shape))
    return quantize_checkpoint(checkpoint, folder / "package").path


def run_comparison(cc: str, folder: Path, descriptor: Path) -> subprocess.CompletedProcess[str]:
    program = folder / "same_facts"
    sources = [Path(__file__).with_name("same_facts.c"), *sorted(ENGINE.glob("*.c"))]
    subprocess.run(
        [cc, *WARNINGS, f"-I{folder}", f"-I{ENGINE}", *map(str, sources), "-o", str(program)],
        check=True,
    )
    return subprocess.run(
        [str(program), str(descriptor)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("shape", [SMALL, TIED])
def test_every_fact_is_the_descriptors(cc: str, tmp_path: Path, shape: Shape) -> None:
    package = make_package(tmp_path, shape)
    generate_headers(package, tmp_path)
    result = run_comparison(cc, tmp_path, package / "descriptor.bin")
    tensors = 3 + 9 * shape.num_hidden_layers
    assert f"0 differ, {tensors} tensors" in result.stdout
    assert result.returncode == 0


def test_a_fact_that_differs_is_found(gcc: str, tmp_path: Path) -> None:
    package = make_package(tmp_path)
    generate_headers(package, tmp_path)
    model = Package.open(package).model
    tensors = list(model.tensors)
    tensors[4] = dataclasses.replace(tensors[4], scale=Scale(12345678, -30))
    other = dataclasses.replace(model, tensors=tuple(tensors))
    (tmp_path / "other.bin").write_bytes(pack_descriptor(other))
    result = run_comparison(gcc, tmp_path, tmp_path / "other.bin")
    assert "tensors[i].scale.m differs" in result.stdout
    assert result.returncode == 1


@pytest.mark.shared
def test_header_of_the_surrogate(gcc: str, tmp_path: Path, surrogate_dir: Path) -> None:
    package = quantize_checkpoint(load_checkpoint(surrogate_dir), tmp_path / "package").path
    generate_headers(package, tmp_path)
    result = run_comparison(gcc, tmp_path, package / "descriptor.bin")
    assert result.stdout.startswith("0 differ, 12 tensors"), result.stdout


def test_first_line_and_integers_alone(tmp_path: Path) -> None:
    package = make_package(tmp_path)
    header = generate_headers(package, tmp_path / "new" / "folder")
    assert header == tmp_path / "new" / "folder" / HEADER
    text = header.read_bytes().decode("ascii")
    first, _, rest = text.partition("\n")
    fingerprint = Package.open(package).model.fingerprint.hex()
    assert f"host {__version__}" in first
    assert fingerprint in first
    code = re.sub(r'/\*.*?\*/|"[^"]*"', "", rest)
    assert not re.search(r"\d\.|\.\d|\bfloat\b|\bdouble\b", code)
    assert str(tmp_path) not in text


def test_regenerating_gives_the_same_bytes_and_touches_nothing(tmp_path: Path) -> None:
    package = make_package(tmp_path)
    header = generate_headers(package, tmp_path)
    before = header.stat()
    assert generate_headers(package, tmp_path) == header
    assert header.stat().st_mtime_ns == before.st_mtime_ns
    assert header.stat().st_ino == before.st_ino
    data = header.read_bytes()
    header.write_text("something else")
    generate_headers(package, tmp_path)
    assert header.read_bytes() == data
    moved = shutil.copytree(package, tmp_path / "moved")
    assert generate_headers(moved, tmp_path / "b").read_bytes() == data


def test_any_name_is_a_valid_string(gcc: str, tmp_path: Path) -> None:
    package = make_package(tmp_path)
    model = dataclasses.replace(Package.open(package).model, name='a"\\??/é1%s')
    (tmp_path / HEADER).write_text(render_header(model), encoding="ascii")
    (tmp_path / "other.bin").write_bytes(pack_descriptor(model))
    result = run_comparison(gcc, tmp_path, tmp_path / "other.bin")
    assert result.stdout.startswith("0 differ"), result.stdout


def test_damaged_package_gives_no_header(tmp_path: Path) -> None:
    package = make_package(tmp_path)
    weights = bytearray((package / "lm_head.bin").read_bytes())
    weights[100] ^= 4
    (package / "lm_head.bin").write_bytes(weights)
    with pytest.raises(InputError, match=r"lm_head\.bin is damaged in chunk 0"):
        generate_headers(package, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_header_that_cannot_be_written(tmp_path: Path) -> None:
    package = make_package(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(HostError, match="is no folder"):
        generate_headers(package, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
