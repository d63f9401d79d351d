"""The firmware's build by PlatformIO: where its sources are, what it makes, and where that goes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host.errors import InputError, ToolError

HEADER_FOLDER = "firmware/src"
_SOURCES = ("firmware/src", "firmware/lib")
_BUILD_FILES = ("platformio.ini", "CMakeLists.txt", "sdkconfig.defaults*", "firmware/*.csv")
_APPLICATION = "firmware.bin"
_OFFLINE = re.compile(r"HTTPClientError|InternetConnectionError|not connected to the Internet")


@dataclass(frozen=True)
class Image:
    """A file and where in the flash it goes."""

    offset: int
    path: Path


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


def digest_of_sources(project: Path, environment: str, header: Path, text: bytes) -> str:
    """A digest of everything the program is built from.

    Args:
        project: The checkout.
        environment: Of platformio.ini.
        header: The generated header, there or not.
        text: What it says, or would say.
    """
    found = [path for folder in _SOURCES for path in (project / folder).rglob("*")]
    found += [path for pattern in _BUILD_FILES for path in project.glob(pattern)]
    files = {path: path.read_bytes() for path in found if path.is_file()}
    files[header] = text
    digest = hashlib.sha256(environment.encode())
    for path, data in sorted(files.items()):
        digest.update(f"{path.relative_to(project)}\0".encode())
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def digest_of_configuration(project: Path, environment: str) -> str:
    """A digest of the configuration that PlatformIO made, or a user changed; "" for none."""
    made = _configuration(project, environment)
    return hashlib.sha256(made.read_bytes()).hexdigest() if made.is_file() else ""


def _configuration(project: Path, environment: str) -> Path:
    return project / f"sdkconfig.{environment}"


def build(project: Path, environment: str, say: Callable[[str], None]) -> list[Image]:
    """Builds the firmware with PlatformIO; returns its images, the program last.

    Args:
        project: The checkout.
        environment: Of platformio.ini.
        say: Called with each line that PlatformIO prints.

    Raises:
        ToolError: PlatformIO is missing, cannot fetch its toolchain, or the build fails.
    """
    if stale := _stale_configuration(project, environment):
        say(
            f"{stale.name} is older than sdkconfig.defaults*: delete it to have what changed there."
        )
    _pio(["run", "-e", environment], project, say)
    said = _pio(["project", "metadata", "-e", environment, "--json-output"], project, None)
    images = _images_of(said, project, environment)
    missing = [image.path for image in images if not image.path.is_file()]
    if missing:
        raise ToolError(f"The build left no {missing[0]}", f"Run `pio run -e {environment}`")
    return images


def _stale_configuration(project: Path, environment: str) -> Path | None:
    """PlatformIO keeps the configuration that it made, whatever it was made from changes."""
    made = _configuration(project, environment)
    defaults = [path.stat().st_mtime for path in project.glob("sdkconfig.defaults*")]
    is_stale = made.is_file() and made.stat().st_mtime < max(defaults, default=0)
    return made if is_stale else None


def _images_of(metadata: str, project: Path, environment: str) -> list[Image]:
    """The images that PlatformIO's metadata names. It gives offsets as text and as numbers."""
    try:
        said: Any = json.loads(metadata.strip().splitlines()[-1])
        extra = said[environment]["extra"]
        images = [Image(int(str(i["offset"]), 0), Path(i["path"])) for i in extra["flash_images"]]
        application = int(str(extra["application_offset"]), 0)
    except (ValueError, LookupError, TypeError) as exc:
        raise ToolError(
            f"PlatformIO does not say where the images of {environment} go",
            f"Choose an environment with an ESP32 (-e), or look at `pio project metadata -e "
            f"{environment}`",
        ) from exc
    program = project / ".pio" / "build" / environment / _APPLICATION
    return [*images, Image(application, program)]


def _command() -> list[str]:
    if importlib.util.find_spec("platformio") is not None:
        return [sys.executable, "-m", "platformio"]
    if pio := shutil.which("pio"):
        return [pio]
    raise ToolError(
        "PlatformIO, which builds the firmware, is not installed",
        "Run `pip install 'esp32-tinyllm[flash]'`",
    )


def _pio(arguments: Sequence[str], project: Path, say: Callable[[str], None] | None) -> str:
    """Runs PlatformIO; returns what it prints, each line of which `say` gets at once."""
    command = [*_command(), *arguments, "-d", str(project)]
    errors = subprocess.STDOUT if say is not None else subprocess.PIPE
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                lines, complaints = _read(process, say)
            except BaseException:
                process.terminate()
                raise
    except OSError as exc:
        raise ToolError(
            f"PlatformIO does not start: {exc.strerror}",
            "Run `pip install 'esp32-tinyllm[flash]'`",
        ) from exc
    if process.returncode != 0:
        raise _failure([*lines, *complaints], process.returncode, project, arguments)
    return "\n".join(lines)


def _read(
    process: subprocess.Popen[str], say: Callable[[str], None] | None
) -> tuple[list[str], list[str]]:
    """What a program prints: lines of its output, and of its errors where they are apart."""
    if say is None:
        output, errors = process.communicate()
        return output.splitlines(), errors.splitlines()
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        say(lines[-1])
    return lines, []


def _failure(lines: list[str], code: int, project: Path, arguments: Sequence[str]) -> ToolError:
    if any(_OFFLINE.search(line) for line in lines):
        return ToolError(
            "PlatformIO cannot fetch the ESP32's platform and toolchain: its registry is not "
            "reached",
            "The first build needs the network; behind a proxy set HTTPS_PROXY. Then run this "
            "again",
        )
    said = [line.strip() for line in lines if line.strip(" =-\t")]
    errors = [line for line in said if re.search(r"\berror\b", line, re.IGNORECASE)]
    why = (errors or said or [f"exit code {code}"])[-1 if not errors else 0]
    again = f"pio {arguments[0]} -d {project} {' '.join(arguments[1:3])}"
    return ToolError(f"PlatformIO fails: {why}", f"`{again}` shows it all")
