"""`semel dlq replay|edit|drop|redirect|archive|forget`: what acts on dead letters. All of it stands in `{pipeline}-audit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from semel.cli.dlq import Broker, Config, Json, Target, loaded, run
from semel.cli.dlq_asked import (
    RATE,
    WAIT_S,
    Again,
    All,
    As,
    DryRun,
    Group,
    Key,
    Meant,
    Rate,
    Reason,
    Refused,
    Since,
    Until,
    Version,
    Which,
    Yes,
    check_reason,
    confirm,
    done_already,
    is_agreed,
    key_of,
    meant_by,
    progress_of,
    say_done,
    text_given,
    why_of,
)
from semel.cli.dlq_edit import edit
from semel.display import printing
from semel.display.counting import counted
from semel.display.folding import folded
from semel.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from semel.config import Settings
    from semel.dead_letters.decisions import Selection
    from semel.dead_letters.letter import Letter
    from semel.dead_letters.operator import Done, Operator, Place
    from semel.plan import Plan


def replay(
    pipeline: Target,
    letter: Which = None,
    *,
    group: Group = None,
    all_: All = False,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    version: Version = None,
    again: Again = False,
    rate: Rate = RATE,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="For so long wait for a worker to take what is replayed.")
    ] = WAIT_S,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Also while most come back.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_: As = None,
    reason: Reason = "",
    broker: Broker = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Put dead letters back to where they came from, each once, under its own dedup id.

    Stops by itself when most of what it replays dies again. Running it again goes on where it stopped.
    Exit code 1: nothing was to be replayed, some could not be, or most came back; 3: the broker cannot be reached.
    """
    from semel.dead_letters import decisions

    plan, settings = loaded(pipeline, broker, config)
    meant = meant_by(plan, letter, group, all_, key, since, until, version, again=again)

    async def work(operator: Operator, selection: Selection) -> Done:
        fates = await operator.watch(wait)
        return await operator.write_all(
            "replay", selection, why_of(as_, reason), decisions.replayed, rate=rate, fates=fates,
            keep_going=keep_going, told=progress_of("replayed"),
        )  # fmt: skip

    _act(plan, settings, meant, "replayed", work, dry_run=dry_run, yes=yes, as_json=as_json)


def redirect(
    pipeline: Target,
    letter: Which = None,
    *,
    to: Annotated[
        str,
        typer.Option("--to", metavar="TOPIC", callback=text_given, help="The topic they go to; it has to be there."),
    ],
    group: Group = None,
    all_: All = False,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    version: Version = None,
    again: Again = False,
    rate: Rate = RATE,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_: As = None,
    reason: Reason = "",
    broker: Broker = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write dead letters to another topic as their events came: key, value, headers and time; and be done with them.

    Exit code 1: nothing was to be written, or some could not be; 3: the broker cannot be reached.
    """
    from semel.dead_letters import decisions

    plan, settings = loaded(pipeline, broker, config)
    meant = meant_by(plan, letter, group, all_, key, since, until, version, again=again)
    own = ConfigError(
        f"--to {to!r} is a topic of {plan.app!r} itself, where an event that it gave up would pass for its own work; "
        "redirect to a topic that it does not write to, or put letters back to where they came from with `semel dlq replay`"
    )
    if to in plan.used_topics:
        raise own
    places: list[Place] = []

    async def first(operator: Operator) -> None:
        if to in await operator.used_topics():
            raise own
        place = await operator.place(to)
        if place is None:
            raise Refused(f"there is no topic {to!r} on this broker; create it first, or see the `broker` setting")
        places.append(place)

    def make(letter: Letter, value: bytes | None) -> Any:
        return decisions.redirected(letter, value, to, places[0].partitions)

    async def work(operator: Operator, selection: Selection) -> Done:
        return await operator.write_all(
            "redirect", selection, why_of(as_, reason), make, rate=rate, told=progress_of("redirected"), to=to
        )

    _act(plan, settings, meant, "redirected", work, dry_run=dry_run, yes=yes, as_json=as_json, first=first)


def drop(
    pipeline: Target,
    letter: Which = None,
    *,
    reason: Reason,
    group: Group = None,
    all_: All = False,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    version: Version = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_: As = None,
    broker: Broker = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Be done with dead letters for good. Their bytes stay in the topic.

    Exit code 1: there was nothing to drop; 3: the broker cannot be reached.
    """
    check_reason(reason)
    plan, settings = loaded(pipeline, broker, config)
    meant = meant_by(plan, letter, group, all_, key, since, until, version)

    async def work(operator: Operator, selection: Selection) -> Done:
        return await operator.mark_all("drop", selection, why_of(as_, reason))

    _act(plan, settings, meant, "dropped", work, dry_run=dry_run, yes=yes, as_json=as_json)


def _act(
    plan: Plan,
    settings: Settings,
    meant: Meant,
    did: str,
    work: Callable[[Operator, Selection], Awaitable[Done]],
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    first: Callable[[Operator], Awaitable[None]] | None = None,
) -> None:
    """Find the letters that are meant, ask, do it, and say what was done. `first`: what is looked at before anybody is asked."""
    results: list[tuple[Done, str]] = []

    async def agreed(operator: Operator) -> None:
        if first is not None:
            await first(operator)
        selection = await meant.resolve(operator)
        if await is_agreed(operator, selection, did, dry_run=dry_run, yes=yes):
            await operator.open()
            done = await work(operator, selection)
            idle = not (done.letters or done.skipped or done.stopped)
            results.append((done, await done_already(operator, selection) if idle else ""))

    run(plan, settings, agreed)
    for done, nothing in results:
        say_done(plan, did, done, as_json=as_json, nothing=nothing)


def archive(
    pipeline: Target,
    group: Annotated[str, typer.Argument(metavar="GROUP", help="Its fingerprint, as `ls` has it.")],
    *,
    as_: As = None,
    reason: Reason = "",
    broker: Broker = None,
    config: Config = None,
) -> None:
    """Hide a group from `ls` and from --all until a letter of it comes.

    Exit code 1: there is no such group; 3: the broker cannot be reached.
    """
    from semel.dead_letters import setting_aside

    plan, settings = loaded(pipeline, broker, config)

    async def work(operator: Operator) -> None:
        await operator.open()
        await setting_aside.archive(operator, group, why_of(as_, reason))

    run(plan, settings, work)
    printing.tell(f"{folded(group)} is archived; a new letter of it brings it back")


def forget(
    pipeline: Target,
    key: Annotated[str, typer.Argument(metavar="KEY", help="A record's key; 0x... for bytes in hex.")],
    *,
    reason: Reason,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="Delete what stands before the key's last letter, where all of it is done with."),
    ] = False,
    yes: Yes = False,
    as_: As = None,
    broker: Broker = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Never replay a key's letters, and erase them as far as Kafka can: a log gives up records from its beginning only.

    Says what is left, and where. Exit code 1: something of it is left; 3: the broker cannot be reached.
    """
    from semel.dead_letters import setting_aside

    check_reason(reason)
    plan, settings = loaded(pipeline, broker, config)
    confirm(f"Give up all dead letters of the key {key!r}{', and delete what can be' if delete else ''}?", yes=yes)
    results: list[dict[str, Any]] = []

    async def work(operator: Operator) -> None:
        await operator.open()
        results.append(await setting_aside.forget(operator, key_of(key), why_of(as_, reason), delete=delete))

    run(plan, settings, work)
    [result] = results
    topic = plan.dead_letter_topic
    if as_json:
        printing.document({"pipeline": plan.app, **result})
    if result["letters"] or result["kept"] or result["deleted_before"]:
        printing.tell(
            f"{counted(result['letters'], 'letter')} of {key!r} {'is' if result['letters'] == 1 else 'are'} never replayed "
            "again; the audit has a hash of the key only"
        )
    else:
        printing.tell(
            f"{topic} holds no letter of the key {key!r}: nothing was to be forgotten. A key is given as its bytes are, "
            "without the quotes of `semel dlq show`; 0x... is hex"
        )
    for partition, end in result["deleted_before"].items():
        printing.tell(f"{topic}[{partition}] was deleted up to {end}")
    for partition, end in result["could_delete_before"].items():
        printing.tell(f"{topic}[{partition}] can be deleted up to {end}: say --delete")
    for partition, offsets in result["kept"].items():
        shown = ", ".join(map(str, offsets[:10])) + (", ..." if len(offsets) > 10 else "")
        blocked = result["blocked_by"].get(partition)
        why = (
            "" if blocked is None else f", behind the open letter at {blocked}: replay or drop it, then run this again"
        )
        if partition in result["blocked_by_others"]:
            why = f", behind what is no letter of {plan.app}, at {result['blocked_by_others'][partition]}"
        printing.tell(
            f"{topic}[{partition}] still holds {len(offsets):,} of them, at {shown}{why}; retention deletes the rest"
        )
    printing.tell(
        f"not looked at: the source ({', '.join(plan.sources)}), results, and rows of tables, which an event of the key deletes"
    )
    if result["kept"]:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    for command in (replay, edit, drop, redirect, archive, forget):
        app.command()(command)
