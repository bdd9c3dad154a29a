"""The laws, one function each: pure, over columns of a recorded history. An empty answer means that the law holds.

Nothing here decides again what the engine decided. When an event was filed is read from its mark; stream time between
two marks is known within bounds (`stream_floor`), and where the bounds leave room, the engine is believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semel.port import TP
from semel.proof.findings import Finding, Law, Witness
from semel.proof.history import Kind, Known, Offsets, Rows, Stretch, among
from semel.state.marks import DEAD, DONE
from semel.state.positions import Position

# The outcome of a mark that was trimmed: its record is there, what became of it is not.
TRIMMED = 2
NEVER = -(2**62)
# So many in a row make stream time jump (protocol rule 20).
IN_A_ROW = 3


class Rule(NamedTuple):
    """What a dedup declaration says, as far as judging needs it."""

    window_ms: int
    bucket_ms: int
    missing: str = "quarantine"
    conflict: str = "quarantine"
    late: str = "quarantine"


class Missing(NamedTuple):
    """Marks that are gone: below source offset `before`, of events filed before `filed_before`.

    `first_seen`: whether the source is there from where the task began, so that each of those events can be seen.
    """

    before: int
    filed_before: int
    first_seen: bool


class Fate(IntEnum):
    """What became of a record that no mark names."""

    DUPLICATE = 0
    # Or late, passed on and filtered.
    MAYBE_DUPLICATE = 1
    DROPPED = 2
    PASSED = 3
    UNWITNESSED = 4
    # Nothing accounts for it, and what could may be gone.
    UNLETTERED = 5
    # Compaction may have taken it before it was read.
    UNREAD = 6
    # From here on a law is broken.
    LOST = 7
    LOST_UNDECODABLE = 8
    LOST_MISSING = 9
    LOST_CONFLICT = 10
    LOST_DEAD = 11
    TORN = 12
    DOUBLED = 13


_SAID = {
    Fate.LOST: "no mark, no dead letter and no earlier event of its id within the window accounts for it",
    Fate.LOST_UNDECODABLE: "it cannot be decoded, and it is not in the dead letters",
    Fate.LOST_MISSING: "its id or its time cannot be read, and it is not in the dead letters",
    Fate.LOST_CONFLICT: "it has the id of an earlier event and another payload, and it is not in the dead letters",
    Fate.LOST_DEAD: "the first event of its id is in the dead letters, where it had to follow, and it is not there",
}


# -- stream time, from below


def stream_floor(marks: Rows, records: Offsets, before_ms: int, window_ms: int) -> NDArray[np.int64]:
    """For each mark (in order of offset): what stream time was after it, at least.

    A mark filed within a window of what stream time was moved it there. One filed further ahead may have waited for
    others; only three records in a row are certain to have moved it.
    """
    filed = marks["filed"].astype(np.int64)
    highest = np.maximum.accumulate(np.concatenate((np.array([before_ms], np.int64), filed)))
    if not len(filed) or (filed <= highest[:-1] + window_ms).all():
        return highest[1:]
    floors = np.empty(len(filed), np.int64)
    place = np.searchsorted(records, marks["offset"])
    now, row, last = before_ms, [0][:0], -2
    for i, (at, where) in enumerate(zip(filed.tolist(), place.tolist(), strict=True)):
        row = [*row[1 - IN_A_ROW :], at] if where == last + 1 else [at]
        if at <= now + window_ms:
            now = max(now, at)
        elif len(row) == IN_A_ROW:
            # All of them waited, and moved it as far as the smallest; or one of them did not have to.
            now = max(now, min(row))
        last = where
        floors[i] = now
    return floors


def ceiling_at(offsets: Offsets, marks: Rows, stream_ms: int) -> NDArray[np.int64]:
    """What stream time was, at most, when the records at `offsets` were decided: no later mark is filed before it."""
    least = np.minimum.accumulate(np.append(marks["filed"].astype(np.int64), stream_ms)[::-1])[::-1]
    return least[np.searchsorted(marks["offset"], offsets, side="right")]


def floor_at(offsets: Offsets, marks: Rows, floors: NDArray[np.int64], before_ms: int) -> NDArray[np.int64]:
    """What stream time was, at least, when the records at `offsets` were decided."""
    at = np.searchsorted(marks["offset"], offsets) - 1
    return np.where(at >= 0, floors[np.maximum(at, 0)] if len(floors) else before_ms, before_ms)


# -- no loss


def fates(
    unmarked: Rows,
    has_output: NDArray[np.bool_],
    known: Known,
    floor: NDArray[np.int64],
    ceiling: NDArray[np.int64],
    rule: Rule,
    *,
    gone: Missing | None = None,
    whole_letters: bool = True,
) -> NDArray[np.uint8]:
    """What became of each record that is neither marked as done nor dead-lettered: a `Fate`.

    `known`: the marks before it. `floor`, `ceiling`: what stream time was at least, and at most.
    """
    count = len(unmarked)
    ids, offsets, times, kinds = unmarked["id"], unmarked["offset"], unmarked["time"], unmarked["kind"]
    found = np.full(count, Fate.LOST, np.uint8)
    keyed = kinds == Kind.KEYED
    rows = known.rows
    if len(rows):
        before = known.before(ids, offsets)
        first = rows[np.maximum(before, 0)]
        until = first["filed"] + rule.window_ms
        protected, over = keyed & (before >= 0) & (floor <= until), ceiling > until
        equal = first["payload"] == unmarked["payload"]
        dead, seen_only = first["outcome"] == DEAD, first["outcome"] == TRIMMED
    else:
        protected = over = equal = dead = seen_only = np.zeros(count, np.bool_)
    late = keyed & (times + rule.window_ms < ceiling)
    _fill(found, late, rule.late, Fate.LOST)
    if gone is not None:
        unseen = (offsets < gone.before) | ((floor <= gone.filed_before + rule.window_ms) & (not gone.first_seen))
        # Whether an old record was late when it was decided, or had a mark that is gone, nobody knows.
        found[keyed & unseen & ((found == Fate.LOST) | (found == Fate.DROPPED))] = Fate.UNWITNESSED
    # Of one that was seen only, nobody knows whether it still protected.
    certain = protected & ~equal & ~(seen_only & (found == Fate.UNWITNESSED))
    _fill(found, certain, rule.conflict, Fate.LOST_CONFLICT)
    found[protected & equal & dead] = Fate.LOST_DEAD
    found[protected & equal & ~dead] = Fate.DUPLICATE
    if rule.late == "pass":
        # Late, and its first protected no more: for all that is known it may have been passed on.
        either = protected & over & late
        found[either] = Fate.PASSED
        found[either & equal & ~dead & ~has_output] = Fate.MAYBE_DUPLICATE
    found[kinds == Kind.UNDECODABLE] = Fate.LOST_UNDECODABLE
    _fill(found, kinds == Kind.MISSING, rule.missing, Fate.LOST_MISSING)
    found[kinds == Kind.UNTIMED] = Fate.LOST_MISSING
    # An output is a witness of its own.
    found[has_output & (found == Fate.DUPLICATE)] = Fate.DOUBLED
    found[has_output & (found == Fate.UNWITNESSED)] = Fate.PASSED
    found[has_output & ((found == Fate.DROPPED) | ((found >= Fate.LOST) & (found <= Fate.LOST_DEAD)))] = Fate.TORN
    if not whole_letters:
        found[(found >= Fate.LOST) & (found <= Fate.LOST_DEAD)] = Fate.UNLETTERED
    return found


def _fill(found: NDArray[np.uint8], where: NDArray[np.bool_], handling: str, quarantined: Fate) -> None:
    found[where] = {"drop": Fate.DROPPED, "pass": Fate.PASSED}.get(handling, quarantined)


def no_loss(tp: TP, unmarked: Rows, fate: NDArray[np.uint8]) -> Iterator[Finding]:
    """Every record below the position took effect or is accounted for."""
    lost = (fate >= Fate.LOST) & (fate <= Fate.LOST_DEAD)
    for row, why in zip(unmarked[lost], fate[lost].tolist(), strict=True):
        offset = int(row["offset"])
        yield Finding(
            Law.NO_LOSS,
            f"the event at {_place(tp, offset)} is lost: {_SAID[Fate(why)]}",
            (Witness(tp, offset, "the event"),),
        )


# -- no duplicate


def no_duplicate(tp: TP, stretch: Stretch, known: Known, rule: Rule | None, wheres: Sequence[TP]) -> Iterator[Finding]:
    """One event of an id takes effect within the window, and what it led to is there once.

    `known`: the marks before and in this stretch. `wheres`: the partitions that rows number.
    """
    if rule is not None and len(stretch.marks):
        yield from _marked_twice(tp, stretch, known, rule)
    outputs, event = in_order(stretch.outputs)
    same = (event[1:] == event[:-1]) & (outputs["step"][1:] == outputs["step"][:-1])
    for i in np.flatnonzero(same).tolist():
        one, other = outputs[i], outputs[i + 1]
        offset, step = int(one["offset"]), int(one["step"])
        yield Finding(
            Law.NO_DUPLICATE,
            f"output {step} of the event at {_place(tp, offset)} is there twice",
            (Witness(tp, offset, "the event"), _output(one, wheres), _output(other, wheres)),
        )
    letters = np.sort(stretch.letters, order=["offset", "agent", "at"])
    given_up = events_of(letters)
    for i in np.flatnonzero(given_up[1:] == given_up[:-1]).tolist():
        offset = int(letters[i]["offset"])
        yield Finding(
            Law.NO_DUPLICATE,
            f"the event at {_place(tp, offset)} is in the dead letters twice",
            tuple(Witness(wheres[int(x["where"])], int(x["at"]), "dead letter") for x in (letters[i], letters[i + 1])),
        )


def in_order(outputs: Rows) -> tuple[Rows, NDArray[np.int64]]:
    """Outputs by event and step, and beside each the number of `events_of`."""
    event = events_of(outputs)
    order = np.lexsort((outputs["step"], event))
    return outputs[order], event[order]


def events_of(rows: Rows) -> NDArray[np.int64]:
    """For each output or dead letter a number that is its event's, as its agent handled it."""
    return (rows["offset"] << 8) | rows["agent"]


def _marked_twice(tp: TP, stretch: Stretch, known: Known, rule: Rule) -> Iterator[Finding]:
    rows = known.rows[known.rows["outcome"] != TRIMMED]
    new = rows["offset"][1:] >= stretch.start
    same = (rows["id"][1:] == rows["id"][:-1]) & new
    within = same & (rows["filed"][1:] <= rows["filed"][:-1] + rule.window_ms)
    for i in np.flatnonzero(within).tolist():
        first, second = int(rows[i]["offset"]), int(rows[i + 1]["offset"])
        if first == second:
            said = f"the event at {_place(tp, first)} took effect twice: it has two marks"
        else:
            apart = int(rows[i + 1]["filed"]) - int(rows[i]["filed"])
            said = (
                f"the events at {_place(tp, first)} and {_place(tp, second)} have one id and both took effect, "
                f"{apart / 1000:,.3f} s apart; the window is {rule.window_ms / 1000:,.0f} s"
            )
        yield Finding(
            Law.NO_DUPLICATE, said, (Witness(tp, first, "took effect"), Witness(tp, second, "took effect again"))
        )


def doubled(tp: TP, unmarked: Rows, fate: NDArray[np.uint8], known: Known) -> Iterator[Finding]:
    """A record that its id's mark calls a duplicate has no outputs."""
    for row in unmarked[fate == Fate.DOUBLED]:
        offset = int(row["offset"])
        at = int(known.before(np.array([row["id"]]), np.array([offset]))[0])
        first = int(known.rows[at]["offset"])
        yield Finding(
            Law.NO_DUPLICATE,
            f"the event at {_place(tp, offset)} is a duplicate of the one at offset {first}, and it has outputs",
            (Witness(tp, first, "took effect"), Witness(tp, offset, "the duplicate")),
        )


# -- order


class Placed(NamedTuple):
    """An output as it stands in its partition: its key, and where it comes from."""

    at: int
    key: bytes | None
    source: TP
    agent: str
    offset: int
    step: int


def order_per_key(
    tp: TP, outputs: Iterable[Placed], last: dict[tuple[bytes | None, TP, str], Placed]
) -> Iterator[Finding]:
    """In an output partition, outputs of one key from one source partition stand in the order of their events.

    The same output a second time is a duplicate, not a disorder. `last`: where each key has come to, kept from one piece
    of the partition to the next.
    """
    for found in outputs:
        place = (found.key, found.source, found.agent)
        before = last.get(place)
        if before is not None and (found.offset, found.step) < (before.offset, before.step):
            key = None if found.key is None else found.key.decode(errors="backslashreplace")
            yield Finding(
                Law.ORDER,
                f"key {key!r}: the output of the event at {_place(found.source, found.offset)} stands after that of the "
                f"one at offset {before.offset}",
                (
                    Witness(tp, before.at, f"output {before.step} of offset {before.offset}", key=key),
                    Witness(tp, found.at, f"output {found.step} of offset {found.offset}", key=key),
                ),
            )
        else:
            last[place] = found


# -- nothing aborted or torn


def atomicity(
    tp: TP, stretch: Stretch, wheres: Sequence[TP], *, whole_source: bool, whole_outputs: bool, whole_letters: bool
) -> Iterator[Finding]:
    """Marks, outputs and dead letters are of committed records, and of one mind about each.

    `whole_...`: nothing but what was never committed is missing there.
    """
    marks, outputs, letters = stretch.marks, stretch.outputs, stretch.letters
    if whole_source:
        for what, rows in (("took effect", marks), ("has an output", outputs), ("is in the dead letters", letters)):
            absent = ~among(rows["offset"], stretch.records) & (rows["offset"] >= stretch.gone)
            for offset in sorted(set(rows["offset"][absent].tolist())):
                there = rows[rows["offset"] == offset][0]
                witness = Witness(tp, offset, "no committed record")
                also = (
                    () if rows is marks else (Witness(wheres[int(there["where"])], int(there["at"]), "what it led to"),)
                )
                yield Finding(
                    Law.ATOMIC,
                    f"{_place(tp, offset)} {what}, and no committed record stands there: what was read was aborted, or "
                    "never there",
                    (witness, *also),
                )
    lettered = np.sort(letters["offset"])
    done = marks["offset"][marks["outcome"] == DONE]
    for offset in done[among(done, lettered)].tolist():
        yield _torn(tp, offset, "took effect, and it is in the dead letters")
    both = among(events_of(outputs), np.sort(events_of(letters)))
    for offset in sorted(set(outputs["offset"][both].tolist())):
        yield _torn(tp, offset, "has outputs, and it is in the dead letters")
    for letter in letters[letters["content"] != 0]:
        offset = int(letter["offset"])
        if stretch.contents.get(offset, int(letter["content"])) != int(letter["content"]):
            yield Finding(
                Law.ATOMIC,
                f"the dead letter of the event at {_place(tp, offset)} has another key or value than the event",
                (
                    Witness(tp, offset, "the event"),
                    Witness(wheres[int(letter["where"])], int(letter["at"]), "dead letter"),
                ),
            )
    dead = marks["offset"][marks["outcome"] == DEAD]
    for offset in dead[~among(dead, lettered)].tolist() if whole_letters else ():
        yield Finding(
            Law.NO_LOSS,
            f"the event at {_place(tp, offset)} is lost: its mark says that it is in the dead letters, and it is not there",
            (Witness(tp, offset, "the event"),),
        )
    ordered = marks[np.argsort(marks["offset"], kind="stable")]
    twice = (ordered["offset"][1:] == ordered["offset"][:-1]) & (ordered["id"][1:] != ordered["id"][:-1])
    for offset in ordered["offset"][1:][twice].tolist():
        yield _torn(tp, offset, "has marks of two ids")
    if whole_outputs and len(outputs):
        yield from _steps_missing(tp, outputs)


def _steps_missing(tp: TP, outputs: Rows) -> Iterator[Finding]:
    if not outputs["step"].any():
        return
    rows, event = in_order(outputs)
    step = rows["step"].astype(np.int64)
    begins = np.ones(len(rows), np.bool_)
    begins[1:] = event[1:] != event[:-1]
    wanted = np.zeros(len(rows), np.int64)
    wanted[1:] = np.where(begins[1:], 0, step[:-1] + 1)
    # One that is there twice stands beside itself.
    twice = np.zeros(len(rows), np.bool_)
    twice[1:] = ~begins[1:] & (step[1:] == step[:-1])
    gaps = (step != wanted) & ~twice
    for row, missing in zip(rows[gaps], wanted[gaps].tolist(), strict=True):
        offset = int(row["offset"])
        yield Finding(
            Law.ATOMIC,
            f"the event at {_place(tp, offset)} has output {int(row['step'])}, and output {missing} is not there",
            (Witness(tp, offset, "the event"),),
        )


def torn(tp: TP, unmarked: Rows, fate: NDArray[np.uint8]) -> Iterator[Finding]:
    """An output has its event's mark beside it."""
    for offset in unmarked["offset"][fate == Fate.TORN].tolist():
        yield _torn(tp, offset, "has outputs, and no mark says that it took effect")


def within_position(tp: TP, rows: Rows, closing: int, what: str) -> Iterator[Finding]:
    """`rows` were committed before the position `closing` was read: none may lie beyond it."""
    for offset in sorted(set(rows["offset"][rows["offset"] >= closing].tolist())):
        yield _torn(tp, offset, f"has {what}, and the position that must be committed with it stands at {closing}")


def _torn(tp: TP, offset: int, said: str) -> Finding:
    return Finding(Law.ATOMIC, f"the event at {_place(tp, offset)} {said}", (Witness(tp, offset, "the event"),))


# -- conservation


class Ledger(NamedTuple):
    """What was found of one task below its position. `took_effect`: the least and the most that can have.

    `records`: the least and the most committed records that its agents had to take in. `with_output`: events that have an
    output, None where that cannot be counted. `outputs`: outputs found, by topic; `letters`: dead letters; None where not
    all are there.
    """

    records: tuple[int, int] | None
    took_effect: tuple[int, int] | None
    letters: int | None
    outputs: Mapping[str, int]
    with_output: int | None


def conservation(task: int, ledger: Ledger, position: Position) -> Iterator[Finding]:
    """What was found is what the running counts of the position record say."""
    counts = position.counts

    def count(name: str) -> int:
        return counts.get(name, 0)

    taken = count("in") - count("replayed")
    if ledger.records is not None and not ledger.records[0] <= taken <= ledger.records[1]:
        said = _from_to(*ledger.records)
        yield _unbalanced(task, f"{said} committed records lie below its position, it took in {taken:,}")
    if ledger.letters is not None and ledger.letters != count("dead"):
        yield _unbalanced(task, f"{ledger.letters:,} dead letters are there, it wrote {count('dead'):,}")
    for topic, wanted in sorted(position.outputs.items()):
        found = ledger.outputs.get(topic)
        if found is not None and found != wanted:
            yield _unbalanced(task, f"{found:,} outputs are in {topic}, it wrote {wanted:,}")
    effects = taken - count("duplicates") - count("dropped") - count("dead")
    if ledger.took_effect is not None:
        least, most = ledger.took_effect
        if not least <= effects <= most:
            yield _unbalanced(
                task, f"{_from_to(least, most)} events took effect by what is there, {effects:,} by its counts"
            )
    if ledger.with_output is not None and ledger.with_output + count("filtered") != effects:
        yield _unbalanced(
            task,
            f"{ledger.with_output:,} events have outputs and {count('filtered'):,} were filtered, which together are not "
            f"the {effects:,} that took effect",
        )


def _from_to(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _unbalanced(task: int, said: str) -> Finding:
    return Finding(Law.CONSERVATION, f"task {task}: {said}")


# -- positions


def position_never_back(tp: TP, at: int, before: Position, after: Position) -> Iterator[Finding]:
    """From one position record of a task to the next, nothing goes back, unless `semel reset` wrote it."""
    if reset_by(after):
        return
    for topic, now in after.topics.items():
        then = before.topics.get(topic)
        if then is not None and then.id == now.id and now.next < then.next:
            yield Finding(
                Law.POSITION,
                f"task {tp.partition} went back from offset {then.next} of {topic} to {now.next}",
                (Witness(tp, at, f"written by {after.writer}, generation {after.generation}, epoch {after.epoch}"),),
            )
    fallen = [f"{name} from {n:,} to {after.counts[name]:,}" for name, n in before.counts.items()
              if after.counts.get(name, n) < n]  # fmt: skip
    if fallen:
        yield Finding(
            Law.POSITION,
            f"the running counts of task {tp.partition} went back: {', '.join(fallen)}",
            (Witness(tp, at, f"written by {after.writer}, generation {after.generation}, epoch {after.epoch}"),),
        )


def reset_by(position: Position) -> bool:
    """Whether `semel reset` wrote it: what a task counts begins anew there."""
    return position.generation < 0 and position.writer.endswith("-reset")


def fenced_writes_nothing(tp: TP, at: int, recent: Sequence[Position]) -> Iterator[Finding]:
    """A record of an older generation between two of one worker's generation is of a worker that was fenced.

    `recent`: the last three position records of a task; the middle one is judged.
    """
    if len(recent) < 3:
        return
    one, late, other = recent[-3:]
    same_run = one.writer == other.writer and one.generation == other.generation and one.epoch < other.epoch
    if same_run and 0 <= late.generation < one.generation:
        yield Finding(
            Law.FENCED,
            f"{late.writer} wrote for task {tp.partition} under generation {late.generation} while {one.writer} held it "
            f"under generation {one.generation}",
            (Witness(tp, at, f"generation {late.generation}, epoch {late.epoch}"),),
        )


# -- tables


def table_is_fold(
    table: str, partition: int, changes: Iterable[tuple[bytes, bytes | None]], rows: Mapping[bytes, bytes]
) -> Iterator[Finding]:
    """The rows of a table are the last word of its changelog on each key."""
    folded: dict[bytes, bytes] = {}
    for key, value in changes:
        if value is None:
            folded.pop(key, None)
        else:
            folded[key] = value
    for key in sorted(folded.keys() | rows.keys()):
        if folded.get(key) != rows.get(key):
            shown = key.decode(errors="backslashreplace")
            yield Finding(
                Law.FOLD, f"{table}[{shown}] in partition {partition} is {_shown(rows.get(key))}, its changelog says "
                f"{_shown(folded.get(key))}"
            )  # fmt: skip


def _shown(value: bytes | None) -> str:
    return "absent" if value is None else repr(value[:80].decode(errors="backslashreplace"))


def _place(tp: TP, offset: int) -> str:
    return f"{tp.topic}[{tp.partition}]@{offset}"


def _output(row: Any, wheres: Sequence[TP]) -> Witness:
    return Witness(wheres[int(row["where"])], int(row["at"]), f"output {int(row['step'])}")
