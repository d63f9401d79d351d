"""The doctor in front of ports and boards that are ill: real pseudo-terminals, exit codes, JSON."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import rom_loader
from rom_loader import PtyBoard

from host.board import doctor
from host.errors import BoardError
from host.link.client import Device
from host.link.refusal import refusal_in
from host.link.transports import open_port
from tests.conftest import FIRMWARE, REPOSITORY

CRASH = b"Guru Meditation Error: Core  0 panic'ed (LoadProhibited). Exception was unhandled.\r\n"
WATCHDOG = b"rst:0x8 (TG1WDT_SYS_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n"
GPIO12 = b"flash read err, 1000\r\nets_main.c 371 \r\n"
OTHER = b"MicroPython v1.24 on 2024-10-25; ESP32 module\r\n>>> "
REVISION = b"E (38) boot_comm: Image requires chip rev >= v3.0, but chip is v1.0\r\n"


NO_PSRAM = (
    "No PSRAM was found, and the model needs it: use a board with 4 MB of PSRAM, or build for "
    "PSRAM at 40 MHz if this one has it (docs/HARDWARE.md)."
)


@pytest.fixture(autouse=True)
def _no_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ports", list)
    monkeypatch.setattr(doctor, "_BOOT_S", 1.0)
    monkeypatch.setattr(doctor, "_RATE_S", 1.0)


@pytest.mark.parametrize(
    ("says", "wanted"),
    [
        (rom_loader.BROWN_OUT, "supply is too weak: .*Give it 5 V and 1 A"),
        (rom_loader.EMPTY_FLASH, "no whole program in its flash.*host flash"),
        (GPIO12, "cannot read its flash.*GPIO12"),
        (CRASH, "program crashes.*host flash"),
        (WATCHDOG, r"again and again, the last time for TG1WDT_SYS_RESET"),
        (REVISION, "newer chips.*-e esp32cam"),
        (OTHER, "Another program than this kit's.*`>>>"),
    ],
)
def test_what_a_board_says_is_explained(says: bytes, wanted: str) -> None:
    with PtyBoard(io0=False, says=says, loops=True) as board:
        report = doctor.examine(board.port, 115200)
    (problem,) = report.problems
    assert re.search(wanted, problem), problem
    assert report.says
    assert report.board == {}


def test_a_board_that_cannot_run_the_program_says_why_itself() -> None:
    with PtyBoard(io0=False, says=f"{NO_PSRAM}\r\n".encode(), loops=True) as board:
        assert doctor.examine(board.port, 115200).problems == [NO_PSRAM]
        with pytest.raises(BoardError) as caught:
            Device(open_port(board.port))
    assert str(caught.value) == NO_PSRAM


def test_each_sentence_with_which_the_program_refuses_is_known() -> None:
    source = (FIRMWARE / "src" / "main.c").read_text(encoding="ascii")
    texts = re.findall(r'(?:"[^"]*"\s*)+', source)
    said = ["".join(re.findall(r'"([^"]*)"', text)).replace("%lu", "4096") for text in texts]
    refusals = [text.removesuffix("\\r\\n") for text in said if text.endswith(".\\r\\n")]
    assert NO_PSRAM in refusals
    for sentence in refusals:
        found = refusal_in(f"{sentence[-9:]}\r\n{sentence}\r\n".encode())
        assert str(found) == sentence
        assert refusal_in(sentence.encode()) is None  # the rest is still to come


def test_a_board_in_its_boot_loader_is_recognised() -> None:
    with PtyBoard() as board:
        report = doctor.examine(board.port, 115200)
    assert report.problems == [
        "The board is in its boot loader. Take the jumper off IO0 and press RST."
    ]


def test_the_rate_of_a_board_that_cannot_be_read_is_found() -> None:
    with PtyBoard(io0=False, says=OTHER, loops=True, rate=74880) as board:
        report = doctor.examine(board.port, 115200)
    (problem,) = report.problems
    assert problem.startswith("The board speaks at 74880 baud, not 115200. Another program")
    assert "MicroPython" in report.says[0]


def test_noise_at_every_rate_is_a_matter_of_wires() -> None:
    noise = bytes(range(128, 256))
    with PtyBoard(io0=False, says=noise, loops=True) as board:
        report = doctor.examine(board.port, 115200)
    (problem,) = report.problems
    assert problem.startswith("What the board sends cannot be read at 115200 baud. Check GND")


def test_a_silent_port_says_what_to_check() -> None:
    with PtyBoard(io0=False, says=b"") as board:
        report = doctor.examine(board.port, 115200)
    (problem,) = report.problems
    assert "Nothing answers on this port" in problem


# --- ports that do not open -----------------------------------------------------------------------


AS_NOBODY = """
import contextlib, io, os, sys
from host.cli import app, main

with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    app(["doctor", "-p", "/dev/none", "--json"])  # imports all that it takes
if os.geteuid() == 0:  # root may open any port
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
main()
"""


def host_doctor(port: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, "doctor", "-p", port, "--json"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("way", ["absent", "locked", "exclusive", "not permitted"])
def test_why_a_port_does_not_open_and_what_mends_it(way: str) -> None:
    master, slave = pty.openpty()
    port = "/dev/ttyUSB77" if way == "absent" else os.ttyname(slave)
    if way != "absent":
        Path(port).chmod(0 if way == "not permitted" else 0o666)
    if way == "locked":
        fcntl.flock(slave, fcntl.LOCK_EX)
    elif way == "exclusive":
        fcntl.ioctl(slave, termios.TIOCEXCL)
    try:
        code, out, err = host_doctor(port)
    finally:
        os.close(master)
        os.close(slave)
    assert (code, err) == (1, "")
    (problem,) = json.loads(out)["problems"]
    expected = {
        "absent": ("does not exist. ", "No serial port is there: plug the adapter in"),
        "locked": ("is in use by another program. ", f"`fuser -v {port}` names it"),
        "exclusive": ("is in use by another program. ", f"`fuser -v {port}` names it"),
        "not permitted": ("is not permitted to you. ", "Run `sudo usermod -aG "),
    }[way]
    assert all(part in problem for part in expected), problem
