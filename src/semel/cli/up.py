"""`semel up`: see it work, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def up(
    *,
    events: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="So many events before redeliveries, then end; else the whole year."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", min=0, help="Seed of the redeliveries; else a random one, printed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Run real flights through a real Kafka and two workers, kill one in the middle, and audit the result.

    Run it in the root of the repository. Exit code 0: nothing lost, doubled or wrong; 1: something is; 130: interrupted
    before the audit was done. Without --events the workers stay after it, with their web page, until Ctrl-C.
    """
    from semel import project
    from semel.errors import ConfigError

    where = Path.cwd()
    if not (where / "feeds" / "flights.py").is_file():
        raise ConfigError(f"there is no folder feeds in {where}; run `semel up` in the root of semel's repository")
    pipeline = project.load("pipelines.flights")

    from semel.up.run import run

    raise typer.Exit(run(pipeline, events=events, seed=seed, as_json=as_json))
