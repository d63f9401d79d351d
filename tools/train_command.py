"""What the training commands share: how they read a text, and how they end."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from host.errors import HostError, InputError, explain_os_error
from host.files import opened


def read_text(path: Path) -> str:
    """The whole of a UTF-8 text, its line ends as newlines.

    Raises:
        InputError: It cannot be read, or is not UTF-8.
    """
    with opened(path) as file:
        try:
            with io.TextIOWrapper(file, encoding="utf-8") as text:
                return text.read()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not valid UTF-8", "Name a UTF-8 text") from error


@contextmanager
def told(tool: str) -> Iterator[None]:
    """Turns an expected failure into its sentence on stderr and its exit code."""
    try:
        yield
    except BrokenPipeError:
        raise  # which typer ends quietly
    except (HostError, OSError) as error:
        failure = error if isinstance(error, HostError) else explain_os_error(error)
        print(f"{tool}: {failure}", file=sys.stderr)
        raise typer.Exit(int(failure.exit_code)) from error
