"""`host flash`: headers, firmware, package and a check; what is unchanged is skipped."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host.board import ui
from host.board.contents import Contents
from host.board.upload import upload
from host.board.verify import verify
from host.errors import HostError, InputError, LinkError, ToolError, UsageError
from host.link.client import Device
from host.link.transports import SIMULATED, open_port, ports

_SOURCES = ("firmware/src", "firmware/lib")
_BUILD_FILES = ("platformio.ini", "CMakeLists.txt", "sdkconfig.defaults", "firmware/partitions.csv")
_HEADERS = "firmware/src"
_STAMP = ".pio/host-flash.json"
_FLASH_BAUD = 460800
_APPLICATION = "firmware.bin"


@dataclass(frozen=True)
class _Plan:
    package: Path
    contents: Contents
    port: str
    project: Path | None  # None: the program is not ours to write
    environment: str


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
) -> None:
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

    Raises:
        ToolError: PlatformIO, its toolchain or esptool is missing or fails.
        LinkError: The board cannot be reached.
        CheckFailed: The board computes something else than the reference.
    """
    chosen = port or only_port()
    contents = Contents.of(package)
    writable = not _has_its_program(chosen)
    root = find_project(project) if writable else None
    plan = _Plan(package, contents, chosen, root, environment)
    for line in announcement(plan):
        ui.say(line)
    if dry_run:
        ui.say("Nothing was done: --dry-run.")
        return
    if root is None:
        ui.say("1-3/5 headers, build, write: skipped, this board has its program built in")
    else:
        _write_program(plan, root)
    with Device(open_port(chosen, baud, sim_dir=sim_dir)) as device:
        with ui.progress("upload", contents.size) as advance:
            done = upload(device, contents, progress=advance)
        ui.say(f"4/5 upload: {done.sentence()}")
        from host.package import Package

        checked = verify(device, Package.open(package, verify=False), positions=positions)
    ui.say(f"5/5 verify: {checked.sentence()}")


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
    lines.append("Other files and models on the card stay.")
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


def _has_its_program(port: str) -> bool:
    """Whether a simulated board is at the other end, which esptool cannot write to."""
    return port == SIMULATED or "://" in port or port.startswith(("/dev/pts/", "/dev/ttys"))


def find_project(project: Path | None) -> Path:
    """The checkout that holds the firmware.

    Raises:
        InputError: The folder named is none.
        ToolError: None is found.
    """
    if project is not None:
        if not _is_project(project):
            raise InputError(f"{project} has no platformio.ini and firmware/", "Name a checkout")
        return project.resolve()
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if _is_project(folder):
            return folder
    raise ToolError(
        "The firmware's sources are not here",
        "Run this in a checkout of the kit, or name one with --project",
    )


def _is_project(folder: Path) -> bool:
    return (folder / "platformio.ini").is_file() and (folder / "firmware" / "src").is_dir()


def _write_program(plan: _Plan, project: Path) -> None:
    from host.headers import generate_headers

    header = generate_headers(plan.package, project / _HEADERS)
    ui.say(f"1/5 headers: {header}")
    stamp = stamp_of(project, plan.environment)
    past = _read_stamp(project)
    if past.get("built") == stamp and _images_exist(past.get("images")):
        images = [(int(at), Path(path)) for at, path in past["images"]]
        ui.say("2/5 build: skipped, nothing changed since the last")
    else:
        images = build(project, plan.environment)
        past = {"built": stamp, "images": [[at, str(path)] for at, path in images], "written": {}}
        _save_stamp(project, past)
        ui.say(f"2/5 build: {images[-1][1]}")
    if past.get("written", {}).get(plan.port) == stamp and _answers(plan.port):
        ui.say("3/5 write: skipped, the board runs this program")
        return
    write(plan.port, images)
    past.setdefault("written", {})[plan.port] = stamp
    _save_stamp(project, past)
    ui.say(f"3/5 write: {len(images)} images written and compared")


def stamp_of(project: Path, environment: str) -> str:
    """A digest of everything the program is built from, the generated header included."""
    digest = hashlib.sha256(environment.encode())
    files = [path for folder in _SOURCES for path in (project / folder).rglob("*")]
    files += [project / name for name in _BUILD_FILES]
    for path in sorted(path for path in files if path.is_file()):
        digest.update(f"{path.relative_to(project)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read_stamp(project: Path) -> dict[str, Any]:
    try:
        value = json.loads((project / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _save_stamp(project: Path, value: dict[str, Any]) -> None:
    from host.atomic import write_file

    (project / _STAMP).parent.mkdir(exist_ok=True)
    write_file(project / _STAMP, json.dumps(value).encode())


def _images_exist(images: object) -> bool:
    return isinstance(images, list) and bool(images) and all(Path(p).is_file() for _, p in images)


def build(project: Path, environment: str) -> list[tuple[int, Path]]:
    """Builds the firmware with PlatformIO; returns flash offsets and files, the program last.

    Raises:
        ToolError: PlatformIO is missing, cannot fetch its toolchain, or the build fails.
    """
    _pio(["run", "-e", environment], project, quiet=False)
    said = _pio(["project", "metadata", "-e", environment, "--json-output"], project)
    extra = json.loads(said)[environment]["extra"]
    images = [(int(i["offset"], 16), Path(i["path"])) for i in extra.get("flash_images", [])]
    program = project / ".pio" / "build" / environment / _APPLICATION
    images.append((int(extra.get("application_offset", "0x10000"), 16), program))
    missing = [path for _, path in images if not path.is_file()]
    if missing:
        raise ToolError(f"The build left no {missing[0]}", f"Run `pio run -e {environment}`")
    return images


def _pio(arguments: Sequence[str], project: Path, *, quiet: bool = True) -> str:
    command = [sys.executable, "-m", "platformio", *arguments, "-d", str(project)]
    if importlib.util.find_spec("platformio") is None:
        raise ToolError(
            "PlatformIO, which builds the firmware, is not installed",
            "Run `pip install 'esp32-tinyllm[flash]'`",
        )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not quiet:
        ui.note(done.stdout.rstrip()[-2000:])
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        why = said[-1].strip() if said else f"exit code {done.returncode}"
        raise ToolError(
            f"PlatformIO fails: {why}",
            "Its toolchain is fetched by the first build and needs the network once: run "
            f"`pio run -d {project}` to see it all",
        )
    return done.stdout


def write(port: str, images: Sequence[tuple[int, Path]]) -> None:
    """Writes images to the board's flash with esptool, compares them and restarts the board.

    Raises:
        ToolError: esptool is missing.
        LinkError: The board is not in its boot loader, or writing failed.
    """
    try:
        esptool = importlib.import_module("esptool")
        commands = importlib.import_module("esptool.cmds")
    except ImportError:
        raise ToolError(
            "esptool, which writes the flash, is not installed",
            "Run `pip install 'esp32-tinyllm[flash]'`",
        ) from None
    open_port(port).close()  # says why a port cannot be opened better than esptool does
    try:
        with commands.detect_chip(port) as rom:
            stub = commands.run_stub(rom)
            stub.change_baud(_FLASH_BAUD)
            commands.attach_flash(stub)
            data = [(at, str(path)) for at, path in images]
            commands.write_flash(stub, data)
            commands.reset_chip(stub, "hard-reset")
    except (esptool.FatalError, OSError) as exc:
        raise LinkError(
            f"The board's flash could not be written: {exc}",
            "Connect IO0 to GND, press reset, and try again; afterwards take IO0 off and press "
            "reset once more",
        ) from exc


def _answers(port: str) -> bool:
    try:
        with Device(open_port(port), patience=2.0):
            return True
    except HostError:
        return False
