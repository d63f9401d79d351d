"""Writes a program into a board's flash: esptool's Python API, and its failures in sentences."""

from __future__ import annotations

import contextlib
import importlib
import io
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from host.board import ui
from host.board.build import Image
from host.errors import HostError, LinkError, ToolError
from host.link.transports import open_port

DEFAULT_BAUD = 460800
_IMAGE_HEAD = struct.Struct("<B11xH")  # magic; the chip that the image is for
_IMAGE_MAGIC = 0xE9
_PARTITION = struct.Struct("<2sBBII20x")
_PARTITION_MAGIC = b"\xaa\x50"
_NO_FLASH = (0, 0xFFFFFF, 0xFFFF3F)
_BOOT_MODE = (
    "Connect IO0 to GND, press RST, and run this again (an ESP32-CAM-MB: hold its IO0 button "
    "while it connects)"
)


def write(port: str, images: Sequence[Image], baud: int = DEFAULT_BAUD) -> None:
    """Writes images to a board's flash, compares what is there then, and restarts the board.

    Args:
        port: Of a board in its boot loader, or that its control lines bring there.
        images: What goes where.
        baud: Bits a second while writing.

    Raises:
        ToolError: esptool is missing.
        LinkError: The board is not in its boot loader, is another chip, has too little flash, or
            does not hold what was written.
    """
    esptool, commands = _esptool()
    open_port(port).close()  # says why a port cannot be opened better than esptool does
    data = [(image, image.path.read_bytes()) for image in images]
    with _quiet() as follow, _explained(esptool, port):
        with contextlib.redirect_stderr(io.StringIO()):
            rom = commands.detect_chip(port)
        with rom:
            with contextlib.redirect_stderr(io.StringIO()):
                _check_chip(rom, [content for _, content in data])
                stub = commands.run_stub(rom)
                if baud != stub.get_baud():
                    stub.change_baud(baud)
                commands.attach_flash(stub)
                _check_flash(stub, commands, data)
            for image, content in data:
                with ui.progress(f"write {image.path.name}", len(content)) as advance:
                    follow(len(content), advance)
                    commands.write_flash(stub, [(image.offset, str(image.path))])
            with contextlib.redirect_stderr(io.StringIO()):
                commands.reset_chip(stub, "hard-reset")


def require_esptool() -> None:
    """Checks that esptool is there, before anything is begun.

    Raises:
        ToolError: It is not.
    """
    _esptool()


def _esptool() -> tuple[Any, Any]:
    try:
        return importlib.import_module("esptool"), importlib.import_module("esptool.cmds")
    except ImportError:
        raise ToolError(
            "esptool, which writes the flash, is not installed",
            "Run `pip install 'esp32-tinyllm[flash]'`",
        ) from None


_Follow = Callable[[int, ui.Advance], None]


@contextlib.contextmanager
def _quiet() -> Iterator[_Follow]:
    """Keeps esptool's own words off the screen; yields what has its progress shown."""
    total, shown = 1, 0
    advance: ui.Advance | None = None

    def follow(size: int, show: ui.Advance) -> None:
        nonlocal total, shown, advance
        total, shown, advance = size, 0, show

    def progress_bar(_: object, done: int, of: int, *__: object, **___: object) -> None:
        nonlocal shown
        now = total * done // max(1, of)
        if advance is not None:
            advance(now - shown)
        shown = now

    def silent(*_: object, **__: object) -> None:
        pass

    logger: Any = importlib.import_module("esptool.logger")
    names = ("print", "note", "warning", "error", "stage", "set_verbosity")
    members = {**dict.fromkeys(names, silent), "progress_bar": progress_bar}
    quiet: Any = type("Quiet", (logger.TemplateLogger,), members)
    logger.EsptoolLogger.set_logger(logger.log, quiet())
    with contextlib.redirect_stdout(io.StringIO()):
        yield follow


@contextlib.contextmanager
def _explained(esptool: Any, port: str) -> Iterator[None]:
    try:
        yield
    except HostError:
        raise
    except OSError as exc:
        raise LinkError(
            f"{port} went away while the flash was written: {exc}",
            f"Check the cable and the supply. {_BOOT_MODE}",
        ) from exc
    except (esptool.FatalError, RuntimeError, struct.error, LookupError) as exc:
        raise _explain(str(exc)) from exc


def _explain(said: str) -> LinkError:
    """Says in our words what esptool's reasons mean, which are made for its own command line."""
    if "Wrong boot mode" in said:
        return LinkError(
            "The board started its program and not its boot loader: IO0 was not at GND", _BOOT_MODE
        )
    if "no sync reply" in said:
        return LinkError(
            "The board is in its boot loader but hears nothing",
            "Check the wire from the adapter's TXD to the board's U0R",
        )
    if said.startswith("Failed to connect"):
        return LinkError("The board's boot loader does not answer", _BOOT_MODE)
    if "MD5" in said or "region is empty" in said:
        return LinkError(
            "The board's flash does not hold what was written to it",
            f"Write again, with --flash-baud 115200 and a better supply. {_BOOT_MODE}",
        )
    reason = said.strip().splitlines()[0].rstrip(".") if said.strip() else "no reason given"
    return LinkError(
        f"The board's flash was not written: {reason}",
        f"{_BOOT_MODE}; with long wires add --flash-baud 115200",
    )


def _check_chip(rom: Any, images: Sequence[bytes]) -> None:
    """Refuses another chip than the one that the images are for."""
    targets = importlib.import_module("esptool.targets")
    for image in images:
        if len(image) < _IMAGE_HEAD.size or image[0] != _IMAGE_MAGIC:
            continue
        _, wanted = _IMAGE_HEAD.unpack_from(image)
        if wanted != rom.IMAGE_CHIP_ID:
            chips = {chip.IMAGE_CHIP_ID: chip.CHIP_NAME for chip in targets.ROM_LIST}
            raise LinkError(
                f"The board's chip is an {rom.CHIP_NAME}; the program is built for an "
                f"{chips.get(wanted, 'unknown one')}",
                "Nothing was written. Choose the environment for this board with -e, or another "
                "board",
            )


def _check_flash(stub: Any, commands: Any, data: Sequence[tuple[Image, bytes]]) -> None:
    """Refuses a flash chip that does not answer or is smaller than the partition table says."""
    if stub.flash_id() in _NO_FLASH:
        raise LinkError(
            "The board's flash chip does not answer",
            "Nothing was written. Take the card out and press RST with IO0 at GND, since a card "
            "can pull GPIO12 up",
        )
    size = commands.detect_flash_size(stub)
    if size is None:
        return
    has = importlib.import_module("esptool.util").flash_size_bytes(size)
    needs = max([image.offset + len(content) for image, content in data])
    needs = max([needs, *(_end_of_partitions(content) for _, content in data)])
    if has < needs:
        raise LinkError(
            f"The board's flash has {size}; the program's partitions need {needs >> 20} MB",
            "Nothing was written. Use a board with more flash",
        )


def _end_of_partitions(table: bytes) -> int:
    """Where the last partition of a table ends; 0 where it is no table."""
    end = 0
    for at in range(0, len(table) - _PARTITION.size + 1, _PARTITION.size):
        magic, _, _, offset, size = _PARTITION.unpack_from(table, at)
        if magic != _PARTITION_MAGIC:
            break
        end = max(end, offset + size)
    return end
