"""Runs the command line in this process, as a user would see it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from host import cli


@dataclass(frozen=True)
class Said:
    """Exit code, standard output and standard error."""

    code: int
    out: str
    err: str


Host = Callable[..., Said]


def make_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Path, sim: Path
) -> Host:
    """A `host` command with a state folder and a simulated board of its own."""
    monkeypatch.setenv("HOST_STATE_DIR", str(state))
    monkeypatch.setenv("TLLM_SIM", str(sim))
    for name in ("ESPPORT", "HOST_PORT", "ESPBAUD", "HOST_BAUD", "HOST_SIM_DIR"):
        monkeypatch.delenv(name, raising=False)

    def host(*args: object, stdin: bytes = b"") -> Said:
        monkeypatch.setattr(sys, "argv", ["host", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as exc:
            code = exc.code or 0
        said = capsys.readouterr()
        assert isinstance(code, int)
        return Said(code, said.out, said.err)

    return host


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
