"""The failures a user is told about, and the exit codes they end with.

Whatever goes wrong in a foreseeable way is raised as a `HostError`. Its message is one sentence
that says what is wrong, and a second that says what to do next; the command line prints it on
stderr without a traceback. Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from pathlib import Path
from typing import ClassVar


class ExitCode(IntEnum):
    """What the process ends with."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    INTERRUPTED = 130
    UNREAD = 141
    """Nobody reads the output any more: what a shell says of a program that SIGPIPE ended."""


class HostError(Exception):
    """Root of all expected failures.

    Args:
        message: What is wrong, one sentence; its full stop is added where it is missing.
        next_step: What the user can do about it, one sentence, optional.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE

    def __init__(self, message: str, next_step: str = "") -> None:
        self.message = _sentence(message)
        self.next_step = _sentence(next_step)
        super().__init__(f"{self.message} {self.next_step}".strip())


class UsageError(HostError):
    """The command line asks for something that cannot be."""


class InputError(HostError):
    """A checkpoint, package, card or text that is missing, damaged or not supported."""


class OutputError(HostError):
    """A result that could not be written; what stood there before is untouched."""


class LinkError(HostError):
    """The board cannot be reached, or what it says is not the protocol."""


class BoardError(HostError):
    """The board was reached and refused, or reported a failure of its own."""


class ToolError(HostError):
    """A program that a command needs is missing or failed."""


class CheckFailed(HostError):
    """A check ran to its end and the answer is no: a mismatch, or it does not fit."""

    exit_code = ExitCode.CHECK_FAILED


_OS_ADVICE: dict[int, tuple[str, str]] = {
    errno.ENOENT: ("does not exist", "Check the name"),
    errno.EACCES: ("is not permitted", "Check who owns it and your rights to it"),
    errno.EPERM: ("is not permitted", "Check who owns it and your rights to it"),
    errno.EROFS: ("is on a read-only file system", "Choose another place"),
    errno.ENOSPC: ("does not fit: the disk is full", "Free some space, or choose another disk"),
    errno.EDQUOT: ("does not fit: your disk quota is used up", "Free some space"),
    errno.EFBIG: ("is larger than this file system allows", "Choose another disk"),
    errno.EBUSY: ("is in use by another program", "Close that program and try again"),
    errno.EAGAIN: ("is in use by another program", "Close that program and try again"),
    errno.EISDIR: ("is a folder where a file is wanted", "Name a file"),
    errno.ENOTDIR: ("is a file where a folder is wanted", "Name a folder"),
    errno.EEXIST: ("is there and is no folder", "Choose another name"),
    errno.ENOTEMPTY: ("is a folder that is not empty", "Choose another name, or remove it first"),
    errno.ENAMETOOLONG: ("is too long a name", "Choose a shorter one"),
    errno.ELOOP: ("is a link that leads nowhere", "Name the file itself"),
    errno.EIO: ("cannot be read or written: the device reports an error", "Check the device"),
    errno.ECONNREFUSED: ("refuses the connection", "Check that it runs and the port number"),
    errno.ENXIO: ("is not there any more", "Plug it in again"),
    errno.ENODEV: ("is not there any more", "Plug it in again"),
}

_OUTPUT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EEXIST}


def explain_os_error(exc: OSError, what: str | Path | None = None) -> HostError:
    """Turns an operating system's error into a sentence and a next step.

    Args:
        exc: What was caught; its ``errno`` and ``filename`` are read. pyserial's
            ``SerialException`` is an ``OSError`` too, with the ``errno`` of the failed open.
        what: What the user knows the thing as; the error's own file name where omitted.

    Returns:
        The error to raise, an `OutputError` where only writing can fail so, else an `InputError`.
        Raise it ``from exc``.
    """
    name = str(what or exc.filename or "The operating system's answer")
    if isinstance(exc, TimeoutError):
        return InputError(f"{name} does not answer", "Check that it runs and is connected")
    if exc.errno in _OS_ADVICE:
        wrong, advice = _OS_ADVICE[exc.errno]
        kind = OutputError if exc.errno in _OUTPUT_ERRNOS else InputError
        return kind(f"{name} {wrong}", advice)
    reason = exc.strerror or str(exc) or type(exc).__name__
    return InputError(f"{name} cannot be used: {reason}", "Check it and try again")


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."
