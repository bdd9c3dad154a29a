"""What commands print: one JSON document for programs, tables for a person at a terminal, plain lines else."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from semel.errors import SemelError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Between two columns.
_GAP = 2
# So much room is left for what is folded, or the table is too narrow to be read.
_PROSE_LEAST = 24
# Reading that is done so soon needs no line; what lasts longer has one now and then.
SILENT_S = 2.0
SAID_EVERY_S = 10.0


class Unwritten(SemelError):
    """Standard output or a file cannot be written."""


def say(text: str) -> None:
    """A line of the result, on standard output. Unwritten."""
    rest()
    try:
        typer.echo(text)
    except OSError as exc:
        settle()
        raise Unwritten(f"standard output cannot be written ({exc.strerror})") from exc


def settle() -> None:
    """What a stream still holds is written, or dropped if that cannot be: the interpreter would make a code of its own of it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # full, or closed, or not there
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def document(value: Any) -> None:
    """The one JSON document of `--json`. Unwritten."""
    say(json.dumps(value))


def shown(value: Any, indent: int | None = None) -> str:
    """A value as JSON in which nothing can steer a terminal: what is not printable stays escaped."""
    return plain(json.dumps(value, ensure_ascii=False, indent=indent))


def plain(text: str) -> str:
    """A text in which nothing can steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def rows(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A table at a terminal, or its rows cell below cell where that is too narrow; tabs between the columns and no headings where
    something else reads."""
    if not sys.stdout.isatty():
        for line in lines:
            say("\t".join(line))
        return
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    cells = [tuple(line) for line in lines]
    widths = [max(map(cell_len, column)) for column in zip(headings, *cells, strict=True)]
    console = Console()
    # A name is wanted whole and in one piece, to be given to the next command. Only the last column is prose, and may be folded.
    if sum(widths[:-1]) + _GAP * (len(widths) - 1) + min(widths[-1], _PROSE_LEAST) > console.width:
        label = max(map(cell_len, headings))
        for nth, line in enumerate(cells):
            if nth:
                say("")
            for heading, cell in zip(headings, line, strict=True):
                say(f"{heading:<{label}}  {cell}")
        return
    columns = [Column(heading, no_wrap=True) for heading in headings[:-1]]
    table = Table(*columns, Column(headings[-1], overflow="fold"), box=None, pad_edge=False)
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    console.print(table)


def tell(message: str) -> None:
    """A sentence for the person, on standard error; where nobody can hear it, nothing."""
    rest()
    with contextlib.suppress(OSError):
        typer.echo(message, err=True)


@contextmanager
def bar() -> Generator[Callable[[str, int, int], None]]:
    """Progress on standard error, a bar at a terminal, else a line now and then of what lasts: phase, how much is done, of how
    much."""
    if not sys.stderr.isatty():
        last_phase, next_s = "", 0.0

        def line(phase: str, done: int, total: int) -> None:
            nonlocal last_phase, next_s
            now = time.monotonic()
            if phase != last_phase:
                last_phase, next_s = phase, now + SILENT_S
            if now >= next_s:
                next_s = now + SAID_EVERY_S
                tell(f"reading {phase}: {done:,} of {total:,} offsets")

        yield line
        return
    try:
        yield _bar.tell
    finally:
        _bar.rest()


class _Bar:
    """There from the first that is read on; taken away for whatever else is written, and back with the next that is read."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def tell(self, phase: str, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._progress is None or self._task is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(phase)
            self._progress.start()
        self._progress.update(self._task, description=phase, completed=done, total=total)

    def rest(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None


_bar = _Bar()


def rest() -> None:
    """Take the bar of progress off the terminal: it draws itself again ten times a second, over a question or an editor, too."""
    _bar.rest()
