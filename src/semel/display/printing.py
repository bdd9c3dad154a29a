"""What commands print: one JSON document for programs, tables for a person at a terminal, plain lines else."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from semel.errors import SemelError


class Unwritten(SemelError):
    """Standard output or a file cannot be written."""


def say(text: str) -> None:
    """A line of the result, on standard output. Unwritten."""
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
    """A table at a terminal; tabs between the columns and no headings where something else reads."""
    if not sys.stdout.isatty():
        for line in lines:
            say("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    # Nothing is left out: a name is wanted whole, to be given to the next command.
    table = Table(*(Column(heading, overflow="fold") for heading in headings), box=None, pad_edge=False)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    Console().print(table)


def tell(message: str) -> None:
    """A sentence for the person, on standard error; where nobody can hear it, nothing."""
    with contextlib.suppress(OSError):
        typer.echo(message, err=True)


@contextmanager
def bar() -> Generator[Callable[[str, int, int], None]]:
    """Progress on standard error, a bar at a terminal, else a line for each phase: phase, how much is done, of how much."""
    if not sys.stderr.isatty():
        last_phase = ""

        def line(phase: str, done: int, total: int) -> None:
            nonlocal last_phase
            if phase != last_phase:
                last_phase = phase
                tell(f"reading {phase}: {done:,} of {total:,}")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=None)
        yield lambda phase, done, total: progress.update(task, description=phase, completed=done, total=total)
