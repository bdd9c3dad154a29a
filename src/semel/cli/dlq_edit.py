"""`semel dlq edit`: a dead letter with another value, shown before it is replayed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semel.cli.dlq import Broker, Config, Json, Target, loaded, run
from semel.cli.dlq_asked import (
    WAIT_S,
    Again,
    As,
    Letter_,
    Reason,
    Refused,
    Yes,
    check_reason,
    confirm,
    done_already,
    meant_by,
    say_done,
    why_of,
)
from semel.display import printing
from semel.errors import ConfigError

if TYPE_CHECKING:
    from semel.dead_letters.letter import Letter
    from semel.dead_letters.operator import Done, Operator


def edit(
    pipeline: Target,
    letter: Letter_,
    *,
    reason: Reason,
    value: Annotated[str | None, typer.Option(metavar="FILE", help="The new value; - for standard input.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=JSON", help="Set a field: customer.name='\"Ada\"'.")
    ] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Replay it later, with `semel dlq replay`.")] = False,
    new_id: Annotated[bool, typer.Option("--new-id", help="Also where the dedup id is another one then.")] = False,
    again: Again = False,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="For so long wait for what becomes of it.")
    ] = WAIT_S,
    yes: Yes = False,
    as_: As = None,
    broker: Broker = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Replay a dead letter with another value: from a file, by fields, or in $EDITOR. Shows what changes, and asks.

    The letter stays in the topic as it is; the audit has hashes of both values.
    Exit code 1: the value is not of the type that the topic declares, or it came back; 3: the broker cannot be reached.
    """
    from semel.dead_letters.decisions import NotReplayable, Selection, held, replayed
    from semel.dead_letters.editing import edit_of

    check_reason(reason)
    if value is not None and set_:
        raise ConfigError("--value and --set are two ways to give a new value; use one of them")
    plan, settings = loaded(pipeline, broker, config)
    meant = meant_by(plan, letter, again=again)
    results: list[Done] = []
    source = ""

    async def work(operator: Operator) -> None:
        nonlocal source
        selection = await meant.resolve(operator)
        await operator.read()
        [letter] = [one async for one in operator.selected(selection)] or [None]
        if letter is None or operator.ledger.is_forgotten(letter):
            raise Refused(await done_already(operator, selection))
        try:
            before = await operator.value_of(letter)
        except NotReplayable as exc:
            if value is None:
                raise
            printing.tell(str(exc))
            before = None
        after = _new_value(before, value, set_ or [])
        edited = edit_of(plan, letter, before, after)
        if edited.other_id and not new_id:
            raise Refused(f"{edited.other_id}; say --new-id if that is meant")
        for line in edited.changes:
            printing.tell(printing.plain(line))
        if not edited.changes:
            raise Refused("the new value is the one that it has; `semel dlq replay` replays it as it is")
        confirm(f"{'Hold' if hold else 'Replay'} {letter.position} with this value?", yes=yes)
        source = letter.source
        await operator.open()

        def make(one: Letter, _: bytes | None) -> Any:
            return held(one, after) if hold else replayed(one, after, edited=True)

        fates = None if hold else await operator.watch(wait)
        only = Selection(at=(letter.at.partition, letter.offset), again=again)
        results.append(
            await operator.write_all(
                "edit", only, why_of(as_, reason), make, fates=fates, value_needed=False, **edited.more(hold=hold)
            )
        )

    run(plan, settings, work)
    for done in results:
        say_done(plan, "held" if hold else "replayed", done, as_json=as_json)
        if hold and done.letters:
            printing.tell(f"`semel dlq replay {pipeline} {source}` replays it; `semel dlq ls` says where it stands now")


def _new_value(before: bytes | None, value: str | None, changes: list[str]) -> bytes:
    import sys

    from semel.dead_letters.decisions import pretty, unpretty
    from semel.dead_letters.json_text import has_path, set_path

    if value is not None:
        try:
            return sys.stdin.buffer.read() if value == "-" else Path(value).read_bytes()
        except OSError as exc:
            raise ConfigError(f"--value {value!r} cannot be read: {exc.strerror}") from exc
    if changes:
        after = before
        for change in changes:
            path, equals, given = change.partition("=")
            if not equals or not path:
                raise ConfigError(f"--set {change!r} is no PATH=JSON; write customer.name='\"Ada\"'")
            try:
                set_ = set_path(after, path, given)
                is_new = after is not None and not has_path(after, path)
            except ValueError as exc:
                raise ConfigError(f"--set {change!r}: {exc}") from exc
            if is_new:
                printing.tell(f"--set {path}: the value has no such field, and one is put in; is that meant?")
            after = set_
        return after or b""
    if not sys.stdin.isatty():
        raise ConfigError(
            "no new value is given, and there is no terminal to edit it at; use --value FILE or --set PATH=JSON"
        )
    import click

    printing.rest()
    edited = click.edit(pretty(before), extension=".json")
    if edited is None:
        raise Refused("the value was not saved; nothing was done")
    return unpretty(edited, before)
