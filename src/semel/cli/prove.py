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

    Exit code 0: clean; 1: a law is broken; 3: the broker cannot be reached; 5: unprovable, in part (retention or compaction
    took the witnesses, or another dedup rule judged) or at all (it never ran here, or as another declaration); 6: clean, and
    that could not be written, or no room for the files it takes.
    """
    import asyncio
    import tempfile

    from semel import project
    from semel.cli.exits import FINDING, OK, UNPROVABLE, UNWRITTEN, Unjudged, code_of
    from semel.config import Settings
    from semel.display import printing
    from semel.display.printing import Unwritten
    from semel.errors import ConfigError, SemelError
    from semel.port import RpcError
    from semel.proof import Verdict, html
    from semel.proof import prove as run
    from semel.runtime.clock import SystemClock
    from semel.worker.engine_host import kafka_broker

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
            with printing.bar() as told:
                return await run(
                    broker, plan, SystemClock(), since_ms=since_ms, until_ms=until_ms,
                    progress=lambda now: told(now.phase, now.done, now.total),
                )  # fmt: skip
        finally:
            await broker.close()

    try:
        proof = asyncio.run(work())
    except (SemelError, RpcError) as exc:
        if code_of(exc) not in (FINDING, None):
            raise
        # That nobody can judge is no verdict: only a broken law is a finding.
        raise Unjudged(str(exc)) from exc
    except (ConnectionError, TimeoutError):
        raise
    except OSError as exc:
        raise Unwritten(
            f"nothing is proven: the files that it takes cannot be kept in {tempfile.gettempdir()} "
            f"({exc.strerror or exc}); free some space there, or set TMPDIR to another place"
        ) from exc
    code = {Verdict.CLEAN: OK, Verdict.VIOLATED: FINDING, Verdict.UNPROVABLE: UNPROVABLE}[proof.verdict]
    try:
        if as_json:
            printing.document(proof.to_json())
        else:
            printing.say(printing.plain(proof.text()))
        if report is not None:
            _write(report, html(proof))
            printing.tell(f"the report is in {report}")
    except Unwritten as exc:
        # What was found stands above that it could not be written: its code, too.
        printing.tell(f"semel: the verdict is {proof.verdict.value}, and {exc}")
        raise typer.Exit(code or UNWRITTEN) from exc
    if code:
        raise typer.Exit(code)


def _write(report: Path, text: str) -> None:
    from semel.display.printing import Unwritten

    try:
        report.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise Unwritten(f"--report {str(report)!r} cannot be written ({exc.strerror or exc})") from exc


def _ms(option: str, text: str | None) -> int | None:
    """In ms. ConfigError."""
    from semel.cli.moment import moment

    return None if text is None else int(moment(option, text).timestamp() * 1000)
