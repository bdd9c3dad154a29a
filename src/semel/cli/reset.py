"""`semel reset`: move an application's positions and state together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def reset(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="A module (pipelines.payments), or module:name.")],
    *,
    to: Annotated[
        str, typer.Option("--to", metavar="earliest|latest|TIME", help="Where to begin again; TIME as ISO 8601.")
    ],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in TOML; else config/local.toml where it is there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Delete the application's state and begin again from another place in its sources. Its workers must be stopped.

    Outputs and dead letters written so far stay. Repeating a reset, also one that was broken off, is safe.
    Exit code 1: workers are still running, or a source is missing; 3: the broker cannot be reached.
    """
    import asyncio

    from semel import project
    from semel.cli.moment import moment
    from semel.config import Settings
    from semel.display import printing
    from semel.runtime.clock import SystemClock
    from semel.worker.engine_host import engine_settings, kafka_broker
    from semel.worker.reset import reset as run

    match to:
        case "earliest" | "latest":
            target = to
        case _:
            target = moment("--to", to, instead="earliest nor latest")
    loaded = project.load(pipeline)
    settings = project.settings_of(loaded, Settings.load(config))
    plan = loaded.plan()

    async def work() -> dict[str, int]:
        broker = kafka_broker(settings, client_id=f"{plan.app}-reset")
        await broker.start()
        try:
            clock = SystemClock()
            positions = await run(
                plan, engine_settings(settings, adopt=False), broker, clock, target, say=printing.tell
            )
        finally:
            await broker.close()
        return {f"{tp.topic}[{tp.partition}]": offset for tp, offset in sorted(positions.items())}

    offsets = asyncio.run(work())
    if as_json:
        printing.document({"pipeline": plan.app, "to": to, "positions": offsets})
    else:
        printing.tell(f"{plan.app} begins again at " + ", ".join(f"{tp}@{offset}" for tp, offset in offsets.items()))
