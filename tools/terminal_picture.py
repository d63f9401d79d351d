"""Draws what a command prints as an SVG picture of a terminal.

python -m tools.terminal_picture docs/demo.svg host demo
"""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from host.atomic import write_file

_COLUMNS = 110
_THEME = TerminalTheme((13, 17, 23), (230, 237, 243), [(0, 0, 0)] * 8)

# rich's own frame loads a font from the network; a picture in a repository must not.
_FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 20 {width} {height}" xml:space="preserve">
<style>
.{unique_id}-matrix {{
  font: {char_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre;
}}
{styles}
</style>
<defs>{lines}<clipPath id="{unique_id}-clip-terminal">
<rect width="{terminal_width}" height="{terminal_height}"/></clipPath></defs>
<rect y="20" width="{width}" height="{height}" rx="8" fill="#0d1117"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def draw(command: str, printed: str) -> str:
    """The SVG of a terminal in which `command` was typed and `printed` came."""
    console = Console(file=io.StringIO(), record=True, width=_COLUMNS, highlight=False)
    console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
    console.print(Text.from_ansi(printed.rstrip()))
    return console.export_svg(theme=_THEME, code_format=_FRAME, unique_id="terminal")


def main(arguments: list[str]) -> int:
    """Runs the command and writes the picture; what it printed on stderr is in it too."""
    if len(arguments) < 2:
        print("terminal_picture: name the picture and the command to draw.", file=sys.stderr)
        return 2
    path, command = arguments[0], arguments[1:]
    run = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if run.returncode:
        print(f"terminal_picture: {command[0]} failed: {run.stdout.strip()}", file=sys.stderr)
        return 2
    write_file(Path(path), draw(shlex.join(command), run.stdout).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
