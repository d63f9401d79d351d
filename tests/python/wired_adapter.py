"""An adapter whose control lines are wired to the board: RTS to EN, DTR to IO0, both active low.

A pseudo-terminal has no control lines, so the port is one of RFC 2217: pyserial at both ends.
"""

from __future__ import annotations

import select
import socket
import threading
from typing import Any

import serial
from rom_loader import PtyBoard
from serial.rfc2217 import PortManager


class _Wires(serial.Serial):  # type: ignore[misc] # pyserial has no types
    """The board's end of the line, and what RTS and DTR do to it."""

    cts = dsr = ri = cd = False

    def __init__(self, board: PtyBoard) -> None:
        self._board = board
        self._is_held = False
        super().__init__(board.port, timeout=0.01)

    def _update_rts_state(self) -> None:
        was_held, self._is_held = self._is_held, self._rts_state
        if was_held and not self._is_held:
            self._board.press_reset(io0=self._dtr_state)

    def _update_dtr_state(self) -> None:
        pass


class WiredAdapter:
    """A port that RFC 2217 clients open again and again. Use it as a context manager."""

    def __init__(self, board: PtyBoard) -> None:
        self._serial = _Wires(board)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = f"rfc2217://127.0.0.1:{self._listener.getsockname()[1]}"
        self._is_ending = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> WiredAdapter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ending = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._serial.close()

    def _serve(self) -> None:
        while not self._is_ending:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                self._serve_one(client)

    def _serve_one(self, client: socket.socket) -> None:
        manager: Any = PortManager(self._serial, _Sender(client))
        while not self._is_ending:
            ready = select.select([client.fileno(), self._serial.fileno()], [], [], 0.1)[0]
            try:
                if client.fileno() in ready:
                    data = client.recv(1 << 12)
                    if not data:
                        return
                    self._serial.write(b"".join(manager.filter(data)))
                if waiting := self._serial.in_waiting:
                    client.sendall(b"".join(manager.escape(self._serial.read(waiting))))
            except OSError:
                return


class _Sender:
    def __init__(self, client: socket.socket) -> None:
        self._client = client

    def write(self, data: bytes) -> None:
        self._client.sendall(data)
