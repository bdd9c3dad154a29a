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
    import importlib

    from semel import project
    from semel.errors import ConfigError

    where = Path.cwd()
    missing = next((name for name in ("demos/up/run.py", "feeds/flights.py") if not (where / name).is_file()), None)
    if missing is not None:
        raise ConfigError(
            f"there is no {missing} in {where}: `semel up` shows semel on the pipelines of its own repository; run it in "
            "the root of that, and your own pipeline with `semel worker`"
        )
    pipeline = project.load("pipelines.flights")
    demo = importlib.import_module("demos.up.run")
    raise typer.Exit(demo.run(pipeline, events=events, seed=seed, as_json=as_json))
