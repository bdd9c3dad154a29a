"""`semel chaos`: torture a pipeline, then prove it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semel.cli import exits


def chaos(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="A module (pipelines.payments), or module:name.")],
    *,
    minutes: Annotated[float, typer.Option(metavar="M", min=0.1, help="How long faults go on.")] = 3.0,
    faults: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            help="Kinds of faults, as kill,zombie,net (all unless given); with a number, as many instead of a time.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", min=1, max=16, help="Workers of the pipeline.")] = 2,
    brokers: Annotated[int, typer.Option(metavar="N", help="1, or 3 for moves of leaders and coordinators.")] = 1,
    partitions: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=256, help="Of the source; else Topic(partitions=), else 4.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", min=0, help="Of faults and events; else a random one, printed.")
    ] = None,
    rate: Annotated[float, typer.Option(metavar="R", min=1, help="Source records a second.")] = 500.0,
    key: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Record key of made-up events: a field, or {origin}-{dest}."),
    ] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="Recorded events: JSON lines with key and value.")
    ] = None,
    from_topic: Annotated[
        str | None, typer.Option(metavar="TOPIC", help="Recorded events: copied from a topic.")
    ] = None,
    broker: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where that topic is; else the configured broker.")
    ] = None,
    events: Annotated[int, typer.Option(metavar="N", min=1, help="How many to copy from it, the newest.")] = 100_000,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the report there, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Run a pipeline or an app on brokers of its own under kills, freezes, lost answers and rebalances, and prove the result.

    Nothing of your own clusters is touched: brokers, topics, workers and state are made for the run, in .semel/chaos.
    Exit code 0: clean; 1: a finding, or a run in which the faults met nothing; 2: usage; 5: unprovable; 130: Ctrl-C.
    """
    import asyncio
    import secrets

    from semel import project
    from semel.chaos import events as made
    from semel.chaos.generated import from_types
    from semel.chaos.plan import wanted
    from semel.chaos.report import CLEAN, UNPROVABLE
    from semel.chaos.run import PARTITIONS, Asked, now_ms, run
    from semel.chaos.subject import subject
    from semel.errors import ConfigError

    kinds, number = wanted(faults)
    if brokers not in (1, 3):
        raise ConfigError(f"--brokers {brokers}: a run has 1 broker, or 3")
    if input_file is not None and from_topic is not None:
        raise ConfigError("--input and --from-topic are two sources of events; give one")
    if key is not None and (input_file is not None or from_topic is not None):
        given = "--input" if input_file is not None else "--from-topic"
        raise ConfigError(
            f"--key {key!r} is for made-up events, and those of {given} have their keys; leave out one of the two"
        )
    if report is not None and not report.absolute().parent.is_dir():
        raise ConfigError(f"--report {str(report)!r}: there is no directory {str(report.absolute().parent)!r}; make it")
    what = subject(pipeline, project.load(pipeline))
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    if input_file is not None:
        source = made.from_file(input_file)
    elif from_topic is not None:
        source = asyncio.run(made.from_topic(from_topic, broker, events))
    else:
        source = made.from_module(what, pipeline, seed)
        if source is not None and key is not None:
            raise ConfigError(
                f"--key {key!r} is for made-up events, and chaos_events in {pipeline.partition(':')[0]} gives each its key; "
                "leave out --key, or the function"
            )
        source = source or from_types(what, seed, now_ms, key)
    done = run(
        Asked(
            target=pipeline,
            subject=what,
            source=source,
            kinds=kinds,
            count=number,
            minutes=minutes,
            workers=workers,
            brokers=brokers,
            partitions=partitions or what.source.partitions or PARTITIONS,
            rate=rate,
            seed=seed,
            report=report,
            as_json=as_json,
        )
    )
    if done is None:
        raise typer.Exit(exits.INTERRUPTED)
    codes = {CLEAN: exits.OK, UNPROVABLE: exits.UNPROVABLE}
    raise typer.Exit(codes.get(done.verdict, exits.FINDING))
