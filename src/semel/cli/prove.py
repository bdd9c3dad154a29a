"""`semel prove`: hold what went into a pipeline against what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from semel.proof import Proof


def prove(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="A module (pipelines.payments), or module:name.")],
    *,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From the first event stamped since then; ISO 8601.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Up to the first event stamped since then; ISO 8601.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write the proof as one HTML file.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in TOML; else config/local.toml where it is there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Say whether anything was lost, doubled, reordered or torn, with witnesses. Reads only; the pipeline may be running.

    Exit code 0: clean; 1: a law is broken; 3: the broker cannot be reached; 5: unprovable in part, because retention or
    compaction took the witnesses.
    """
    import asyncio

    from semel import project
    from semel.cli import output
    from semel.cli.exits import FINDING, OK, UNPROVABLE
    from semel.config import Settings
    from semel.errors import ConfigError
    from semel.proof import Verdict, html
    from semel.proof import prove as run
    from semel.runtime.clock import SystemClock
    from semel.runtime.host import kafka_broker

    since_ms, until_ms = _ms("--since", since), _ms("--until", until)
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise ConfigError(f"--since {since} is not before --until {until}; give the earlier one to --since")
    if report is not None and not report.absolute().parent.is_dir():
        raise ConfigError(f"--report {str(report)!r}: there is no directory {str(report.absolute().parent)!r}; make it")
    if report is not None and report.is_dir():
        raise ConfigError(
            f"--report {str(report)!r} is a directory; name a file in it, as {str(report / 'proof.html')!r}"
        )
    loaded = project.load(pipeline)
    settings = project.settings_of(loaded, Settings.load(config))
    plan = loaded.plan()

    async def work() -> Proof:
        broker = kafka_broker(settings, client_id=f"{plan.app}-prove")
        await broker.start()
        try:
            with output.bar() as told:
                return await run(
                    broker, plan, SystemClock(), since_ms=since_ms, until_ms=until_ms,
                    progress=lambda now: told(now.phase, now.done, now.total),
                )  # fmt: skip
        finally:
            await broker.close()

    proof = asyncio.run(work())
    if report is not None:
        report.write_text(html(proof), encoding="utf-8")
    if as_json:
        output.document(proof.to_json())
    else:
        typer.echo(output.plain(proof.text()))
    if report is not None:
        output.tell(f"the report is in {report}")
    code = {Verdict.CLEAN: OK, Verdict.VIOLATED: FINDING, Verdict.UNPROVABLE: UNPROVABLE}[proof.verdict]
    if code:
        raise typer.Exit(code)


def _ms(option: str, text: str | None) -> int | None:
    """A time as ISO 8601, in ms; one without an offset is read as local. ConfigError."""
    if text is None:
        return None
    from datetime import datetime

    from semel.errors import ConfigError

    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not a time; write one as 2026-03-01T12:00:00+00:00") from None
    return int((at if at.tzinfo is not None else at.astimezone()).timestamp() * 1000)
