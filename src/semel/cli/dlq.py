"""`semel dlq`: what a pipeline could not handle, by cause, and one by one. What acts on it is in `dlq_actions`; all of it may be
used while the pipeline runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semel.display import printing
from semel.display.counting import counted
from semel.display.folding import folded

if TYPE_CHECKING:
    from semel.config import Settings
    from semel.dead_letters.operator import Operator
    from semel.plan import Plan

app = typer.Typer(name="dlq", help="Dead letters of a pipeline: what it could not handle.", no_args_is_help=True)

Target = Annotated[str, typer.Argument(metavar="PIPELINE", help="A module (pipelines.payments), or module:name.")]
Broker = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Instead of the `broker` setting.")]
Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings in TOML; else config/local.toml where it is there.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]

_ERROR_CHARACTERS = 100


@app.command()
def ls(
    pipeline: Target,
    *,
    archived: Annotated[
        bool, typer.Option("--archived", help="Groups that are archived, instead of those open.")
    ] = False,
    done: Annotated[
        bool,
        typer.Option("--done", help="Letters that were replayed, edited, dropped, redirected, forgotten, instead."),
    ] = False,
    grep: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only letters with this in key, value, error, trace or headers.")
    ] = None,
    broker: Broker = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Print the groups of open dead letters, those of one cause together, the largest first.

    Exit code 1: the dead-letter topic is not there, or cannot be read; 3: the broker cannot be reached.
    """
    from semel.dead_letters.groups import Groups
    from semel.dead_letters.letter import mentions
    from semel.errors import ConfigError

    if archived and done:
        raise ConfigError("--archived and --done are two different lists; give one of them")
    groups = Groups()
    acted: dict[str, int] = {}

    async def work(operator: Operator) -> None:
        await operator.read()
        ledger = operator.ledger
        async for letter in operator.reader.letters():
            # Counted as they are met: the audit knows of letters, too, that were deleted since.
            if did := ledger.done_by(letter):
                acted[did] = acted.get(did, 0) + 1
            if bool(ledger.done_by(letter)) == done and (grep is None or mentions(letter, grep)):
                groups.add(letter, archived=not done and ledger.is_archived(letter))

    plan, settings = loaded(pipeline, broker, config)
    run(plan, settings, work)
    ordered = [group for group in groups.largest_first() if done or group.archived == archived]
    if as_json:
        printing.document(
            {
                "pipeline": plan.app,
                "topic": plan.dead_letter_topic,
                "letters": groups.letters,
                "done": acted,
                "groups": [{**group.to_json(), "holding": group.holding} for group in ordered],
                "other_letters": groups.others,
            }
        )
        return
    headings = ("count", "keys", "first seen", "last seen", "version", "example", "fingerprint", "error")
    printing.rows(
        headings,
        (
            (
                f"{group.count}",
                f"{'' if group.keys.exact else '~'}{group.keys.count}",
                _time(group.first_ms),
                _time(group.last_ms),
                group.version or "-",
                group.example,
                folded(group.fingerprint),
                folded(group.error, _ERROR_CHARACTERS),
            )
            for group in ordered
        ),
    )
    holding = sum(group.holding for group in groups.largest_first()) if not done else 0
    if holding:
        hold = "holds its key" if holding == 1 else "hold their keys"
        printing.tell(
            f"{holding:,} of them {hold}: later events wait until a letter is replayed with success, or dropped"
        )
    if not ordered:
        what = "done" if done else "archived" if archived else "open"
        found = "" if grep is None else f" with {folded(grep)!r} in it"
        printing.tell(f"{plan.dead_letter_topic} holds no {what} dead letter of {plan.app}{found}")
    if acted and not done:
        from semel.dead_letters.decisions import plural

        printing.tell(f"done: {plural(acted)}; --done shows them")
    hidden = sum(group.archived for group in groups.largest_first()) if not (archived or done) else 0
    if hidden:
        printing.tell(f"{counted(hidden, 'group')} {'is' if hidden == 1 else 'are'} archived; see --archived")
    if groups.others:
        more = counted(groups.others, "more letter")
        printing.tell(f"{more} {'is' if groups.others == 1 else 'are'} of groups beyond the first {len(ordered):,}")


@app.command()
def show(
    pipeline: Target,
    position: Annotated[
        str | None,
        typer.Argument(metavar="PARTITION@OFFSET", help="As `semel dlq ls` has it, or SOURCE[PARTITION]@OFFSET."),
    ] = None,
    *,
    group: Annotated[
        str | None, typer.Option(metavar="FINGERPRINT", help="Instead: the letters of a group, the last first.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=100_000, help="With --group: at most so many.")] = 20,
    broker: Broker = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Print one dead letter: key and value, headers, the error and where it was raised. Or the letters of a group.

    Exit code 1: there is no such letter, group or topic; 3: the broker cannot be reached.
    """
    from semel.errors import ConfigError

    if (position is None) == (group is None):
        raise ConfigError("give PARTITION@OFFSET of a dead letter, or --group FINGERPRINT for those of a group")
    if group is not None:
        _show_group(pipeline, group, limit, broker, config, as_json=as_json)
    elif position is not None:
        _show_letter(pipeline, position, broker, config, as_json=as_json)


def _show_group(
    pipeline: str, fingerprint: str, limit: int, broker: str | None, config: Path | None, *, as_json: bool
) -> None:
    from semel.dead_letters.audit import called
    from semel.dead_letters.groups import Latest
    from semel.dead_letters.letter import key_of
    from semel.dead_letters.reading import NoLetters

    latest = Latest(fingerprint, limit)

    async def work(operator: Operator) -> None:
        await operator.read()
        async for letter in operator.reader.letters():
            if latest.takes(letter):
                latest.add(letter, key_of(letter, sources), operator.ledger.state(letter))

    plan, settings = loaded(pipeline, broker, config)
    sources = plan.sources
    run(plan, settings, work)
    if not latest.count:
        raise NoLetters(f"{plan.dead_letter_topic} holds no letter of the group {fingerprint!r}; see `semel dlq ls`")
    rows = latest.rows()
    if as_json:
        printing.document({"fingerprint": fingerprint, "count": latest.count, "letters": rows})
        return
    printing.rows(
        ("position", "source", "key", "last seen", "state", "error"),
        (
            (
                row["position"],
                folded(row["source"]),
                printing.shown(row["key"]),
                _time(row["last_seen"]),
                called(row["state"]) + (", holds its key" if row["holds_key"] else ""),
                folded(row["error"], _ERROR_CHARACTERS),
            )
            for row in rows
        ),
    )
    if latest.count > len(rows):
        printing.tell(f"there are {latest.count:,} in all; raise --limit to see more than {len(rows)}")


def _show_letter(pipeline: str, text: str, broker: str | None, config: Path | None, *, as_json: bool) -> None:
    from semel.dead_letters import reading
    from semel.dead_letters.audit import called, history
    from semel.dead_letters.decisions import NotReplayable
    from semel.dead_letters.description import describe

    documents: list[dict[str, Any]] = []

    async def work(operator: Operator) -> None:
        await operator.read()
        letter, followed = await operator.reader.letter(tp, offset), ""
        if "semel.left_out" in letter.own:
            try:
                letter = letter.with_value(await operator.value_of(letter))
                followed = letter.source
            except NotReplayable as exc:
                followed = str(exc)
        entries = [entry async for entry in operator.entries()]
        about = list(history(entries, operator.topic_id, letter))
        documents.append(describe(letter, plan, operator.ledger.state(letter), followed, about))

    plan, settings = loaded(pipeline, broker, config)
    tp, offset = reading.position(text, plan)
    run(plan, settings, work)
    [letter] = documents
    if as_json:
        printing.document(letter)
        return
    for name in (
        "position",
        "state",
        "source",
        "reason",
        "error",
        "fingerprint",
        "exception",
        "version",
        "attempts",
        "revision",
        "left_out",
        "value_from",
    ):
        if letter[name] not in (None, ""):
            holds = " (its key waits for it)" if name == "state" and letter["holds_key"] else ""
            shown = called(letter[name]) if name == "state" else str(letter[name])
            printing.say(f"{name + ':':<13}{folded(shown)}{holds}")
    for name in ("event_time", "first_seen", "last_seen"):
        printing.say(f"{name.replace('_', ' ') + ':':<13}{_time(letter[name])}")
    printing.say(f"{'key:':<13}{printing.shown(letter['key'])}")
    if letter["left_out"] and letter["value"] is None and letter["value_from"] != letter["source"]:
        printing.say(f"{'value:':<13}(see left_out)")
    else:
        printing.say("value:" if letter["decoded"] else f"{'value:':<13}(not of the type that the topic declares)")
        printing.say(printing.shown(letter["value"], indent=2))
    for title, headers in (("headers:", letter["headers"]), ("appended:", letter["appended"])):
        printing.say(title)
        for name, value in headers:
            printing.say(f"  {folded(name)}: {'null' if value is None else folded(value, 300)}")
    for entry in letter["history"]:
        why = f": {folded(entry['reason'])}" if entry["reason"] else ""
        printing.say(f"{entry['action']} by {folded(entry['by'])} at {_time(entry['at'])}{why}")
    if letter["trace"]:
        printing.say("trace:")
        printing.say(printing.plain(letter["trace"].rstrip("\n")))


def loaded(pipeline: str, broker: str | None, config: Path | None) -> tuple[Plan, Settings]:
    from semel import project
    from semel.config import Settings

    declared = project.load(pipeline)
    settings = project.settings_of(declared, Settings.load(config, broker=broker))
    return declared.plan(), settings


def run(plan: Plan, settings: Settings, work: Callable[[Operator], Awaitable[None]]) -> None:
    """Do it with an operator of the pipeline's dead letters, which is not open yet."""
    import asyncio

    from semel.dead_letters.operator import Operator
    from semel.runtime.clock import SystemClock
    from semel.runtime.failpoints import Failpoints
    from semel.worker.engine_host import engine_settings, kafka_broker

    async def connected() -> None:
        connection = kafka_broker(settings, client_id=f"{plan.app}-dlq")
        await connection.start()
        try:
            with printing.bar() as told:
                engine, passing = engine_settings(settings, adopt=False), Failpoints.from_environment()
                await work(Operator(connection, SystemClock(), plan, engine, failpoints=passing, tell=told))
        finally:
            await connection.close()

    asyncio.run(connected())


def _time(ms: int) -> str:
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds") if ms >= 0 else "-"
    except (OverflowError, ValueError):
        return str(ms)
