"""What the commands that act on dead letters ask a person for (which, who, why), and what they say of what came of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semel.display import printing
from semel.display.counting import counted
from semel.display.folding import folded
from semel.errors import ConfigError, SemelError

if TYPE_CHECKING:
    from semel.dead_letters.decisions import Selection
    from semel.dead_letters.operator import Done, Operator, Why
    from semel.plan import Plan
    from semel.port import TP


def text_given(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """Of what will be written as text. ConfigError where it is none."""
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{parameter.opts[-1]} {value!r} is not UTF-8; write it as text") from None
    return value


Which = Annotated[
    str | None,
    typer.Argument(metavar="LETTER", help="PARTITION@OFFSET as `ls` and `show` have it, or SOURCE[PARTITION]@OFFSET."),
]
Letter_ = Annotated[str, typer.Argument(metavar="LETTER", help="PARTITION@OFFSET, or SOURCE[PARTITION]@OFFSET.")]
Group = Annotated[str | None, typer.Option(metavar="FINGERPRINT", help="All open letters of a group.")]
All = Annotated[bool, typer.Option("--all", help="All open letters.")]
Key = Annotated[str | None, typer.Option(metavar="KEY", help="Only letters of this key; 0x... for bytes in hex.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Only letters that died then or later; ISO 8601.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Only letters that died before.")]
Version = Annotated[str | None, typer.Option("--version", metavar="VERSION", help="Only letters of this code version.")]
Again = Annotated[
    bool, typer.Option("--again", help="Also letters that something was done with before, but for forgotten ones.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
As = Annotated[
    str | None,
    typer.Option(
        "--as", metavar="NAME", callback=text_given, help="Who acts, for the audit; else the user of this system."
    ),
]
Reason = Annotated[str, typer.Option(metavar="TEXT", callback=text_given, help="Why, for the audit.")]
Rate = Annotated[float, typer.Option(metavar="N", min=0, help="So many letters a second; 0: as many as there can be.")]

# A pipeline takes tens of thousands a second; what it calls may not.
RATE = 100.0
WAIT_S = 30.0


class Refused(SemelError):
    """What was asked for was not done, or not all of it."""


# -- which letters


@dataclass(frozen=True)
class Meant:
    """Which letters a person means. `place`: of one, as it was written; in a source it is to be looked for."""

    selection: Selection
    place: tuple[TP, int] | None = None

    async def resolve(self, operator: Operator) -> Selection:
        if self.place is None:
            return self.selection
        letter = await operator.reader.letter(*self.place)
        return replace(self.selection, at=(letter.at.partition, letter.offset))


def meant_by(
    plan: Plan, letter: str | None, group: str | None = None, all_: bool = False, key: str | None = None,
    since: str | None = None, until: str | None = None, version: str | None = None, *, again: bool = False,
) -> Meant:  # fmt: skip
    """ConfigError, before a broker is asked."""
    from semel.cli.moment import moment
    from semel.dead_letters.decisions import Selection
    from semel.dead_letters.reading import position

    if sum((letter is not None, group is not None, all_)) != 1:
        raise ConfigError(
            "say which letters: LETTER, --group FINGERPRINT, or --all; --key, --since, --until narrow it down"
        )
    since_ms, until_ms = (
        None if text is None else int(moment(option, text).timestamp() * 1000)
        for option, text in (("--since", since), ("--until", until))
    )
    selection = Selection(None, group, None if key is None else key_of(key), since_ms, until_ms, version, again)
    return Meant(selection, None if letter is None else position(letter, plan))


async def is_agreed(operator: Operator, selection: Selection, what: str, *, dry_run: bool, yes: bool) -> bool:
    """Whether it is to be done. Refused where there is nothing to do; ConfigError where nobody can be asked."""
    if yes and not dry_run:
        return True
    from semel.dead_letters.decisions import FORGOTTEN
    from semel.dead_letters.groups import Groups

    await operator.read()
    groups, forgotten = Groups(), 0
    async for letter in operator.selected(selection):
        if operator.ledger.is_forgotten(letter):
            forgotten += 1
        else:
            groups.add(letter)
    if not groups.letters:
        raise Refused(await done_already(operator, selection))
    if forgotten:
        printing.tell(f"{forgotten:,} more {'stays as it is' if forgotten == 1 else 'stay as they are'}: {FORGOTTEN}")
    if dry_run or groups.letters > 1:
        for group in groups.largest_first()[:20]:
            printing.tell(f"{group.count:,} of {folded(group.fingerprint)}")
        be = "would be" if dry_run else "is to be" if groups.letters == 1 else "are to be"
        printing.tell(f"{counted(groups.letters, 'letter')} {be} {what}")
    if dry_run:
        return False
    if groups.letters > 1:
        confirm(f"Go on with {counted(groups.letters, 'letter')}?", yes=yes)
    return True


async def done_already(operator: Operator, selection: Selection) -> str:
    done: dict[str, int] = {}
    async for letter in operator.selected(replace(selection, again=True)):
        state = operator.ledger.state(letter)
        done[state] = done.get(state, 0) + 1
    if not done:
        return await _why_none(operator, selection)
    from semel.dead_letters.decisions import FORGOTTEN, plural

    if set(done) == {"forget"}:
        return (
            f"nothing to do with {counted(done['forget'], 'letter')} that fit{'s' * (done['forget'] == 1)}: {FORGOTTEN}"
        )
    return f"nothing to do: all letters that fit are done with or archived ({plural(done)}); say --again to act on them again"


# Of the groups that there are, so many are named where another one was asked for.
_GROUPS_NAMED = 5


async def _why_none(operator: Operator, selection: Selection) -> str:
    from semel.dead_letters.decisions import Selection
    from semel.dead_letters.groups import Groups

    topic, app = operator.plan.dead_letter_topic, operator.plan.app
    groups = Groups()
    async for letter in operator.selected(Selection(again=True)):
        groups.add(letter)
    there = [folded(group.fingerprint) for group in groups.largest_first()]
    if not there:
        return f"{topic} holds no dead letter of {app}"
    if selection.group is None or folded(selection.group) in there or groups.others:
        return f"{topic} holds no letter that fits; see `semel dlq ls`"
    more = f" and {len(there) - _GROUPS_NAMED:,} more" if len(there) > _GROUPS_NAMED else ""
    return (
        f"{topic} holds no letter of a group {folded(selection.group)!r} of {app}. There {'is' if len(there) == 1 else 'are'} "
        f"{', '.join(there[:_GROUPS_NAMED])}{more}; `semel dlq ls` shows them, with --done and --archived those that are hidden"
    )


def confirm(question: str, *, yes: bool) -> None:
    import sys

    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} Nobody can be asked here; say --yes")
    printing.rest()
    if not typer.confirm(question, err=True):
        raise Refused("nothing was done")


def key_of(text: str) -> bytes:
    if text.startswith("0x"):
        try:
            return bytes.fromhex(text[2:])
        except ValueError:
            raise ConfigError(f"{text!r} is no hex; a key that begins so is written in hex, too") from None
    # What is not UTF-8 on a command line comes as surrogates.
    return text.encode(errors="surrogateescape")


# -- what is said


def why_of(by: str | None, reason: str) -> Why:
    import getpass

    from semel.dead_letters.operator import Why

    if by is None:
        try:
            by = getpass.getuser()
        except (KeyError, OSError) as exc:
            raise ConfigError("nobody knows who acts: this system has no name for its user; say --as NAME") from exc
        by = by.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return Why(by, reason)


def check_reason(reason: str) -> None:
    if not reason.strip():
        raise ConfigError("--reason is empty; say why, for those who come after")


def progress_of(what: str) -> Any:
    """Where it takes long enough to be of use: what is done in the end is said anyway."""
    shown = 0

    def tell(done: Done) -> None:
        nonlocal shown
        if done.letters >= max(10 * shown, shown + 1_000):
            shown = done.letters
            printing.tell(f"{counted(done.letters, 'letter')} {what} so far")

    return tell


def say_done(plan: Plan, what: str, done: Done, *, as_json: bool, nothing: str = "") -> None:
    """`nothing`: why there was nothing to do."""
    fates = done.fates
    if as_json:
        printing.document(
            {
                "pipeline": plan.app,
                what: done.letters,
                "skipped": {why: count for why, (count, _) in done.skipped.items()},
                "known": fates.known,
                "came_back": fates.back,
                "came_back_late": done.late,
                "stopped": done.stopped or None,
            }
        )
    printing.tell(f"{counted(done.letters, 'letter')} {what}")
    for why, (count, example) in done.skipped.items():
        printing.tell(f"{count:,} could not be, {example} for one: {why}")
    if fates.replayed:
        unknown = fates.replayed - fates.known
        waiting = f"; of {unknown:,} it is not known yet" if unknown else ""
        printing.tell(
            f"{fates}{waiting}" if fates.known else f"of {unknown:,} it is not known yet what becomes of them"
        )
    if done.late:
        printing.tell(
            f"{done.late:,} of them as late: the dedup window of their events is over, so that nobody can tell whether they took "
            "effect meanwhile. Replaying them again will not help; drop or redirect them, or declare a longer window, or "
            'Dedup(late="pass")'
        )
    if done.stopped:
        printing.tell(done.stopped)
    if not done.letters and not done.skipped:
        printing.tell(nothing or "there was nothing to do")
    if done.stopped or done.skipped or not done.letters or fates.back * 2 > max(fates.known, 1):
        raise typer.Exit(1)
