"""Frames on the fakes: the host's own client verifies, uploads and resumes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from host.board.contents import Contents, parse_slot
from host.board.upload import upload
from host.errors import HostError
from tests.espidf.conftest import STREAMING, Run, connected, texts_of

SECOND = 1_000_000


@pytest.mark.parametrize("psram", [STREAMING, 4 << 20])
def test_host_verifies_the_board(
    script: Callable[..., Path],
    package: Path,
    psram: int,
    tmp_path: Path,
    run_host: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    script(PSRAM=psram)
    (tmp_path / "card").symlink_to(package, target_is_directory=True)
    done = run_host(
        *("verify", str(package), "-p", "sim", "--sim-dir", str(tmp_path), "--positions", "8")
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("chip", "named"),
    [("ESP32", "ESP32 v3.1, 2 cores, 240 MHz"), ("ESP32S3", "ESP32-S3 v0.2, 2 cores, 240 MHz")],
)
def test_the_doctor_learns_chip_and_memory(
    script: Callable[..., Path], in_slot: Path, tmp_path: Path, chip: str, named: str
) -> None:
    script(chip)
    with connected(tmp_path, in_slot) as device:
        info = device.info()
    assert info["chip"] == named
    assert (info["psram_bytes"], info["psram_mhz"]) == (4 << 20, 80)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty card"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "faults",
    [
        {},
        {"CSIZE": 1, "PIECE": 1},
        {"WRITE_US": SECOND // 2},  # longer than a read may take to begin
        {"WRITE_US": 4 * SECOND, "GETFREE_US": 30 * SECOND},  # below the watchdog's time, above
    ],
    ids=["card", "card in pieces", "slow card", "very slow card"],
)
def test_an_upload_is_answered_from_after_a_restart(
    script: Callable[..., Path],
    board: Run,
    package: Path,
    empty: Path,
    tmp_path: Path,
    answer: str,
    run_host: Callable[..., subprocess.CompletedProcess[str]],
    faults: dict[str, int],
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    notes = script(KEEP=kept, **faults)
    (tmp_path / "card").symlink_to(empty, target_is_directory=True)
    done = run_host("upload", str(package), "-p", "sim", "--sim-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr + notes.read_text()
    contents = Contents.of(package)
    for file in contents.files:
        written = kept / "tllm" / contents.folder / file.name
        assert written.read_bytes() == file.path.read_bytes(), file.name
    assert parse_slot((kept / "tllm" / "slot0").read_bytes()) == (1, contents.fingerprint)
    assert texts_of(board(CARD=kept).stdout) == [answer]


def test_an_upload_to_a_full_card_says_so_and_the_old_model_answers(
    script: Callable[..., Path], package: Path, in_slot: Path, tmp_path: Path
) -> None:
    script(CLUSTERS=1000)  # 2,048,000 bytes
    other = Contents.of(package)
    with connected(tmp_path, in_slot) as device:
        with pytest.raises(HostError, match=r"full|free"):
            device.open("00000000", "big.bin", 2_000_000, 0, 0)
        assert device.info()["fingerprint"] == other.fingerprint


def test_an_upload_is_taken_up_after_a_pulled_card(
    script: Callable[..., Path], board: Run, package: Path, empty: Path, tmp_path: Path, answer: str
) -> None:
    """The card goes while a file is read back, and comes again two mounts later."""
    kept = tmp_path / "kept"
    kept.mkdir()
    notes = script(KEEP=kept, PULL_AT=40, BACK_AT=7)
    contents = Contents.of(package)
    with connected(tmp_path, empty) as device:
        with pytest.raises(HostError, match="card"):
            upload(device, contents)
        while device.info()["state"] == "no-card":
            pass
        upload(device, contents)
    assert re.search(r"mount 1-bit 20000 kHz: 0\n", notes.read_text())
    assert texts_of(board(CARD=kept).stdout) == [answer]
