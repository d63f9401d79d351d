"""Ports: how each is opened, and what is said when it cannot be, on each operating system."""

from __future__ import annotations

import errno
import os
import pty
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import serial
from serial.tools import list_ports
from serial.tools.list_ports_common import ListPortInfo

from host.errors import LinkError, ToolError
from host.link import transports
from host.link.transports import DEFAULT_BAUD, explain_port_error, open_port, ports


@pytest.mark.parametrize(
    ("number", "platform", "wanted"),
    [
        (errno.EACCES, "linux", "sudo usermod -aG dialout $USER"),
        (errno.EACCES, "darwin", "sudo chmod 666 /dev/x"),
        (errno.EACCES, "win32", "administrator"),
        (errno.EBUSY, "linux", "fuser -v /dev/x"),
        (errno.EAGAIN, "linux", "fuser -v /dev/x"),
        (errno.EBUSY, "darwin", "lsof /dev/x"),
        (errno.EBUSY, "win32", "serial monitor"),
        (errno.ENOENT, "linux", "does not exist"),
        (errno.ENODEV, "linux", "does not exist"),
        (errno.ENOTTY, "linux", "not a serial port"),
        (errno.EIO, "linux", "/dev/x"),
    ],
)
def test_each_failure_names_what_mends_it(number: int, platform: str, wanted: str) -> None:
    said = explain_port_error(OSError(number, os.strerror(number)), "/dev/x", platform)
    assert wanted in str(said)
    assert said.exit_code == 2


def test_the_group_that_owns_the_port_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grp = pytest.importorskip("grp")
    port = tmp_path / "ttyX"
    port.touch()
    fake = grp.struct_group(("uucp", "x", 14, []))
    monkeypatch.setattr(grp, "getgrgid", lambda _: fake)
    said = explain_port_error(PermissionError(errno.EACCES, "no"), str(port), "linux")
    assert "usermod -aG uucp" in str(said)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("could not open port 'COM7': FileNotFoundError(2, 'x')", "does not exist"),
        ("could not open port 'COM7': PermissionError(13, 'Access is denied.')", "in use"),
        ("Could not configure port: (25, 'Inappropriate ioctl')", "not a serial port"),
    ],
)
def test_errors_that_pyserial_gives_as_text_alone(text: str, wanted: str) -> None:
    assert wanted in str(explain_port_error(serial.SerialException(text), "COM7", "win32"))


def test_usb_adapters_come_first_and_ports_of_nothing_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usb, board, nothing = (ListPortInfo(f"/dev/{name}") for name in ("ttyUSB0", "ttyS0", "ttyS9"))
    usb.vid, usb.hwid, usb.description = 0x10C4, "USB", "CP2102"
    board.hwid = "PNP0501"
    monkeypatch.setattr(list_ports, "comports", lambda: [nothing, board, usb])
    assert [name for name, _ in ports()] == ["/dev/ttyUSB0", "/dev/ttyS0"]
    said = explain_port_error(OSError(errno.ENOENT, "x"), "/dev/ttyUSB1", "linux")
    assert "These ports are there: /dev/ttyUSB0, /dev/ttyS0" in str(said)


def test_a_pseudo_terminal_carries_bytes_and_notices_the_end() -> None:
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    os.close(slave)
    port = open_port(name)
    assert port.baud == DEFAULT_BAUD
    port.write(b"\0ping")
    assert os.read(master, 100) == b"\0ping"
    os.write(master, b"\0pong\r\n")
    assert port.read(5.0) == b"\0pong\r\n"
    assert port.read(0.0) == b""
    port.set_baud(921600)
    assert port.baud == 921600
    os.close(master)
    with pytest.raises(LinkError, match="is gone"):
        port.read(1.0)
    with pytest.raises(LinkError, match="is gone"):
        port.set_baud(115200)
    port.close()
    port.close()


def test_a_socket_carries_bytes_and_notices_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []
        thread = threading.Thread(target=lambda: accepted.append(server.accept()[0]))
        thread.start()
        port = open_port(f"socket://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
        with accepted[0] as there:
            assert port.baud is None
            port.write(b"abc")
            assert there.recv(10) == b"abc"
            there.sendall(b"def")
            assert port.read(5.0) == b"def"
            assert port.read(0.0) == b""
        with pytest.raises(LinkError, match="closed the connection"):
            port.read(5.0)
        port.close()


@pytest.mark.parametrize(
    "url",
    [
        *("socket://", "socket://host", "socket://h:70000", "socket://[::1", "socket://[x]:1"),
        *(f"socket://{'a' * 70}:1", "socket://.x:1", "foo://x"),
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(LinkError, match=r"not an address|not a port|no computer of that name"):
        open_port(url)


def test_a_rate_beyond_any_number_is_none() -> None:
    master, slave = pty.openpty()
    with pytest.raises(LinkError, match="not a port"):
        open_port(os.ttyname(slave), 1 << 40)
    os.close(master)
    os.close(slave)


def test_a_simulator_that_ends_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sim"
    program.write_text("#!/bin/sh\necho 'first' >&2\necho 'The memory is too small.' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("TLLM_SIM", str(program))
    port = open_port("sim", sim_dir=tmp_path)
    with pytest.raises(LinkError, match=r"The memory is too small\."):
        port.read(10.0)
    port.close()


HOLD = """
import sys
from pathlib import Path
from host.link.transports import open_port

port = open_port("sim", sim_dir=Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_simulated_board_is_one_commands_until_that_ends_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "sim"
    program.write_text("#!/bin/sh\nexec cat\n")
    program.chmod(0o755)
    monkeypatch.setenv("TLLM_SIM", str(program))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LinkError, match=r"card is in use by another command.*--sim-dir") as no:
            open_port("sim", sim_dir=tmp_path)
        assert no.value.exit_code == 2
        open_port("sim", sim_dir=tmp_path / "another").close()
        other.kill()
        other.wait()
    for _ in range(2):  # one after the other, as flash and bench do
        open_port("sim", sim_dir=tmp_path).close()


def test_a_simulator_that_is_not_built_says_how_to_build_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TLLM_SIM", raising=False)
    monkeypatch.setenv("TLLM_NATIVE_DIR", str(tmp_path))
    with pytest.raises(ToolError, match="pip install"):
        open_port("sim", sim_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_state_folder_is_the_users_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOST_STATE_DIR", raising=False)
    assert transports.state_dir().name == "esp32-tinyllm"
    monkeypatch.setenv("HOST_STATE_DIR", "/x")
    assert transports.card_of() == Path("/x/sim/card")
    assert transports.card_of(Path("/y")) == Path("/y/card")
