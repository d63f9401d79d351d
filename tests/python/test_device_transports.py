"""The simulated board behind a pseudo-terminal and a TCP port, as programs open them."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import serial
from device_board import SANITIZED, Kind, encode_frame, make_package

STATS = encode_frame(Kind.STATS, 1)


@pytest.fixture(scope="module")
def package(stories260k_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(stories260k_bin, tmp_path_factory.mktemp("transports") / "package")


@pytest.fixture(scope="module")
def sim(build_sim: Callable[..., Path], gcc: str) -> Path:
    return build_sim(gcc, SANITIZED)


@contextmanager
def running(sim: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the first line it prints: where its line is."""
    process = subprocess.Popen(
        [str(sim), *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        yield process, process.stdout.readline().strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0, process.stderr.read()
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def _read_until(port: serial.SerialBase, mark: bytes) -> bytes:
    got = b""
    deadline = time.monotonic() + 60
    while mark not in got:
        assert time.monotonic() < deadline, got
        got += port.read(max(1, port.in_waiting))
    return got


def test_a_terminal_on_the_pty(sim: Path, package: Path) -> None:
    with running(sim, "--card", package, "--pty") as (_, path):
        for _ in range(2):  # closed and opened again, the board goes on
            with serial.Serial(path, 115200, timeout=0.1) as port:
                port.write(b"\r/temp 0\r/n 3\r/reset\rOnce upon a time\r")
                assert b"\r\n, there was" in _read_until(port, b"3 tokens")


def test_frames_over_tcp_from_one_client_after_the_other(sim: Path, package: Path) -> None:
    with running(sim, "--card", package, "--tcp", 0) as (_, url):
        for _ in range(3):
            with serial.serial_for_url(url, timeout=0.1) as port:
                port.write(STATS)
                assert b"read_errors" in _read_until(port, b"}")


def test_once_ends_with_the_first_client(sim: Path, package: Path) -> None:
    with running(sim, "--card", package, "--tcp", 0, "--once") as (process, url):
        with serial.serial_for_url(url, timeout=0.1) as port:
            port.write(STATS)
            _read_until(port, b"}")
        assert process.wait(60) == 0


def test_a_port_in_use_is_said_to_be(sim: Path, package: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        ended = subprocess.run(
            [sim, "--card", package, "--tcp", str(number)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 2
    assert f"Port {number} of 127.0.0.1 cannot be opened" in ended.stderr
    assert ended.stdout == ""


def test_the_line_runs_at_its_rate(sim: Path, package: Path) -> None:
    """No faster than the rate allows; that it is not slower would be the machine's promise."""
    with (
        running(sim, "--card", package, "--pty", "--baud", 9600) as (_, path),
        serial.Serial(path, 9600, timeout=0.1) as port,
    ):
        _read_until(port, b"\n> ")
        start = time.monotonic()
        port.write(STATS)
        got = _read_until(port, b"}")
        assert time.monotonic() - start > (len(STATS) + len(got) - 1) * 10 / 9600 * 0.95


def test_a_board_that_is_told_to_end_does(sim: Path, package: Path) -> None:
    slow = ("--bulk", 560000, "--card-latency-us", 20000)
    with (
        running(sim, "--card", package, "--tcp", 0, *slow) as (_, url),
        serial.serial_for_url(url, timeout=0.1) as port,
    ):
        port.write(b"/n 0\rOnce upon a time\r")
        _read_until(port, b",")
