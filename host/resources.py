"""Where the built engine and the bundled models are, installed or in a checkout."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

from host.errors import InputError, ToolError

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


def bundled_models() -> list[Path]:
    """Returns the folders of the models that come with the kit, checkpoints or packages, by name.

    In a checkout that is not installed, those that a user put into weights/ are among them.
    """
    folder = _PACKAGE / "_weights"
    if not folder.is_dir():
        folder = _PACKAGE.parent / "weights"
    found = [*folder.glob("*/config.json"), *folder.glob("*/manifest.json")]
    return sorted({path.parent for path in found})


def bundled_model(name: str) -> Path:
    """Returns the folder of one model that comes with the kit.

    Raises:
        InputError: There is none of that name.
    """
    models = {path.name: path for path in bundled_models()}
    if name not in models:
        known = ", ".join(models) or "none"
        raise InputError(f"No bundled model is called {name}", f"These are there: {known}")
    return models[name]


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
