"""Where the built engine is, installed or in a checkout."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

from host.errors import ToolError

DISTRIBUTION = "esp32-tinyllm"
_PACKAGE = Path(__file__).resolve().parent
_REBUILD = "Run `pip install .` in the checkout to build it"


def simulator() -> Path:
    """Returns the executable of the simulated board.

    Raises:
        ToolError: It has not been built.
    """
    return _native("tllm-sim")


def engine_library() -> Path:
    """Returns the shared library that holds the engine and the board's program.

    Raises:
        ToolError: It has not been built.
    """
    return _native("libtllm.dylib" if sys.platform == "darwin" else "libtllm.so")


def _native(name: str) -> Path:
    for folder in _native_folders():
        if (path := folder / name).is_file():
            return path
    raise ToolError(f"The engine's {name} is not built", _REBUILD)


def _native_folders() -> list[Path]:
    if chosen := os.environ.get("TLLM_NATIVE_DIR"):
        return [Path(chosen)]
    folders = [_PACKAGE / "_native"]
    try:
        # Run from a checkout, the package that Python finds is not the one that was built.
        installed = metadata.distribution(DISTRIBUTION).locate_file("host/_native")
        folders.append(Path(str(installed)))
    except metadata.PackageNotFoundError:
        pass
    return folders
