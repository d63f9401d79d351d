"""Opens what is to be read: regular files and nothing else.

A pipe would wait for a writer, a device may have no end, and opening a serial port resets a board;
so each is refused by name before it is opened, and seen once more after.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from host.errors import InputError, explain_os_error

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def opened(path: Path, buffering: int = -1) -> Iterator[BinaryIO]:
    """Opens a file for reading.

    Args:
        path: The file.
        buffering: As `open` has it.

    Raises:
        InputError: It cannot be opened or read, or is no regular file. An `OSError` of what the
            caller does with it becomes one, too.
    """
    try:
        _check(path, path.stat())
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(handle, "rb", buffering) as file:  # noqa: PTH123 - the handle is open
            _check(path, os.fstat(handle))
            yield file
    except OSError as error:
        raise explain_os_error(error, path) from error
    except ValueError as error:
        if "null byte" not in str(error):
            raise
        raise InputError(f"{str(path)!a} is no name of a file", "Check the name") from error


def read_file(path: Path, max_bytes: int, next_step: str) -> bytes:
    """Returns the whole of a file.

    Args:
        path: The file.
        max_bytes: A longer one is refused, and no more of it read.
        next_step: What the user can do about one that is too long.

    Raises:
        InputError: It cannot be read, is no regular file, or is too long.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, max_bytes) + 1)  # takes memory for as much as it is asked for
    if len(data) > max_bytes:
        raise InputError(f"{path} is longer than {max_bytes} bytes", next_step)
    return data


def is_file(path: Path) -> bool:
    """Returns whether something that is no folder has this name.

    Raises:
        InputError: The system does not say, because a folder on the way may not be entered.
    """
    try:
        return path.exists() and not path.is_dir()
    except OSError as error:
        raise explain_os_error(error, path) from error


def _check(path: Path, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise InputError(f"{path} is a folder where a file is wanted", "Name a file")
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "no regular file")
        raise InputError(f"{path} is {what} where a file is wanted", "Name a file")
