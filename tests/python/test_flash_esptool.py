"""`host flash` with the real esptool, on an emulated boot loader that becomes the simulated board.

PlatformIO alone is stood in for: it would fetch a toolchain. Its stand-in leaves images and says
where they go in the form that the real builder does, numbers and texts mixed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import rom_loader
from rom_loader import ESP32_S3, ESP8266, Chip, Faults, Kind, PtyBoard
from wired_adapter import WiredAdapter

from host.board.build import Image
from host.board.write import write
from host.errors import LinkError
from tests.conftest import REPOSITORY, Build, Quantized

pytestmark = pytest.mark.shared

STAND_IN_FOR_PLATFORMIO = """
import json, random, sys
from pathlib import Path

sys.path.insert(0, {helpers!r})
import rom_loader

command, project, name = sys.argv[1], Path(sys.argv[-1]), sys.argv[sys.argv.index("-e") + 1]
folder = project / ".pio" / "build" / name
if command == "run":
    seeded = random.Random(name)
    folder.mkdir(parents=True, exist_ok=True)
    table = rom_loader.partition_table(project / "firmware" / "partitions.csv")
    (folder / "bootloader.bin").write_bytes(rom_loader.application(seeded.randbytes(20_000)))
    (folder / "partitions.bin").write_bytes(table)
    application = bytes(60_000) + seeded.randbytes(70_000)
    (folder / "firmware.bin").write_bytes(rom_loader.application(application))
    print("Building firmware.bin")
else:
    images = [
        {{"offset": 0x1000, "path": str(folder / "bootloader.bin")}},
        {{"offset": "0x8000", "path": str(folder / "partitions.bin")}},
    ]
    extra = {{"flash_images": images, "application_offset": "0x10000"}}
    print(json.dumps({{name: {{"extra": extra}}}}))
"""
AT = {0x1000: "bootloader.bin", 0x8000: "partitions.bin", 0x10000: "firmware.bin"}


# --- writing --------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> list[Image]:
    seeded = random.Random(5)
    content = {
        0x1000: rom_loader.application(seeded.randbytes(20_000)),
        0x8000: rom_loader.partition_table(REPOSITORY / "firmware" / "partitions.csv"),
        0x10000: rom_loader.application(bytes(30_000) + seeded.randbytes(30_000)),
    }
    for offset, data in content.items():
        (tmp_path / AT[offset]).write_bytes(data)
    return [Image(offset, tmp_path / name) for offset, name in AT.items()]


def assert_holds(flash: bytes | bytearray, images: list[Image]) -> None:
    """The images are there, and each byte outside their sectors is as it was."""
    rest = bytearray(flash)
    for image in images:
        data = image.path.read_bytes()
        assert flash[image.offset : image.offset + len(data)] == data, image
        rest[image.offset : image.offset + len(data)] = b"\xff" * len(data)
    assert rest == b"\xff" * len(flash)


@pytest.mark.parametrize("log2_of_size", [22, 23])
def test_esptool_writes_each_image_where_it_belongs(
    images: list[Image], log2_of_size: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with PtyBoard(chip=Chip(flash_size=log2_of_size)) as board:
        write(board.port, images)
        assert_holds(board.chip.flash, images)
        assert board.chip.is_stub
        assert board.chip.baud == 460800
        assert board.chip.packets.count(rom_loader.MD5) == 3
    assert capfd.readouterr() == ("", "")


def test_blocks_damaged_on_the_line_are_sent_again(images: list[Image]) -> None:
    with PtyBoard(chip=Chip(faults=Faults(damaged_writes=2))) as board:
        write(board.port, images, baud=115200)
        assert board.chip.faults.damaged_writes == 0
        assert_holds(board.chip.flash, images)


@pytest.mark.parametrize(
    ("kind", "size", "wanted"),
    [
        (ESP32_S3, 22, "chip is an ESP32-S3; the program is built for an ESP32. Nothing was"),
        (ESP8266, 22, "chip is an ESP8266; the program is built for an ESP32. Nothing was"),
        (rom_loader.ESP32, 21, "flash has 2MB; the program's partitions need 4 MB. Nothing was"),
        (rom_loader.ESP32, 0, "flash chip does not answer. Nothing was"),
    ],
)
def test_another_chip_or_too_little_flash_is_refused_untouched(
    images: list[Image], kind: Kind, size: int, wanted: str
) -> None:
    with PtyBoard(chip=Chip(kind, size)) as board:
        with pytest.raises(LinkError, match=wanted):
            write(board.port, images)
        assert set(board.chip.flash) <= {0xFF}
        assert not {rom_loader.FLASH_BEGIN, rom_loader.DEFL_BEGIN} & set(board.chip.packets)


def test_a_flash_that_keeps_something_else_is_told(images: list[Image]) -> None:
    with (
        PtyBoard(chip=Chip(faults=Faults(lies_at=0x12345))) as board,
        pytest.raises(LinkError, match="does not hold what was written"),
    ):
        write(board.port, images)


# --- the whole command ----------------------------------------------------------------------------


@dataclass
class Run:
    code: int = -1
    out: str = ""
    err: list[str] = field(default_factory=list)
    interrupt: Callable[[], None] = lambda: None

    @property
    def sentence(self) -> str:
        """The last line of stderr: what went wrong."""
        assert not any("Traceback" in line for line in self.err), self.err
        return self.err[-1]


OnLine = Callable[[str, Run], None]
Flash = Callable[..., Run]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """As much of a checkout as flashing looks at."""
    root = tmp_path / "a check-out ü"
    (root / "firmware" / "src").mkdir(parents=True)
    (root / "platformio.ini").write_text("[env:esp32cam]\n")
    table = (REPOSITORY / "firmware" / "partitions.csv").read_bytes()
    (root / "firmware" / "partitions.csv").write_bytes(table)
    return root


@pytest.fixture
def flash(quantized: Quantized, project: Path, tmp_path: Path) -> Flash:
    """Runs `host flash`; `on_line` sees each line of stderr as it comes."""
    package = quantized("stories260K")
    stand_in = tmp_path / "stand-in" / "platformio"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    source = STAND_IN_FOR_PLATFORMIO.format(helpers=str(Path(__file__).parent))
    (stand_in / "__main__.py").write_text(source)
    hasty = tmp_path / "esptool.cfg"
    hasty.write_text("[esptool]\nconnect_attempts = 1\ntimeout = 0.5\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(stand_in.parent), str(REPOSITORY)]),
        "HOST_STATE_DIR": str(tmp_path / "state"),
        "ESPTOOL_CFGFILE": str(hasty),
    }

    def run(port: str, *options: str, on_line: OnLine = lambda _, __: None) -> Run:
        command = [sys.executable, "-m", "host", "flash", str(package), "-p", port]
        with subprocess.Popen(
            [*command, "--project", str(project), *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stderr is not None
            done = Run(interrupt=lambda: process.send_signal(signal.SIGINT))
            out = process.stdout
            reader = threading.Thread(target=lambda: setattr(done, "out", out.read()))
            reader.start()
            for line in process.stderr:
                done.err.append(line.rstrip())
                on_line(line, done)
            reader.join()
            done.code = process.wait()
        return done

    return run


@pytest.fixture
def board(build_sim: Build, gcc: str, tmp_path: Path) -> Iterator[PtyBoard]:
    """An empty ESP32-CAM with its IO0 jumper on; its program will be the simulated board's."""
    program = [str(build_sim(gcc, ("-O2",))), "--stdio", "--card", str(tmp_path / "card")]
    (tmp_path / "card").mkdir()
    with PtyBoard(program) as made:
        yield made


def steps(out: str) -> list[str]:
    return [line for line in out.splitlines() if line[1:3] in ("/5", "-3")]


def test_an_empty_board_is_built_for_written_loaded_and_verified(
    flash: Flash, board: PtyBoard, project: Path
) -> None:
    def hands(line: str, _: Run) -> None:
        if "Take the jumper off IO0 and press RST" in line:
            board.press_reset(io0=False)

    done = flash(board.port, on_line=hands)
    assert done.code == 0, done.err
    build = project / ".pio" / "build" / "esp32cam"
    assert_holds(board.chip.flash, [Image(at, build / name) for at, name in AT.items()])
    said = done.out.splitlines()
    assert said[0].startswith(
        f"This writes the board's program over what the board on {board.port}"
    )
    assert [line[:3] for line in steps(done.out)] == ["1/5", "2/5", "2/5", "3/5", "4/5", "5/5"]
    assert "firmware.bin at 0x10000: written and compared" in done.out
    assert said[-1].startswith("5/5 verify: 8 positions, all equal")
    assert done.err == [
        "Building firmware.bin",
        "Take the jumper off IO0 and press RST: waiting for the board's program ...",
    ]


def test_a_jumper_left_on_and_a_weak_supply_are_told_while_it_waits(
    flash: Flash, board: PtyBoard
) -> None:
    told = ["Take the jumper off", "is in its boot loader", "supply is too weak"]

    def hands(line: str, _: Run) -> None:
        if told and told[0] in line:
            told.pop(0)
            board.is_weak = len(told) == 1
            board.press_reset(io0=len(told) == 2)

    done = flash(board.port, "--json", on_line=hands)
    assert done.code == 0, done.err
    assert told == []
    said = json.loads(done.out)
    assert said["written"] == 3
    assert said["skipped"] == []
    assert said["verified"]["positions"] == 8
    assert board.resets == 4


def test_no_boot_loader_is_a_sentence_with_what_to_do(flash: Flash, board: PtyBoard) -> None:
    board.chip.faults.deaf = True
    done = flash(board.port)
    assert done.code == 2
    assert done.sentence.startswith("The board's boot loader does not answer. Connect IO0 to GND")
    assert steps(done.out)[-1].startswith("2/5")


def test_a_build_is_kept_when_writing_fails(flash: Flash, board: PtyBoard, project: Path) -> None:
    board.chip.faults.lies_at = 0x10010
    assert flash(board.port).code == 2
    done = flash(board.port, "--dry-run")
    assert done.code == 0
    assert "2/5 build: skipped, unchanged" in done.out
    assert "firmware.bin at 0x10000\n" in done.out
    assert "Nothing was done" in done.out
    (project / ".pio" / "build" / "esp32cam" / "firmware.bin").write_bytes(b"another build's")
    assert "2/5 build: pio run -e esp32cam" in flash(board.port, "--dry-run").out


@pytest.mark.parametrize("fault", ["vanishes", "falls silent"])
def test_a_board_that_is_lost_on_the_way_is_told(flash: Flash, board: PtyBoard, fault: str) -> None:
    if fault == "vanishes":
        board.vanish_after = 70
    else:
        board.chip.faults.silent_after = 30_000
    done = flash(board.port)
    assert done.code == 2
    assert ("went away" if fault == "vanishes" else "was not written") in done.sentence
    assert "IO0 to GND" in done.sentence
    assert not any("4/5" in line for line in steps(done.out))


def test_ctrl_c_while_it_waits_for_hands_is_130(flash: Flash, board: PtyBoard) -> None:
    def leave(line: str, running: Run) -> None:
        if "Take the jumper off" in line:
            running.interrupt()

    done = flash(board.port, on_line=leave)
    assert done.code == 130
    assert not any("Traceback" in line for line in done.err)


@pytest.mark.slow
def test_control_lines_need_no_hands(flash: Flash, board: PtyBoard) -> None:
    board.press_reset(io0=False)  # no jumper: RTS and DTR do it
    with WiredAdapter(board) as adapter:
        done = flash(adapter.port)
    assert done.code == 0, done.err
    assert done.err == ["Building firmware.bin"]
    assert "3/5 write: bootloader.bin at 0x1000" in done.out
    assert "5/5 verify: 8 positions, all equal" in done.out
