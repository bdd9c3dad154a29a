"""The command line: `semel`."""

from __future__ import annotations

import typer

from semel.cli import kafka

app = typer.Typer(name="semel", help="Stream pipelines in which every event takes effect exactly once per key.")
app.add_typer(kafka.app, name="kafka")


@app.callback()
def root() -> None:
    """Keeps `semel` a command with sub-commands, however few there are."""


def main() -> None:
    app()
