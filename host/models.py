"""What a MODEL or PACKAGE on the command line means."""

from __future__ import annotations

import os
import re
from pathlib import Path

from host.atomic import write_file, writing
from host.errors import InputError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def bundled_models() -> dict[str, Path]:
    """The checkpoints that come with the kit: name to folder."""
    package = Path(__file__).resolve().parent
    folder = package / "_weights"
    if not folder.is_dir():
        folder = package.parent / "weights"
    return {p.parent.name: p.parent for p in sorted(folder.glob("*/config.json"))}


def resolve_model(model: str | None) -> Path:
    """Finds a checkpoint: a folder or file, a bundled model's name, or a hub id.

    Args:
        model: What the user wrote; the bundled model where omitted.

    Returns:
        A Hugging Face folder or a llama2.c ``.bin``.

    Raises:
        InputError: There is no such model, it is a package, or the hub does not give it.
    """
    bundled = bundled_models()
    if model is None:
        if not bundled:
            raise InputError(
                "No model came with this installation",
                "Name one: a Hugging Face folder, a llama2.c .bin or a hub id",
            )
        return next(iter(bundled.values()))
    path = _path_of(model)
    if path.exists():
        if is_package(path):
            raise InputError(
                f"{model} is a package, which `host quantize` has made already",
                "Name the checkpoint that it was made from",
            )
        return path
    name = model.removeprefix("weights/").rstrip("/")
    if name in bundled:
        return bundled[name]
    if _HUB_ID.fullmatch(model) and not _is_like_a_path(model):
        from host.checkpoint.huggingface import fetch_from_hub

        return fetch_from_hub(model)
    known = ", ".join(bundled)
    raise InputError(
        f"There is no model {model}",
        "Name a Hugging Face folder, a llama2.c .bin or a hub id"
        + (f", or a bundled one: {known}" if known else ""),
    )


def name_of(model: Path) -> str:
    """The name that a checkpoint's package gets."""
    if model.is_file():
        return model.stem
    if model.parent.name == "snapshots":  # the hub's cache: models--OWNER--NAME/snapshots/REVISION
        return model.parent.parent.name.rpartition("--")[2]
    return model.resolve().name


def default_output(model: Path) -> Path:
    """Where `host quantize` puts a package: beside the bundled models in a checkout, else here."""
    weights = Path("weights")
    in_checkout = weights.is_dir() and Path("platformio.ini").is_file()
    return (weights if in_checkout else Path()) / f"{name_of(model)}-int8"


def is_package(path: Path) -> bool:
    """Whether a folder is a package, whole or not."""
    return (path / "descriptor.bin").is_file() or (
        (path / "manifest.json").is_file() and (path / "model_config.json").is_file()
    )


def remember_package(path: Path) -> None:
    """Makes a package the one that commands take when none is named.

    Raises:
        HostError: It cannot be noted.
    """
    from host.link.transports import state_dir

    folder = state_dir()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "package", os.fsencode(path.resolve()) + b"\n")


def resolve_package(package: str | None) -> Path:
    """Finds a package: a folder, or the one that `host quantize` made last.

    Raises:
        InputError: There is none, or it is a checkpoint.
    """
    if package is None:
        from host.link.transports import state_dir

        try:
            noted = (state_dir() / "package").read_bytes()
            last = Path(os.fsdecode(noted.removesuffix(b"\n")))
        except OSError:
            raise InputError("There is no package yet", "Make one with `host quantize`") from None
        if not is_package(last):
            raise InputError(
                f"The package made last, {last}, is not there any more",
                "Make one with `host quantize`, or name one",
            )
        return last
    path = _path_of(package)
    if path.is_dir() and not is_package(path) and (path / "config.json").is_file():
        raise InputError(
            f"{package} is a model, not a package", f"Make one with `host quantize {package}`"
        )
    if path.is_file() and path.suffix in {".bin", ".safetensors"}:
        raise InputError(
            f"{package} is a file, not a package", f"Make one with `host quantize {package}`"
        )
    if not path.is_dir():
        raise InputError(f"There is no package {package}", "Make one with `host quantize`")
    return path


def _path_of(name: str) -> Path:
    """A name with a ~ is a user's folder, if there is such a user."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser() raises for no user


def _is_like_a_path(model: str) -> bool:
    return model.endswith((".bin", ".safetensors")) or os.sep * 2 in model
