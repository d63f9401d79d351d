"""`host simulate`: the simulated board behind a pseudo-terminal or a TCP port."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from host.board import ui
from host.errors import InputError, ToolError, explain_os_error
from host.link.transports import card_of

_ADDRESS = re.compile(r"socket://\S+|/dev/\S+")


def command(card: Path, options: Sequence[str] = ()) -> list[str]:
    """The command line that starts the simulated board on a card's folder.

    Raises:
        ToolError: The simulated board has not been built.
        HostError: The card's folder cannot be made.
    """
    from host.resources import simulator

    executable = os.environ.get("TLLM_SIM") or str(simulator())
    try:
        card.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise explain_os_error(exc, card) from exc
    return [executable, "--card", str(card), *options]


def prepare_card(package: str | None, card: Path | None, sim_dir: Path | None) -> Path:
    """The folder that is to be the card, with the package on it that the user asks for.

    A package that is named goes onto the card. With neither a package nor a card named, the one
    made last goes onto the simulated board's own card if that one is empty.

    Args:
        package: What the user wrote.
        card: A folder of the user's choice.
        sim_dir: State folder of the simulated board.

    Raises:
        HostError: There is no such package, or it does not fit.
    """
    from host.board.card import read_slot_fingerprint, write_card
    from host.board.contents import Contents
    from host.models import resolve_package

    folder = card or card_of(sim_dir)
    is_empty = card is None and read_slot_fingerprint(folder) is None
    if package is not None:
        write_card(folder, Contents.of(resolve_package(package)))
    elif is_empty:
        with contextlib.suppress(InputError):
            write_card(folder, Contents.of(resolve_package(None)))
    return folder


def simulate(card: Path, options: Sequence[str] = ()) -> int:
    """Runs the simulated board until it ends or Ctrl-C; returns its exit code.

    Args:
        card: The folder that is its card.
        options: Of ``tllm-sim``; without one of the line, ``--pty``.
    """
    if not {"--tcp", "--pty", "--stdio", "--size"} & set(options):
        options = ["--pty", *options]
    try:
        process = subprocess.Popen(command(card, options), stdout=subprocess.PIPE, text=True)
    except OSError as exc:
        raise ToolError(f"The simulated board does not start: {exc}") from exc
    assert process.stdout is not None
    try:
        for line in process.stdout:
            ui.say(line.rstrip())
            if match := _ADDRESS.search(line):
                ui.note(
                    f"Talk to it with `host chat -p {match[0]}` or any terminal program; "
                    "Ctrl-C ends it."
                )
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
