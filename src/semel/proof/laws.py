"""The laws: pure, over columns of a recorded history and over position records. An empty answer means that the law holds.

What the counts of a whole history have to say is in `semel.proof.check`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semel.port import TP
from semel.proof.columns import LATER, NAMED, Known, Offsets, Rows, Stretch, among, events_of
from semel.proof.outcomes import TRIMMED, Outcome, Rule
from semel.proof.proof import Finding, Law, Witness, place
from semel.state.dedup_marks import DEAD, DONE
from semel.state.positions import Position

_LOST = {
    Outcome.LOST: "no mark, no dead letter and no earlier event of its id within the window accounts for it",
    Outcome.LOST_UNDECODABLE: "it cannot be decoded, and it is not in the dead letters",
    Outcome.LOST_MISSING: "its id or its time cannot be read, and it is not in the dead letters",
    Outcome.LOST_CONFLICT: "it has the id of an earlier event and another payload, and it is not in the dead letters",
    Outcome.LOST_DEAD: "the first event of its id is in the dead letters, where it had to follow, and it is not there",
}


class Whole(NamedTuple):
    """Which logs are there from where the task began, but for what was never committed."""

    outputs: bool
    letters: bool
    source: bool = True


def _of_event(law: Law, tp: TP, offset: int, claim: str, *others: Witness) -> Finding:
    return Finding(law, f"the event at {place(tp, offset)} {claim}", (Witness(tp, int(offset), "the event"), *others))


def _standing(row: Any, wheres: Sequence[TP], what: str) -> Witness:
    """An output or a dead letter, where it stands. `wheres`: the partitions that rows number."""
    return Witness(wheres[int(row["where"])], int(row["at"]), what)


def of_outcomes(tp: TP, unmarked: Rows, outcome: NDArray[np.uint8], known: Known) -> Iterator[Finding]:
    """Every record below the position took effect or is accounted for; an output has its event's mark beside it, and a
    record that its id's mark calls a duplicate has none.
    """
    broken = outcome >= Outcome.LOST
    offsets = unmarked["offset"][broken]
    first_of = known.before(unmarked["id"][broken], offsets)
    for offset, why, first in zip(offsets.tolist(), outcome[broken].tolist(), first_of.tolist(), strict=True):
        if why == Outcome.DOUBLED:
            of = int(known.rows[first]["offset"])
            claim = f"the event at {place(tp, offset)} is a duplicate of the one at offset {of}, and it has outputs"
            yield Finding(
                Law.NO_DUPLICATE, claim, (Witness(tp, of, "took effect"), Witness(tp, offset, "the duplicate"))
            )
        elif why == Outcome.TORN:
            yield _of_event(Law.ATOMIC, tp, offset, "has outputs, and no mark says that it took effect")
        else:
            yield _of_event(Law.NO_LOSS, tp, offset, f"is lost: {_LOST[Outcome(why)]}")


# -- no duplicate


def no_duplicate(tp: TP, stretch: Stretch, wheres: Sequence[TP]) -> Iterator[Finding]:
    """What an event led to is there once."""
    marks, (outputs, event) = stretch.marks, _by_event(stretch.outputs)
    same = (marks["offset"][1:] == marks["offset"][:-1]) & (marks["id"][1:] == marks["id"][:-1])
    for offset in marks["offset"][1:][same].tolist():
        yield _of_event(Law.NO_DUPLICATE, tp, offset, "took effect twice: it has two marks")
    letters = np.sort(stretch.letters, order=["offset", "agent", "at"])
    given_up = events_of(letters)
    again = (event[1:] == event[:-1]) & (outputs["step"][1:] == outputs["step"][:-1])
    for rows, same in ((outputs, again), (letters, given_up[1:] == given_up[:-1])):
        for i in np.flatnonzero(same).tolist():
            what = f"output {_numbered(int(rows[i]['step']))}" if rows is outputs else "dead letter"
            yield _of_event(
                Law.NO_DUPLICATE, tp, int(rows[i]["offset"]), f"has {what} twice",
                *(_standing(row, wheres, what) for row in rows[i : i + 2]),
            )  # fmt: skip


def effect_again(tp: TP, first: Known, again: Rows, rule: Rule, *, marked: bool = True) -> Iterator[Finding]:
    """Of the events of one id within the window one takes effect. One that is in the dead letters did not: a replay of it may.

    `first`: those that did, filed under the least time that they can have been; `again`: those that did, filed under the
    most. `marked`: False where nothing but their outputs says that those of `first` did.
    """
    before = first.before(again["id"], again["offset"])
    if not (before >= 0).any():
        return
    held = first.rows[before]
    replayed = (held["outcome"] == DEAD) & (again["revision"] > held["revision"])
    within = (before >= 0) & (held["outcome"] != TRIMMED) & (again["filed"] <= rule.protects_until(held)) & ~replayed
    for one, other in zip(held[within], again[within], strict=True):
        at, later, apart_ms = int(one["offset"]), int(other["offset"]), int(other["filed"]) - int(one["filed"])
        claim = (
            f"the events at {place(tp, at)} and {place(tp, later)} have one id and both took effect, {apart_ms / 1000:,.3f} s "
            f"apart; the window is {rule.window_ms / 1000:,.0f} s"
        )
        why = "" if marked else ": the first has outputs, and its mark is gone"
        witnesses = Witness(tp, at, "took effect"), Witness(tp, later, "took effect again")
        yield Finding(Law.NO_DUPLICATE, claim + why, witnesses)


def _by_event(outputs: Rows) -> tuple[Rows, Offsets]:
    """Outputs by event and step, and beside each the number of `events_of`."""
    event = events_of(outputs)
    order = np.lexsort((outputs["step"], event))
    return outputs[order], event[order]


# -- order


class Origin(NamedTuple):
    """Whose outputs they are: those that an agent, by its number in the plan, had of the events of a source partition."""

    source: TP
    agent: int


class Placed(NamedTuple):
    """An output as it stands in its partition."""

    at: int
    key: bytes | None
    origin: Origin
    offset: int
    step: int


def order_per_key(
    tp: TP,
    outputs: Iterable[Placed],
    last: dict[tuple[bytes | None, Origin], Placed],
    jumped: Set[tuple[TP, int]] = frozenset(),
) -> Iterator[Finding]:
    """In an output partition, outputs of one key from one source partition stand in the order of their events.

    The same output a second time is a duplicate, not a disorder. `last`: where each key has come to, kept from one piece
    of the partition to the next. `jumped`: replays of events that held their keys, which came before those that waited for them.
    """
    for before, after in early(outputs, last, jumped):
        key = None if after.key is None else after.key.decode(errors="backslashreplace")
        yield Finding(
            Law.ORDER,
            f"key {key!r}: the output of the event at {place(after.origin.source, after.offset)} stands after that of the "
            f"one at offset {before.offset}",
            tuple(Witness(tp, x.at, f"output {x.step} of offset {x.offset}", key=key) for x in (before, after)),
        )


def early(
    outputs: Iterable[Placed],
    last: dict[tuple[bytes | None, Origin], Placed],
    jumped: Set[tuple[TP, int]] = frozenset(),
) -> Iterator[tuple[Placed, Placed]]:
    """Outputs that stand before one of an earlier event of their key, and that one."""
    for after in outputs:
        if jumped and (after.origin.source, after.offset) in jumped:
            continue
        before = last.get((after.key, after.origin), after)
        if (after.offset, after.step) >= (before.offset, before.step):
            last[after.key, after.origin] = after
        else:
            yield before, after


# -- nothing aborted or torn


def atomicity(tp: TP, stretch: Stretch, wheres: Sequence[TP], whole: Whole) -> Iterator[Finding]:
    """Marks, outputs and dead letters are of committed records, and of one mind about each."""
    marks, outputs, letters = stretch.marks, stretch.outputs, stretch.letters
    if whole.source:
        for what, rows in (("took effect", marks), ("has an output", outputs), ("is in the dead letters", letters)):
            absent = rows[~among(rows["offset"], stretch.records) & (rows["offset"] >= stretch.gone)]
            for row in absent[np.unique(absent["offset"], return_index=True)[1]]:
                led_to = () if rows is marks else (_standing(row, wheres, "what it led to"),)
                yield Finding(
                    Law.ATOMIC,
                    f"{place(tp, row['offset'])} {what}, and no committed record stands there: what was read was aborted, "
                    "or never there",
                    (Witness(tp, int(row["offset"]), "no committed record"), *led_to),
                )
    lettered = np.sort(letters["offset"])
    done, dead = (marks["offset"][marks["outcome"] == outcome] for outcome in (DONE, DEAD))
    given_up = outputs["offset"][among(events_of(outputs), np.sort(events_of(letters)))]
    two_ids = (marks["offset"][1:] == marks["offset"][:-1]) & (marks["id"][1:] != marks["id"][:-1])
    for law, offsets, claim in (
        (Law.ATOMIC, done[among(done, lettered)], "took effect, and it is in the dead letters"),
        (Law.ATOMIC, np.unique(given_up), "has outputs, and it is in the dead letters"),
        (Law.ATOMIC, marks["offset"][1:][two_ids], "has marks of two ids"),
        (Law.NO_LOSS, dead[~among(dead, lettered) & whole.letters],
         "is lost: its mark says that it is in the dead letters, and it is not there"),
    ):  # fmt: skip
        for offset in offsets.tolist():
            yield _of_event(law, tp, offset, claim)
    for letter in letters[letters["content"] != 0]:
        offset, content = int(letter["offset"]), int(letter["content"])
        if stretch.contents.get(offset, content) != content:
            stands = _standing(letter, wheres, "dead letter")
            yield _of_event(Law.ATOMIC, tp, offset, "has a dead letter with another key or value", stands)
    if whole.outputs and outputs["step"].any():
        later = (outputs["step"] >= LATER) & (outputs["step"] < NAMED)
        yield from _steps_missing(tp, outputs[outputs["step"] < LATER], 0)
        yield from _steps_missing(tp, outputs[later], LATER)


def _numbered(step: int) -> str:
    """The number of an output, as its lineage has it."""
    if step >= NAMED:
        return f"~{step - NAMED}"
    return f"+{step - LATER}" if step >= LATER else str(step)


def _steps_missing(tp: TP, outputs: Rows, first: int) -> Iterator[Finding]:
    """The outputs of an event are numbered from `first`, without a gap."""
    rows, event = _by_event(outputs)
    step = rows["step"].astype(np.int64)
    begins = np.append(True, event[1:] != event[:-1])
    wanted = np.where(begins, first, np.append(first, step[:-1] + 1))
    # One that is there twice stands beside itself.
    gaps = (step != wanted) & (begins | (step != wanted - 1))
    for offset, there, missing in zip(rows["offset"][gaps], step[gaps], wanted[gaps], strict=True):
        yield _of_event(
            Law.ATOMIC, tp, offset, f"has output {_numbered(there)}, and output {_numbered(missing)} is not there"
        )


def within_position(tp: TP, rows: Rows, closing: int, what: str) -> Iterator[Finding]:
    """`rows` were committed before the position `closing` was read: none may lie beyond it."""
    for offset in np.unique(rows["offset"][rows["offset"] >= closing]).tolist():
        claim = f"has {what}, and the position that must be committed with it stands at {closing}"
        yield _of_event(Law.ATOMIC, tp, offset, claim)


# -- positions


def position_never_back(tp: TP, at: int, before: Position, after: Position) -> Iterator[Finding]:
    """From one position record of a task to the next, nothing goes back, unless `semel reset` wrote it."""
    if after.generation < 0 and after.writer.endswith("-reset"):
        return
    witness = Witness(tp, at, f"written by {after.writer}, generation {after.generation}, epoch {after.epoch}")
    for topic, now in after.topics.items():
        then = before.topics.get(topic)
        if then is not None and then.id == now.id and now.next < then.next:
            sentence = f"task {tp.partition} went back from offset {then.next} of {topic} to {now.next}"
            yield Finding(Law.POSITION, sentence, (witness,))
    counts = ((name, n, after.counts.get(name, n)) for name, n in before.counts.items())
    fallen = [f"{name} from {n:,} to {now:,}" for name, n, now in counts if now < n]
    if fallen:
        sentence = f"the running counts of task {tp.partition} went back: {', '.join(fallen)}"
        yield Finding(Law.POSITION, sentence, (witness,))


def fenced_writes_nothing(tp: TP, at: int, before: Position, late: Position, after: Position) -> Iterator[Finding]:
    """A record of an older generation between two of one worker's generation is of a worker that was fenced.

    Three position records of a task in a row; the middle one, at offset `at`, is judged.
    """
    same_run = (before.writer, before.generation) == (after.writer, after.generation) and before.epoch < after.epoch
    if same_run and 0 <= late.generation < before.generation:
        yield Finding(
            Law.FENCED,
            f"{late.writer} wrote for task {tp.partition} under generation {late.generation} while {before.writer} held it "
            f"under generation {before.generation}",
            (Witness(tp, at, f"generation {late.generation}, epoch {late.epoch}"),),
        )
