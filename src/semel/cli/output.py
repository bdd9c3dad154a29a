"""What commands print: one JSON document for programs, tables for a person at a terminal, plain lines else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import typer


def document(found: Any) -> None:
    """The one JSON document of `--json`."""
    typer.echo(json.dumps(found))


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
            typer.echo("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    Console().print(table)


def tell(message: str) -> None:
    """A sentence for the person, on standard error."""
    typer.echo(message, err=True)


@contextmanager
def bar() -> Generator[Callable[[str, int, int], None]]:
    """Progress on standard error, a bar at a terminal, else a line for each phase: phase, how much is done, of how much."""
    if not sys.stderr.isatty():
        said = ""

        def line(phase: str, done: int, total: int) -> None:
            nonlocal said
            if phase != said:
                said = phase
                tell(f"reading {phase}: {done:,} of {total:,}")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=None)
        yield lambda phase, done, total: progress.update(task, description=phase, completed=done, total=total)
