"""Ways to reach a board: a serial port, a pseudo-terminal, a TCP socket, a simulated board.

A transport moves bytes and knows nothing of frames. What goes wrong while one is opened or used
comes out as a `LinkError` that says what to do about it on this operating system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from host.errors import HostError, LinkError, explain_os_error

DEFAULT_BAUD = 115200
SIMULATED = "sim"
_READ_BYTES = 1 << 16
_SERIAL_POLL_S = 0.02


class Transport(Protocol):
    """A line to a board: bytes in order, some of them perhaps damaged or lost."""

    @property
    def baud(self) -> int | None:
        """Bits a second of a serial line; None where there is no such thing."""

    def now(self) -> float:
        """Seconds from any start: the clock that `read`'s timeout is measured with."""

    def read(self, timeout: float) -> bytes:
        """Returns what has arrived, waiting at most `timeout` seconds for the first byte."""

    def write(self, data: bytes) -> None:
        """Sends all of the bytes, or raises `LinkError`."""

    def set_baud(self, baud: int) -> None:
        """Changes the rate once what was written has left; nothing where there is none."""

    def close(self) -> None:
        """Lets go of the line. May be called again."""


def open_port(
    port: str, baud: int = DEFAULT_BAUD, *, sim_dir: Path | None = None, sim: Sequence[str] = ()
) -> Transport:
    """Opens the line to a board.

    Args:
        port: ``sim`` for the simulated board, a device such as ``/dev/ttyUSB0``, the path of a
            pseudo-terminal, ``socket://HOST:PORT``, or another URL that pyserial knows.
        baud: Bits a second of a serial line.
        sim_dir: State folder of the simulated board; the user's where omitted.
        sim: More options of the simulated board's program.

    Raises:
        LinkError: The port is absent, busy, not permitted or refuses.
        ToolError: The simulated board has not been built.
    """
    if port == SIMULATED:
        return _SimTransport(card_of(sim_dir), sim)
    if port.startswith("socket://"):
        return _SocketTransport(port)
    return _SerialTransport(port, baud)


def state_dir() -> Path:
    """Folder in which the host tool keeps what outlives a command."""
    from platformdirs import user_state_path

    return Path(os.environ.get("HOST_STATE_DIR") or user_state_path("esp32-tinyllm"))


def card_of(sim_dir: Path | None = None) -> Path:
    """Folder that is the simulated board's card; it may not be there yet."""
    return (sim_dir or state_dir() / "sim") / "card"


@contextlib.contextmanager
def taken(card: Path) -> Iterator[None]:
    """Makes the folder that is a simulated board's card, and keeps other commands from it.

    The lock is this process's: it ends with it in any way.

    Raises:
        LinkError: Another command has it.
        HostError: The folder cannot be made.
    """
    import fcntl

    try:
        card.mkdir(parents=True, exist_ok=True)
        handle = os.open(card, os.O_RDONLY)
    except OSError as exc:
        raise explain_os_error(exc, card) from exc
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LinkError(
                f"The simulated board with the card {card} is in use by another command",
                "End that one first, or choose another folder with --sim-dir",
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


class _SimTransport:
    """The simulated board as a child process; it ends when the transport is closed."""

    baud = None

    def __init__(self, card: Path, options: Sequence[str] = ()) -> None:
        from host.resources import simulator

        executable = os.environ.get("TLLM_SIM") or simulator()
        with contextlib.ExitStack() as held:
            held.enter_context(taken(card))
            self._stderr = held.enter_context(tempfile.TemporaryFile())
            try:
                # A session of its own, so that Ctrl-C reaches the host tool alone.
                self._process = subprocess.Popen(
                    [str(executable), "--stdio", "--card", str(card), *options],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._stderr,
                    bufsize=0,
                    start_new_session=True,
                )
            except OSError as exc:
                raise explain_os_error(exc, executable) from exc
            self._held = held.pop_all()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        os.set_blocking(self._in.fileno(), False)

    now = staticmethod(time.monotonic)

    def read(self, timeout: float) -> bytes:
        if not select.select([self._out], [], [], max(0.0, timeout))[0]:
            return b""
        data = os.read(self._out.fileno(), _READ_BYTES)
        if not data:
            raise self._ended()
        return data

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._in.fileno(), view) :]
            except BlockingIOError:
                select.select([], [self._in], [])
            except BrokenPipeError:
                raise self._ended() from None

    def set_baud(self, baud: int) -> None:
        """Nothing: the simulated board keeps its own pace."""

    def close(self) -> None:
        if self._in.closed:
            return
        with contextlib.suppress(OSError):
            self._in.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()
        self._held.close()

    def _ended(self) -> HostError:
        self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        why = f": {said[-1]}" if said else f" with exit code {self._process.returncode}"
        return LinkError(f"The simulated board ended{why}", "Start the command again")


class _SocketTransport:
    """A TCP connection, ``socket://HOST:PORT``."""

    baud = None

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or not port:
            raise LinkError(f"{url} is not an address", "Write socket://HOST:PORT")
        try:
            self._socket = socket.create_connection((host, port), timeout=5)
        except (socket.gaierror, UnicodeError) as exc:
            raise LinkError(f"{url}: there is no computer of that name", "Check it") from exc
        except OSError as exc:
            raise _as_link_error(explain_os_error(exc, url)) from exc
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._url = url

    now = staticmethod(time.monotonic)

    def read(self, timeout: float) -> bytes:
        if not select.select([self._socket], [], [], max(0.0, timeout))[0]:
            return b""
        try:
            data = self._socket.recv(_READ_BYTES)
        except OSError:
            data = b""
        if not data:
            raise self._gone()
        return data

    def write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as exc:
            raise self._gone() from exc

    def set_baud(self, baud: int) -> None:
        """Nothing: a socket has no rate."""

    def close(self) -> None:
        self._socket.close()

    def _gone(self) -> LinkError:
        return LinkError(f"{self._url} closed the connection", "Check that it still runs")


class _SerialTransport:
    """A serial port or pseudo-terminal, or any other URL that pyserial knows."""

    def __init__(self, port: str, baud: int) -> None:
        import serial

        try:
            self._serial = serial.serial_for_url(port, baudrate=baud, do_not_open=True)
            if "://" not in port:
                self._serial.exclusive = True
            self._serial.timeout = _SERIAL_POLL_S
            # Opening a port pulls both lines, which resets many boards, or holds them in reset.
            self._serial.dtr = False
            self._serial.rts = False
            self._serial.open()
        except OSError as exc:
            raise explain_port_error(exc, port) from exc
        except (ValueError, OverflowError) as exc:
            raise LinkError(f"{port} is not a port: {exc}", "`host doctor` lists ports") from exc
        self._port = port

    now = staticmethod(time.monotonic)

    @property
    def baud(self) -> int:
        return int(self._serial.baudrate)

    def read(self, timeout: float) -> bytes:
        end = self.now() + timeout
        try:
            while True:
                data: bytes = self._serial.read(1)
                if data:
                    return data + bytes(self._serial.read(self._serial.in_waiting))
                if self.now() >= end:
                    return b""
        except (OSError, TypeError) as exc:  # TypeError: pyserial, when the device has gone
            raise self._gone() from exc

    def write(self, data: bytes) -> None:
        try:
            self._serial.write(data)
        except OSError as exc:
            raise self._gone() from exc

    def set_baud(self, baud: int) -> None:
        try:
            self._serial.flush()
            self._serial.baudrate = baud
        except (OSError, ValueError) as exc:
            raise LinkError(f"{self._port} cannot do {baud} baud", "Choose another -b") from exc
        except Exception as exc:  # termios.error, which is no OSError, and is POSIX's alone
            raise self._gone() from exc

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._serial.close()

    def _gone(self) -> LinkError:
        return LinkError(f"{self._port} is gone", "Check the cable, plug the board in again")


def explain_port_error(exc: OSError, port: str, platform: str = sys.platform) -> LinkError:
    """Says why a port did not open, and the command that mends it on this system."""
    code = exc.errno
    text = str(exc)
    if code is None and "PermissionError" in text:  # Windows, where pyserial gives no number
        code = errno.EBUSY
    if code is None and "FileNotFoundError" in text:
        code = errno.ENOENT
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return LinkError(f"The port {port} does not exist", _ports_there())
    if code in (errno.EACCES, errno.EPERM):
        return LinkError(f"The port {port} is not permitted to you", _permit(port, platform))
    if code in (errno.EBUSY, errno.EAGAIN):
        return LinkError(f"The port {port} is in use by another program", _who(port, platform))
    if "Could not configure port" in text or code in (errno.ENOTTY, errno.EISDIR, errno.ENOTDIR):
        return LinkError(f"{port} is not a serial port", _ports_there())
    return _as_link_error(explain_os_error(exc, f"The port {port}"))


def ports() -> list[tuple[str, str]]:
    """The serial ports that this computer has: name and description, USB adapters first."""
    from serial.tools import list_ports

    found = sorted(list_ports.comports(), key=lambda p: (p.vid is None, p.device))
    return [(p.device, p.description) for p in found if p.vid is not None or p.hwid != "n/a"]


def _ports_there() -> str:
    found = ", ".join(name for name, _ in ports())
    if found:
        return f"These ports are there: {found}"
    return "No serial port is there: plug the adapter in, or use `-p sim` for the simulated board"


def _permit(port: str, platform: str) -> str:
    if platform.startswith("linux"):
        group = "dialout"
        with contextlib.suppress(ImportError, OSError, KeyError):
            import grp

            group = grp.getgrgid(Path(port).stat().st_gid).gr_name
        if group == "root":
            group = "dialout"
        return f"Run `sudo usermod -aG {group} $USER`, then log out and in again"
    if platform == "darwin":
        return f"Run `sudo chmod 666 {port}`"
    return "Start the terminal as administrator"


def _who(port: str, platform: str) -> str:
    if platform.startswith("linux"):
        return f"`fuser -v {port}` names it; close it and try again"
    if platform == "darwin":
        return f"`lsof {port}` names it; close it and try again"
    return "Close the serial monitor or other program that has it open"


def _as_link_error(error: HostError) -> LinkError:
    return LinkError(error.message, error.next_step)
