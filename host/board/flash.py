"""`host flash`: headers, firmware, package and a check; what is unchanged is skipped."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host import __version__
from host.board import boot, ui
from host.board.build import (
    HEADER_FOLDER,
    Image,
    build,
    digest_of_configuration,
    digest_of_sources,
    find_project,
)
from host.board.contents import Contents
from host.board.upload import Uploaded, upload
from host.board.verify import Verified, verify
from host.board.write import DEFAULT_BAUD, require_esptool, write
from host.errors import HostError, LinkError, UsageError
from host.link.client import Device, Refused, Status
from host.link.transports import SIMULATED, Transport, open_port, ports

_STAMP = ".pio/host-flash.json"
_SIMULATED_BOARD = "a simulated board"
_SOON_S = 0.7
_BOOT_S = 4.0  # for a board that restarts by itself
_HANDS_S = 180.0  # for a jumper and a button
_REOPEN_S = 5.0
_PRESS_RST = "Take the jumper off IO0 and press RST: waiting for the board's program ..."


@dataclass(frozen=True)
class _Plan:
    package: Path
    contents: Contents
    port: str
    baud: int
    project: Path | None  # None: the board has its program built in
    environment: str
    flash_baud: int
    force: bool
    remove_old: bool
    say: Callable[[str], None]


@dataclass(frozen=True)
class Flashed:
    """What was done. `written` counts images; an empty `skipped` means that nothing was."""

    port: str
    skipped: tuple[str, ...]
    written: int
    uploaded: Uploaded
    verified: Verified


def flash(
    package: Path,
    port: str | None,
    baud: int,
    *,
    sim_dir: Path | None = None,
    dry_run: bool = False,
    project: Path | None = None,
    environment: str = "esp32cam",
    positions: int = 8,
    flash_baud: int = DEFAULT_BAUD,
    force: bool = False,
    remove_old: bool = False,
    say: Callable[[str], None] = ui.say,
) -> Flashed | None:
    """Brings program and package onto a board, and verifies it.

    Args:
        package: The package's folder.
        port: Of the board; the only USB serial port where omitted.
        baud: Bits a second of the link.
        sim_dir: State folder of the simulated board.
        dry_run: Say what would be done, and do nothing.
        project: The checkout with platformio.ini; found where omitted.
        environment: Of platformio.ini.
        positions: To verify.
        flash_baud: Bits a second while the flash is written.
        force: Build and write even where nothing changed.
        remove_old: First remove packages from the card that are not the current one.
        say: Called with each line about a step.

    Returns:
        What was done; None after a dry run.

    Raises:
        ToolError: PlatformIO, its toolchain or esptool is missing or fails.
        LinkError: The board cannot be reached.
        CheckFailed: The board computes something else than the reference.
    """
    chosen = port or only_port()
    contents = Contents.of(package)
    root = None if _has_its_program(chosen, baud) else find_project(project)
    plan = _Plan(
        package, contents, chosen, baud, root, environment, flash_baud, force, remove_old, say
    )
    for line in announcement(plan):
        say(line)
    if dry_run:
        for line in _would(plan, positions):
            say(line)
        say("Nothing was done: --dry-run.")
        return None
    if root is None:
        skipped, written = ["headers", "build", "write"], 0
        say("1-3/5 headers, build, write: skipped, this board has its program built in")
    else:
        skipped, written = _write_program(plan, root)
    with Device(_line_to(plan, sim_dir, is_fresh=written > 0)) as device:
        try:
            with ui.progress("upload", contents.size) as advance:
                done = upload(
                    device, contents, progress=advance, there=advance.there, say=say,
                    remove_old=remove_old,
                )  # fmt: skip
        except Refused as exc:
            raise _another_program(exc, "write" in skipped and root is not None) from exc
        say(f"4/5 upload: {done.sentence()}")
        if not done.files:
            skipped.append("upload")
        from host.package import Package

        checked = verify(device, Package.open(package, verify=False), positions=positions)
    say(f"5/5 verify: {checked.sentence()}")
    return Flashed(chosen, tuple(skipped), written, done, checked)


def announcement(plan: _Plan) -> list[str]:
    """What will be overwritten, and where, in lines."""
    lines = []
    if plan.project is not None:
        lines.append(
            f"This writes the board's program over what the board on {plan.port} has in its flash,"
        )
        lines.append(f"  built from {plan.project} ({plan.environment});")
    card = f"/tllm/{plan.contents.folder}/ on its card ({ui.size_text(plan.contents.size)})"
    lines.append(f"{'then' if lines else 'This writes'} {card}, and makes it the current model.")
    lines.append(
        "Models on the card that are neither this one nor the current one are removed."
        if plan.remove_old
        else "Other files and models on the card stay."
    )
    return lines


def only_port() -> str:
    """The one USB serial port of this computer.

    Raises:
        UsageError: There is none, or more than one.
    """
    found = [name for name, _ in ports()]
    if not found:
        raise UsageError(
            "No serial port is there",
            "Plug the board's adapter in, or use `-p sim` for the simulated board",
        )
    if len(found) > 1:
        raise UsageError(f"There are several ports: {', '.join(found)}", "Choose one with -p")
    return found[0]


def _has_its_program(port: str, baud: int) -> bool:
    """Whether a simulated board is at the other end, which esptool cannot write to.

    Raises:
        LinkError: The port cannot be opened.
    """
    if port == SIMULATED:
        return True
    line = open_port(port, baud)
    try:
        may_be = "://" in port or port.startswith(("/dev/pts/", "/dev/ttys"))
        if not may_be or not _answers(line):
            return False
        return Device(line).info().get("board") == _SIMULATED_BOARD
    finally:
        line.close()


def _answers(line: Transport) -> bool:
    """Whether the kit's program runs, which may still be booting."""
    if boot.listen(line, _SOON_S).answered:
        return True
    return not boot.is_boot_loader(line) and boot.listen(line, _BOOT_S).answered


# --- the board's program --------------------------------------------------------------------------


@dataclass
class _Past:
    """What was built and written before, as `_STAMP` keeps it."""

    sources: str = ""
    configuration: str = ""  # as the build left it
    images: tuple[Image, ...] = ()
    digest: str = ""  # of the images
    written: dict[str, str] | None = None  # port: digest of the images it got last

    @staticmethod
    def read(project: Path) -> _Past:
        """Reads it; an empty one where there is none or it is no such thing."""
        try:
            value: Any = json.loads((project / _STAMP).read_text(encoding="utf-8"))
            images = tuple(Image(int(at), Path(path)) for at, path in value["images"])
            written = {str(port): str(digest) for port, digest in value["written"].items()}
            return _Past(
                str(value["sources"]), str(value["configuration"]), images, str(value["digest"]),
                written,
            )  # fmt: skip
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return _Past()

    def save(self, project: Path) -> None:
        """Writes it.

        Raises:
            HostError: It cannot be written.
        """
        from host.atomic import write_file, writing

        value = {
            "sources": self.sources,
            "configuration": self.configuration,
            "images": [[image.offset, str(image.path)] for image in self.images],
            "digest": self.digest,
            "written": self.written or {},
        }
        path = project / _STAMP
        with writing(path.parent):
            path.parent.mkdir(exist_ok=True)
        write_file(path, json.dumps(value).encode())

    def is_built(self, sources: str, configuration: str) -> bool:
        """Whether these were built, and the images are as the build left them."""
        is_same = (self.sources, self.configuration) == (sources, configuration)
        return bool(self.images) and is_same and self.digest == _digest(self.images)

    def is_on(self, port: str) -> bool:
        """Whether these images went to that port last."""
        return (self.written or {}).get(port) == self.digest


def _digest(images: Sequence[Image]) -> str:
    digest = hashlib.sha256()
    with contextlib.suppress(OSError):
        for image in images:
            digest.update(f"{image.offset}\0".encode())
            digest.update(hashlib.sha256(image.path.read_bytes()).digest())
        return digest.hexdigest()
    return "an image is missing"


def _header_of(plan: _Plan, project: Path) -> tuple[Path, bytes]:
    from host.headers import HEADER, render_header
    from host.package import Package

    text = render_header(Package.open(plan.package, verify=False).model)
    return project / HEADER_FOLDER / HEADER, text.encode("ascii")


def _write_program(plan: _Plan, project: Path) -> tuple[list[str], int]:
    """Steps 1 to 3; returns which were skipped, and how many images were written."""
    from host.headers import generate_headers

    require_esptool()
    skipped = []
    header, text = _header_of(plan, project)
    is_old = header.is_file() and header.read_bytes() == text
    generate_headers(plan.package, header.parent)
    plan.say(f"1/5 headers: {'skipped, unchanged: ' if is_old else ''}{header}")
    if is_old:
        skipped.append("headers")

    sources = digest_of_sources(project, plan.environment, header, text)
    past = _Past.read(project)
    configuration = digest_of_configuration(project, plan.environment)
    if past.is_built(sources, configuration) and not plan.force:
        skipped.append("build")
        plan.say("2/5 build: skipped, nothing changed since the last")
    else:
        plan.say("2/5 build: PlatformIO (the first time it fetches its toolchain: minutes)")
        images = tuple(build(project, plan.environment, ui.note))
        configuration = digest_of_configuration(project, plan.environment)
        past = _Past(sources, configuration, images, _digest(images), past.written)
        past.save(project)
        plan.say(f"2/5 build: {images[-1].path}")

    if past.is_on(plan.port) and not plan.force and _runs_this_version(plan.port, plan.baud):
        skipped.append("write")
        plan.say("3/5 write: skipped, the board runs this program")
        return skipped, 0
    write(plan.port, past.images, plan.flash_baud)
    past.written = {**(past.written or {}), plan.port: past.digest}
    past.save(project)
    where = ", ".join(f"{image.path.name} at {image.offset:#x}" for image in past.images)
    plan.say(f"3/5 write: {where}: written and compared")
    return skipped, len(past.images)


def _would(plan: _Plan, positions: int) -> list[str]:
    """What a dry run says of each step. It asks the board nothing."""
    last = [
        f"4/5 upload: what of {len(plan.contents.files)} files the card has not, at most "
        f"{ui.size_text(plan.contents.size)}",
        f"5/5 verify: {positions} positions",
    ]
    if plan.project is None:
        return ["1-3/5 headers, build, write: skipped, this board has its program built in", *last]
    header, text = _header_of(plan, plan.project)
    is_old = header.is_file() and header.read_bytes() == text
    past = _Past.read(plan.project)
    is_built = not plan.force and past.is_built(
        digest_of_sources(plan.project, plan.environment, header, text),
        digest_of_configuration(plan.project, plan.environment),
    )
    images = ", ".join(f"{image.path.name} at {image.offset:#x}" for image in past.images)
    if is_built and past.is_on(plan.port):
        images += "; skipped if the board answers, since it got them last"
    return [
        f"1/5 headers: {'skipped, unchanged: ' if is_old else ''}{header}",
        "2/5 build: " + ("skipped, unchanged" if is_built else f"pio run -e {plan.environment}"),
        f"3/5 write: {images if is_built else 'what the build makes'}",
        *last,
    ]


def _runs_this_version(port: str, baud: int) -> bool:
    try:
        with Device(open_port(port, baud), patience=2.0) as device:
            return str(device.info().get("version")).endswith(f" {__version__}")
    except HostError:
        return False


def _another_program(refused: Refused, was_skipped: bool) -> HostError:
    """What to do where the board that was to run this program already runs another's."""
    if was_skipped and refused.status == Status.OTHER_MODEL:
        return LinkError(
            "The board on this port runs a program for another model", "Write it with --force"
        )
    return refused


# --- from the boot loader to the program ----------------------------------------------------------


def _line_to(plan: _Plan, sim_dir: Path | None, *, is_fresh: bool) -> Transport:
    """The line to a running program; a board that was just written may need hands for that.

    Raises:
        LinkError: It does not come.
    """
    if not is_fresh:
        return open_port(plan.port, plan.baud, sim_dir=sim_dir)
    line = _reopen(plan.port, plan.baud)
    try:
        if _answers(line):
            return line
        ui.note(_PRESS_RST)
        heard = _wait(line, plan.baud)
    except BaseException:
        line.close()
        raise
    if heard.answered:
        return line
    line.close()
    raise boot.explain(heard.said, plan.baud) or LinkError(
        "The board's flash is written, but its program does not answer",
        "Take the jumper off IO0, press RST and run this again; look with `host doctor`",
    )


def _wait(line: Transport, baud: int) -> boot.Heard:
    """Waits for the program, and says each new thing that the board's own words mean."""
    end, said, told = line.now() + _HANDS_S, b"", ""
    while line.now() < end:
        heard = boot.listen(line, 1.0)
        if heard.answered:
            return heard
        said = (said if not heard.said else heard.said)[-(1 << 14) :]
        trouble = boot.explain(heard.said, baud)
        if trouble is not None and str(trouble) != told:
            told = str(trouble)
            ui.note(told)
    return boot.Heard(False, said)


def _reopen(port: str, baud: int) -> Transport:
    """Opens a port that may be gone for a moment, as boards with USB of their own are."""
    import time

    end = time.monotonic() + _REOPEN_S
    while True:
        try:
            return open_port(port, baud)
        except LinkError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.2)
