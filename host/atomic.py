"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from host.errors import OutputError, explain_os_error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the operating system's errors while a file is written into a sentence about it.

    Raises:
        HostError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, path) from error


def write_file(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, syncs it and renames it.

    A file that has the content already is left alone, so that what is built from it stays fresh.

    Raises:
        HostError: It cannot be written; what stood there before is untouched.
    """
    with writing(path):
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    with new_file(path) as file:
        file.write(data)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file with a temporary name beside the path that takes its place, synced, at the end.

    Raises:
        HostError: It cannot be written; what stood there before is untouched.
    """
    with writing(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def new_folder(path: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields a temporary folder beside the path that takes its place at the end.

    On any error it is removed, and what stood there before is untouched. The files in it are the
    caller's to sync.

    Args:
        path: What the folder shall be called; its parents are made where they are missing.
        may_replace: Whether a folder that is there already, and not empty, may go.

    Raises:
        OutputError: Something is in the way that may not be replaced.
        HostError: The folder cannot be made or renamed.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link at the end
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        _check_free(path, may_replace)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        with writing(path):
            temporary.chmod(0o777 & ~_umask())
            sync_folder(temporary)
            _check_free(path, may_replace)
            _swap(temporary, path)
            sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync_folder(path: Path) -> None:
    """Makes a folder's list of names last through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_free(path: Path, may_replace: Callable[[Path], bool]) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{path} is there and is no folder", "Choose another name")
    if path.is_dir() and any(path.iterdir()) and not may_replace(path):
        raise OutputError(
            f"{path} holds files that are not a package's, and would be replaced",
            "Choose another folder, or remove it first",
        )


def _swap(new: Path, path: Path) -> None:
    if not path.is_dir():
        new.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = aside / path.name
    try:
        path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            old.rename(path)
            raise
    finally:
        # An old folder that could not be put back stays where it is.
        if old.exists() and not path.exists():
            raise OutputError(f"{path} could not be replaced", f"What it held is in {old}")
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
