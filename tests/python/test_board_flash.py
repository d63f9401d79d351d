"""Flashing: the order of the steps, what is skipped, and what is said where a tool is missing.

PlatformIO, esptool and the board are stood in for; test_flash_esptool.py has the real esptool.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from host import __version__
from host.board import build as building
from host.board import flash as body
from host.board import write as writing
from host.board.build import Image
from host.board.upload import Uploaded
from host.board.verify import Verified
from host.errors import InputError, LinkError, ToolError, UsageError
from host.link.client import Refused, Status
from tests.conftest import Quantized

pytestmark = pytest.mark.shared

PIO = """
import sys
from pathlib import Path

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for name in ("bootloader.bin", "partitions.bin", "firmware.bin"):
    (folder / name).write_text(name + (folder.parents[2] / "firmware/src/main.c").read_text())
configuration = folder.parents[2] / "sdkconfig.esp32cam"
configuration.exists() or configuration.touch()  # what is there is kept
print("A newer PlatformIO is there.")
print(sys.argv[2])
"""


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
    written: list[Image] = field(default_factory=list)
    pio: str = PIO
    extra: dict[str, Any] = field(default_factory=dict)
    board_says: dict[str, Any] = field(default_factory=lambda: {"version": f"x {__version__}"})
    upload_fails: Refused | None = None

    def command(self) -> list[str]:
        folder = self.project / ".pio" / "build" / "esp32cam"
        images = {0x1000: "bootloader.bin", "0x8000": "partitions.bin"}
        extra = {
            "application_offset": "0x10000",
            "flash_images": [
                {"offset": offset, "path": str(folder / name)} for offset, name in images.items()
            ],
            **self.extra,
        }
        said = json.dumps({"esp32cam": {"extra": extra}})
        self.calls.append("pio")
        return [sys.executable, "-c", self.pio, str(folder), said]


class FakeDevice:
    tools: Tools

    def __init__(self, *_: object, **__: object) -> None:
        if not self.tools.board_says:
            raise LinkError("silent")

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def info(self) -> dict[str, Any]:
        return self.tools.board_says


@pytest.fixture
def tools(project: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    made = Tools(project)

    def write(port: str, images: Sequence[Image], _: int) -> None:
        made.calls.append(f"esptool {port}")
        made.written = list(images)

    def upload(*_: object, **__: object) -> Uploaded:
        made.calls.append("upload")
        if made.upload_fails:
            raise made.upload_fails
        return Uploaded(skipped=3)

    def verify(*_: object, **__: object) -> Verified:
        made.calls.append("verify")
        return Verified(positions=8)

    monkeypatch.setattr(building, "_command", made.command)
    monkeypatch.setattr(body, "open_port", lambda *_, **__: types.SimpleNamespace(close=lambda: 0))
    monkeypatch.setattr(body, "_answers", lambda _: True)
    monkeypatch.setattr(body, "Device", type("Device", (FakeDevice,), {"tools": made}))
    monkeypatch.setattr(body, "write", write)
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
        "pio", "pio", "esptool /dev/ttyUSB0", "upload", "verify",
    ]  # fmt: skip
    assert [image.offset for image in tools.written] == [0x1000, 0x8000, 0x10000]
    assert (project / "firmware/src/tllm_model_data.h").is_file()
    said = capsys.readouterr().out
    assert said.startswith("This writes the board's program over")
    assert [line[:3] for line in said.splitlines() if line[1:3] == "/5"] == [
        "1/5", "2/5", "2/5", "3/5", "4/5", "5/5",
    ]  # fmt: skip

    tools.calls.clear()
    flash()
    assert tools.calls == ["upload", "verify"]
    assert capsys.readouterr().out.count("skipped") == 3

    tools.calls.clear()
    flash(force=True)
    assert tools.calls == ["pio", "pio", "esptool /dev/ttyUSB0", "upload", "verify"]


def test_a_changed_source_is_built_again_and_written_if_it_makes_a_difference(
    tools: Tools, flash: Flash, project: Path
) -> None:
    flash()
    tools.calls.clear()
    (project / "platformio.ini").write_text("another comment")
    flash()
    assert tools.calls == ["pio", "pio", "upload", "verify"]
    tools.calls.clear()
    (project / "firmware" / "src" / "main.c").write_text("other")
    flash()
    assert tools.calls[:3] == ["pio", "pio", "esptool /dev/ttyUSB0"]


def test_a_configuration_that_was_deleted_or_changed_is_built_again(
    tools: Tools, flash: Flash, project: Path
) -> None:
    made = project / "sdkconfig.esp32cam"
    flash()
    made.unlink()
    for _ in range(2):
        tools.calls.clear()
        flash()
        assert tools.calls == ["pio", "pio", "upload", "verify"]
        tools.calls.clear()
        flash()
        assert tools.calls == ["upload", "verify"]
        made.write_text("CONFIG_SPIRAM_SPEED_40M=y\n")


def test_another_port_or_a_silent_board_is_written_again(tools: Tools, flash: Flash) -> None:
    flash()
    tools.calls.clear()
    flash("/dev/ttyUSB1")
    assert tools.calls == ["esptool /dev/ttyUSB1", "upload", "verify"]
    tools.calls.clear()
    tools.board_says = {"version": "tinyllm 0.0.1"}
    flash()
    assert tools.calls[0] == "esptool /dev/ttyUSB0"


def test_images_that_another_build_left_are_built_again(
    tools: Tools, flash: Flash, project: Path
) -> None:
    flash()
    tools.calls.clear()
    (project / ".pio" / "build" / "esp32cam" / "firmware.bin").write_bytes(b"of other sources")
    flash()
    assert tools.calls[:2] == ["pio", "pio"]


def test_a_board_with_a_program_for_another_model_is_written_when_asked(
    tools: Tools, flash: Flash
) -> None:
    flash()
    tools.upload_fails = Refused(Status.OTHER_MODEL)
    with pytest.raises(LinkError, match=r"program for another model.*--force"):
        flash()
    with pytest.raises(Refused, match="another model"):
        flash(force=True)


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


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (
            "Installing espressif32\nHTTPClientError: ",
            r"registry is not reached.*needs the network",
        ),
        ("InternetConnectionError: You are not connected", "registry is not reached"),
        ("main.c:3:1: error: expected ';'\n*** [main.o] Error 1", r"fails: main\.c:3:1: error"),
        ("Error: Unknown environment names 'x'", r"fails: Error: Unknown env.*`pio run -d .* -e"),
        ("", "fails: exit code 1"),
    ],
)
def test_a_build_that_fails_is_a_sentence_and_its_log_is_shown(
    tools: Tools, flash: Flash, capsys: pytest.CaptureFixture[str], said: str, wanted: str
) -> None:
    tools.pio = f"import sys; print({said!r}, file=sys.stderr); sys.exit(1)"
    with pytest.raises(ToolError, match=wanted) as failure:
        flash()
    assert "\n" not in str(failure.value)
    assert said.strip() in capsys.readouterr().err
    assert "upload" not in tools.calls


def test_an_outdated_configuration_is_named(
    tools: Tools, flash: Flash, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults, made = project / "sdkconfig.defaults", project / "sdkconfig.esp32cam"
    for path, at in ((defaults, 1000), (made, 2000)):
        path.write_text("")
        os.utime(path, (at, at))
    flash()
    assert "delete it" not in capsys.readouterr().err
    os.utime(defaults, (3000, 3000))
    flash(force=True)
    assert "sdkconfig.esp32cam is older than" in capsys.readouterr().err
    assert tools.calls.count("verify") == 2


@pytest.mark.parametrize(
    "extra", [{"application_offset": "here"}, {"flash_images": 3}, {"flash_images": [{}]}]
)
def test_metadata_of_no_esp32_is_a_sentence(
    tools: Tools, flash: Flash, extra: dict[str, Any]
) -> None:
    tools.extra = extra
    with pytest.raises(ToolError, match="does not say where the images of esp32cam go"):
        flash()


def test_an_image_that_the_build_did_not_leave_is_named(tools: Tools, flash: Flash) -> None:
    tools.pio = PIO.replace("firmware.bin", "program.bin")
    with pytest.raises(ToolError, match=r"left no .*firmware\.bin"):
        flash()


def test_platformio_may_be_installed_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "platformio" else find(name)
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"PlatformIO.*pip install"):
        building._command()
    (tmp_path / "pio").write_text("#!/bin/sh\n")
    (tmp_path / "pio").chmod(0o755)
    assert building._command() == [str(tmp_path / "pio")]


def test_without_esptool_nothing_is_begun(
    tools: Tools, flash: Flash, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "esptool", None)
    with pytest.raises(ToolError, match=r"esptool.*pip install"):
        flash()
    assert tools.calls == []


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("Failed to connect to Espressif device: No serial data received.\nFor", "does not answer"),
        (
            "Failed to connect to x: Wrong boot mode detected (0x13)! The chip",
            "started its program",
        ),
        ("Download mode successfully detected, but getting no sync reply: The", "hears nothing"),
        ("MD5 of file does not match data in flash!", "not hold what was written"),
        ("Write failed, the written flash region is empty.", "not hold what was written"),
        (
            "Secure Boot V1 detected, writing\nto",
            "not written: Secure Boot V1 detected, writing. C",
        ),
        ("", "no reason given"),
    ],
)
def test_what_esptool_says_becomes_two_sentences(said: str, wanted: str) -> None:
    explained = str(writing._explain(said))
    assert wanted in explained
    assert "\n" not in explained


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
    assert building.find_project(None) == project
    with pytest.raises(InputError, match=r"no platformio\.ini"):
        building.find_project(tmp_path)
