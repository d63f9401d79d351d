"""Gives PlatformIO its own tools without its package registry.

PlatformIO downloads SCons and Cppcheck from its registry the first time it builds or checks. Where
that cannot be reached, this lays both out as installed packages in a core folder: SCons from PyPI,
or the installed one, and the Cppcheck that is in PATH. Builds for the host and lx106 environments
then need no network; the esp32 ones still need Espressif's toolchain.

    python tools/pio_offline.py .pio/core
    PLATFORMIO_CORE_DIR=.pio/core pio run -e host
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

SCONS_REQUIREMENT = "scons==4.11.1"
SCONS_VERSION = "4.41101.0"
CPPCHECK_VERSION = "1.21100.0"

SCONS_MAIN = '''\
"""Starts the SCons that lies in this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import SCons.Script  # noqa: E402

SCons.Script.main()
'''

CPPCHECK_MAIN = """\
#!/bin/sh
exec "{program}" "$@"
"""


def main() -> None:
    """Lays out the packages in the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("core_dir", type=Path, help="what PLATFORMIO_CORE_DIR will be set to")
    packages = parser.parse_args().core_dir.resolve() / "packages"
    lay_out_scons(packages / "tool-scons")
    if program := shutil.which("cppcheck"):
        lay_out_cppcheck(packages / "tool-cppcheck", program)
    else:
        print("cppcheck is not in PATH: `pio check` will not work", file=sys.stderr)


def lay_out_scons(folder: Path) -> None:
    """Installs SCons from PyPI as PlatformIO's package tool-scons."""
    if is_laid_out(folder, SCONS_VERSION):
        return
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*command, "--target", str(folder), SCONS_REQUIREMENT], check=True)
    (folder / "scons.py").write_text(SCONS_MAIN, encoding="utf-8")
    declare(folder, "tool-scons", SCONS_VERSION)


def lay_out_cppcheck(folder: Path, program: str) -> None:
    """Presents an installed Cppcheck as PlatformIO's package tool-cppcheck."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    starter = folder / "cppcheck"
    starter.write_text(CPPCHECK_MAIN.format(program=program), encoding="utf-8")
    starter.chmod(0o755)
    declare(folder, "tool-cppcheck", CPPCHECK_VERSION)


def is_laid_out(folder: Path, version: str) -> bool:
    """Returns whether the package is there, whole, in this version: its record is written last."""
    try:
        record = json.loads((folder / ".piopm").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(record["version"] == version)


def declare(folder: Path, name: str, version: str) -> None:
    """Writes the two records that make a folder an installed package of PlatformIO's."""
    manifest = {"name": name, "version": version, "system": "*"}
    spec = {"owner": "platformio", "id": None, "name": name, "requirements": None, "uri": None}
    record = {"type": "tool", "name": name, "version": version, "spec": spec}
    (folder / "package.json").write_text(json.dumps(manifest), encoding="utf-8")
    partial = folder / ".piopm.partial"
    partial.write_text(json.dumps(record), encoding="utf-8")
    partial.replace(folder / ".piopm")


if __name__ == "__main__":
    main()
