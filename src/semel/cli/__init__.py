"""The command line: `semel`. What a command needs beyond this is imported when it runs, so that starting stays fast."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from semel.cli import dlq, dlq_actions, exits, inbox, kafka, tables
from semel.cli.chaos import chaos
from semel.cli.prove import prove
from semel.cli.reset import reset
from semel.cli.up import up
from semel.cli.worker import worker
from semel.display import printing
from semel.display.folding import folded

# Plain help and errors: one line that a log or a person can take, and no start-up spent on drawing.
app = typer.Typer(
    name="semel",
    help="Stream pipelines in which every event takes effect exactly once per key.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(up)
app.command()(worker)
app.command()(reset)
app.command()(prove)
app.command()(chaos)
app.add_typer(tables.app, name="tables")
dlq_actions.add_to(dlq.app)
app.add_typer(dlq.app, name="dlq")
app.add_typer(inbox.app, name="inbox")
app.add_typer(kafka.app, name="kafka")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("semel"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; errors semel knows become one line on standard error and their exit code."""
    try:
        app()
    except Exception as error:
        code = exits.code_of(error)
        if code is None:
            raise
        # A second line, as of another program's output, is indented: none passes for one of a log.
        message = "\n    ".join(folded(line) for line in str(error).splitlines())
        printing.tell(f"semel: {message}")
        sys.exit(code)
    finally:
        printing.settle()
