"""Flashing: the order of the steps, what is skipped, and what is said where a tool is missing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from host.board import flash as body
from host.board.upload import Uploaded
from host.board.verify import Verified
from host.errors import InputError, LinkError, ToolError, UsageError
from tests.conftest import Quantized

pytestmark = pytest.mark.shared


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """As much of a checkout as flashing looks at."""
    root = tmp_path / "checkout"
    for name in ("firmware/src/main.c", "firmware/lib/tinyllm/ops.c", "platformio.ini"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@dataclass
class Tools:
    """Stands in for PlatformIO, esptool and the board; remembers what was asked of each."""

    project: Path
    calls: list[str] = field(default_factory=list)
    written: list[tuple[int, str]] = field(default_factory=list)
    pio_fails: str = ""
    chip_fails: str = ""
    board_answers: bool = True

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.calls.append(f"pio {command[3]}")
        if self.pio_fails:
            return subprocess.CompletedProcess(command, 1, "", self.pio_fails)
        build = self.project / ".pio" / "build" / "esp32cam"
        build.mkdir(parents=True, exist_ok=True)
        for name in ("bootloader.bin", "partitions.bin", "firmware.bin"):
            (build / name).write_bytes(name.encode())
        extra = {
            "application_offset": "0x10000",
            "flash_images": [
                {"offset": "0x1000", "path": str(build / "bootloader.bin")},
                {"offset": "0x8000", "path": str(build / "partitions.bin")},
            ],
        }
        said = json.dumps({"esp32cam": {"extra": extra}})
        return subprocess.CompletedProcess(command, 0, said, "")

    def esptool(self) -> tuple[types.ModuleType, types.ModuleType]:
        class FatalError(RuntimeError):
            pass

        class Chip:
            def __enter__(self) -> Chip:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def change_baud(self, _: int) -> None:
                pass

        def detect_chip(port: str) -> Chip:
            self.calls.append(f"esptool {port}")
            if self.chip_fails:
                raise FatalError(self.chip_fails)
            return Chip()

        def write_flash(_: Chip, data: list[tuple[int, str]]) -> None:
            self.written = data

        main, commands = types.ModuleType("esptool"), types.ModuleType("esptool.cmds")
        main.FatalError = FatalError  # type: ignore[attr-defined]
        members: dict[str, Any] = {
            "detect_chip": detect_chip,
            "run_stub": lambda chip: chip,
            "attach_flash": lambda _: None,
            "write_flash": write_flash,
            "reset_chip": lambda _, __: self.calls.append("reset"),
        }
        for name, member in members.items():
            setattr(commands, name, member)
        return main, commands


class FakeDevice:
    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def tools(project: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    made = Tools(project)
    esptool, commands = made.esptool()
    modules = {"esptool": esptool, "esptool.cmds": commands}
    monkeypatch.setattr(subprocess, "run", made.run)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(body, "open_port", lambda *_, **__: types.SimpleNamespace(close=lambda: 0))
    monkeypatch.setattr(body, "Device", FakeDevice)
    monkeypatch.setattr(body, "_answers", lambda _: made.board_answers)

    def upload(*_: object, **__: object) -> Uploaded:
        made.calls.append("upload")
        return Uploaded(skipped=3)

    def verify(*_: object, **__: object) -> Verified:
        made.calls.append("verify")
        return Verified(positions=8)

    monkeypatch.setattr(body, "upload", upload)
    monkeypatch.setattr(body, "verify", verify)
    return made


Flash = Callable[..., None]


@pytest.fixture
def flash(quantized: Quantized, project: Path) -> Flash:
    package = quantized("stories260K")

    def run(port: str | None = "/dev/ttyUSB0", **options: Any) -> None:
        body.flash(package, port, 115200, project=project, **options)

    return run


def test_everything_in_order_and_nothing_twice(
    tools: Tools, flash: Flash, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flash()
    assert tools.calls == [
        "pio run", "pio project", "esptool /dev/ttyUSB0", "reset", "upload", "verify",
    ]  # fmt: skip
    assert [at for at, _ in tools.written] == [0x1000, 0x8000, 0x10000]
    assert (project / "firmware/src/tllm_model_data.h").is_file()
    said = capsys.readouterr().out
    assert said.startswith("This writes the board's program over")
    assert [line[:3] for line in said.splitlines() if line[1:3] == "/5"] == [
        "1/5", "2/5", "3/5", "4/5", "5/5",
    ]  # fmt: skip

    tools.calls.clear()
    flash()
    assert tools.calls == ["upload", "verify"]
    assert capsys.readouterr().out.count("skipped") == 2


@pytest.mark.parametrize("changed", ["firmware/src/main.c", "platformio.ini"])
def test_a_changed_source_is_built_and_written_again(
    tools: Tools, flash: Flash, project: Path, changed: str
) -> None:
    flash()
    (project / changed).write_text("other")
    tools.calls.clear()
    flash()
    assert tools.calls[:3] == ["pio run", "pio project", "esptool /dev/ttyUSB0"]


def test_another_port_or_a_silent_board_is_written_again(tools: Tools, flash: Flash) -> None:
    flash()
    tools.calls.clear()
    flash("/dev/ttyUSB1")
    assert tools.calls == ["esptool /dev/ttyUSB1", "reset", "upload", "verify"]
    tools.calls.clear()
    tools.board_answers = False
    flash()
    assert tools.calls[0] == "esptool /dev/ttyUSB0"


def test_a_dry_run_says_what_and_does_nothing(
    tools: Tools, flash: Flash, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flash(dry_run=True)
    said = capsys.readouterr().out
    assert "over what the board on /dev/ttyUSB0 has in its flash" in said
    assert "Nothing was done" in said
    assert tools.calls == []
    assert not (project / "firmware/src/tllm_model_data.h").exists()
    assert not (project / ".pio").exists()


def test_a_toolchain_that_cannot_be_fetched_is_a_sentence(tools: Tools, flash: Flash) -> None:
    tools.pio_fails = "...\nHTTPClientError: no network"
    with pytest.raises(ToolError, match=r"no network.*needs the network once"):
        flash()
    assert "upload" not in tools.calls


def test_missing_tools_are_named_with_the_command(
    tools: Tools, flash: Flash, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def all_but_platformio(name: str) -> object:
        return None if name == "platformio" else find(name)

    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", all_but_platformio)
        with pytest.raises(ToolError, match=r"PlatformIO.*pip install"):
            flash()
    monkeypatch.setitem(sys.modules, "esptool", None)
    with pytest.raises(ToolError, match=r"esptool.*pip install"):
        flash()
    assert "upload" not in tools.calls


def test_a_board_not_in_its_boot_loader_is_told_how(tools: Tools, flash: Flash) -> None:
    tools.chip_fails = "No serial data received."
    with pytest.raises(LinkError, match=r"No serial data.*IO0 to GND"):
        flash()
    assert "upload" not in tools.calls


def test_ports_are_chosen_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, wanted in (([], "No serial port"), ([("a", ""), ("b", "")], "several ports: a, b")):
        monkeypatch.setattr(body, "ports", lambda found=found: found)
        with pytest.raises(UsageError, match=wanted):
            body.only_port()
    monkeypatch.setattr(body, "ports", lambda: [("/dev/ttyUSB0", "CP2102")])
    assert body.only_port() == "/dev/ttyUSB0"


def test_the_checkout_is_found_from_inside_it_and_no_other_folder_is_one(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "firmware" / "src")
    assert body.find_project(None) == project
    with pytest.raises(InputError, match=r"no platformio\.ini"):
        body.find_project(tmp_path)
