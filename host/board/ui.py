"""What the commands print: plain lines in a pipe, tables and progress on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Advance:
    """Moves a progress bar on. `there` does so by what was done before, which tells no speed."""

    def __init__(
        self,
        advance: Callable[[int], None] | None = None,
        there: Callable[[int], None] | None = None,
    ) -> None:
        self._advance, self._there = advance, there

    def __call__(self, count: int) -> None:
        """So much was done."""
        if self._advance is not None:
            self._advance(count)

    def there(self, count: int) -> None:
        """So much was done before."""
        if self._there is not None:
            self._there(count)


def say(text: str = "") -> None:
    """Prints a line of the result."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Prints a line that is not part of the result, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def show_json(value: Any) -> None:
    """Prints one JSON value on one line."""
    say(json.dumps(value, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; every column but the first is aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    made = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    console = Console(file=sys.stdout, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 120
    # Figures are never cut: a terminal that is too narrow wraps the lines.
    wide = console.options.update_width(1000)
    console.width = max(console.width, Measurement.get(console, wide, made).maximum)
    console.print(made)


@contextmanager
def progress(what: str, total: int, counts: str = "") -> Iterator[Advance]:
    """A bar with rate and time left; nothing where stderr is no terminal.

    Args:
        what: What goes on.
        total: Bytes, or whatever is counted.
        counts: What is counted, where it is not bytes.
    """
    if not sys.stderr.isatty():
        yield Advance()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount: list[ProgressColumn] = [DownloadColumn(), TransferSpeedColumn()]
    if counts:
        amount = [MofNCompleteColumn(), TextColumn(counts)]
    columns = [TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def there(count: int) -> None:
            # A new start of the clock that the rate and the time left are taken from.
            bar.reset(task, completed=int(bar.tasks[0].completed) + count, total=total)

        yield Advance(lambda count: bar.advance(task, count), there)


def size_text(count: float) -> str:
    """Bytes as people read them, decimal units."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
