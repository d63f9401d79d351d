"""Frames on the fakes: the host's own client verifies, uploads and resumes."""

from __future__ import annotations

import re
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from host.board.contents import Contents, parse_slot
from host.board.upload import upload
from host.errors import HostError
from host.link.client import Refused
from host.link.frames import Frame, encode
from tests.conftest import Quantized, insert_card
from tests.espidf.conftest import STREAMING, Run, connected, stops_of, texts_of

SECOND = 1_000_000
STOP = encode(Frame(0x05, 250, b"")).hex()
CAPTURE, CANCELLED = 0x14, -9


@pytest.mark.parametrize("psram", [STREAMING, 4 << 20])
def test_host_verifies_the_board(
    script: Callable[..., Path],
    package: Path,
    psram: int,
    tmp_path: Path,
    run_host: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    script(PSRAM=psram)
    insert_card(tmp_path, package)
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


def test_a_card_whose_name_is_no_text_is_told(
    script: Callable[..., Path], in_slot: Path, tmp_path: Path
) -> None:
    script(CID="ff1b22c37e")
    with connected(tmp_path, in_slot) as device:
        assert device.info()["card"] == 'SDHC 15.9 GB ??"?~'


def test_a_foreign_name_that_is_too_long_hides_no_others(
    script: Callable[..., Path], in_slot: Path, tmp_path: Path
) -> None:
    card = tmp_path / "with foreign files"
    shutil.copytree(in_slot, card)
    root = card / "tllm"
    (root / ("0" * 40)).write_bytes(b"foreign")
    files = {
        (path.relative_to(root).as_posix(), path) for path in root.rglob("*") if path.is_file()
    }
    (root / ("0" * 48)).write_bytes(b"foreign")
    (root / ("1" * 55)).mkdir()
    script()
    with connected(tmp_path, card) as device:
        assert set(device.files()) == {(name, path.stat().st_size) for name, path in files}


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
        {"WRITE_FAIL": 20},
        {"WRITE_KHZ": 20000},
        {"WRITE_US": SECOND // 2},  # longer than a read may take to begin
        {"WRITE_US": 4 * SECOND, "GETFREE_US": 30 * SECOND},  # below the watchdog's time, above
    ],
    ids=["card", "in pieces", "a write fails", "writes at 20 MHz alone", "slow", "very slow"],
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
    insert_card(tmp_path, empty)
    done = run_host("upload", str(package), "-p", "sim", "--sim-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr + notes.read_text()
    contents = Contents.of(package)
    for file in contents.files:
        written = kept / "tllm" / contents.folder / file.name
        assert written.read_bytes() == file.path.read_bytes(), file.name
    assert parse_slot((kept / "tllm" / "slot0").read_bytes()) == (1, contents.fingerprint)
    assert texts_of(board(CARD=kept).stdout) == [answer]
    slower = [] if "WRITE_KHZ" not in faults else ["20000"]
    assert re.findall(r"mount 4-bit (\d+) kHz: 0\n", notes.read_text()) == ["40000", *slower]


def test_an_upload_whose_writes_all_fail_ends_with_a_sentence(
    script: Callable[..., Path], package: Path, empty: Path, tmp_path: Path
) -> None:
    script(WRITE_FAIL=20, WRITE_FAILS=1_000_000)
    with connected(tmp_path, empty) as device:
        with pytest.raises(HostError, match="The card failed: check how it sits"):
            upload(device, Contents.of(package))
        assert device.info()["card_mode"] == "4-bit 20 MHz"


def test_all_that_an_upload_sends_ahead_has_room(
    script: Callable[..., Path], package: Path, empty: Path, tmp_path: Path
) -> None:
    """As where the card takes its time: the board looks once the host has sent most of a window."""
    notes = script(AHEAD=30_000)
    with connected(tmp_path, empty) as device:
        upload(device, Contents.of(package))
    waited = re.search(r"line: at most (\d+) bytes waited, (\d+) were lost", notes.read_text())
    assert waited is not None
    assert int(waited[1]) > 7 * 4096
    assert int(waited[2]) == 0


def test_a_read_that_comes_short_is_made_again(
    script: Callable[..., Path], in_slot: Path, tmp_path: Path
) -> None:
    """Of a file in too many pieces, read through FatFs; nothing but its length tells."""
    (in_slot / "tllm" / "big").write_bytes(bytes(range(256)) * 16 * 60)
    notes = script(PIECE=1, CSIZE=1, SHORT_AT=112)  # the 30th chunk: loading takes 82 reads
    with connected(tmp_path, in_slot) as device:
        assert set(device.sums("big", 60)) == {zlib.crc32(bytes(range(256)) * 16)}
    noted = notes.read_text()
    assert "read 112 came short" in noted
    assert "; 143 reads" in noted


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


# --- A large vocabulary ---------------------------------------------------------------------------

LOGITS = 13


@pytest.fixture
def tiny_llm(quantized: Quantized) -> Path:
    return quantized("tiny-llm-surrogate")


def test_logits_sent_slowly_starve_no_watchdog(
    script: Callable[..., Path], tiny_llm: Path, tmp_path: Path
) -> None:
    """128 KB take 11 s at 115,200 baud; a frame of them 0.4 s."""
    notes = script()
    with connected(tmp_path, tiny_llm) as device:
        captured = device.capture(LOGITS, 0, 1, 0)
    assert len(captured.mantissas) == 32000
    longest = re.search(r"watchdog fed at least each (\d+) us", notes.read_text())
    assert longest is not None
    assert 0.3 * SECOND < int(longest[1]) < 0.5 * SECOND


def test_a_capture_is_stopped(script: Callable[..., Path], tiny_llm: Path, tmp_path: Path) -> None:
    notes = script(STOP=STOP, STOP_TYPE=CAPTURE, STOP_STEP_US=5 * SECOND, STOPS=1)
    with connected(tmp_path, tiny_llm) as device:
        with pytest.raises(Refused) as refused:
            device.capture(LOGITS, 0, 1, 0)
        assert refused.value.status == CANCELLED
        assert device.stats()["n_past"] == 0
    assert 0 < max(stops_of(notes.read_text())) < SECOND


def test_a_card_is_read_in_32_kb(
    script: Callable[..., Path], tiny_llm: Path, tmp_path: Path
) -> None:
    notes = script(CSIZE=64)
    with connected(tmp_path, tiny_llm) as device:
        device.sampling(0, 0, 65536, 65536, 1)
        device.generate("Once upon a time", 4, lambda _: None)
        streamed = device.stats()["read_bytes"]
    sectors, reads = map(
        int, re.findall(r"sectors: (\d+) raw, .*; (\d+) reads", notes.read_text())[0]
    )
    assert streamed > 4 * 4_000_000
    assert sectors * 512 / reads > 0.9 * 32768
