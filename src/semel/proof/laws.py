"""The laws, one function each: pure, over columns of a recorded history. An empty answer means that the law holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semel.port import TP
from semel.proof.columns import Known, Offsets, Rows, Stretch, among
from semel.proof.outcomes import TRIMMED, Outcome, Rule, is_lost
from semel.proof.proof import Finding, Law, Witness
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


def _of_event(law: Law, tp: TP, offset: int, claim: str, *more: Witness) -> Finding:
    """`claim` of the event at an offset, which is the first witness."""
    return Finding(law, f"the event at {_place(tp, offset)} {claim}", (Witness(tp, int(offset), "the event"), *more))


def _place(tp: TP, offset: int) -> str:
    return f"{tp.topic}[{tp.partition}]@{offset}"


def _standing(row: Any, wheres: Sequence[TP], what: str) -> Witness:
    """An output or a dead letter, where it stands. `wheres`: the partitions that rows number."""
    return Witness(wheres[int(row["where"])], int(row["at"]), what)


# -- no loss


def no_loss(tp: TP, unmarked: Rows, outcome: NDArray[np.uint8]) -> Iterator[Finding]:
    """Every record below the position took effect or is accounted for."""
    lost = is_lost(outcome)
    for offset, why in zip(unmarked["offset"][lost].tolist(), outcome[lost].tolist(), strict=True):
        yield _of_event(Law.NO_LOSS, tp, offset, f"is lost: {_LOST[Outcome(why)]}")


# -- no duplicate


def no_duplicate(tp: TP, stretch: Stretch, known: Known, rule: Rule | None, wheres: Sequence[TP]) -> Iterator[Finding]:
    """One event of an id takes effect within the window, and what it led to is there once.

    `known`: the marks before and in this stretch.
    """
    if rule is not None and len(stretch.marks):
        yield from _marked_twice(tp, stretch, known, rule)
    outputs, event = _by_event(stretch.outputs)
    same = (event[1:] == event[:-1]) & (outputs["step"][1:] == outputs["step"][:-1])
    for i in np.flatnonzero(same).tolist():
        offset, output = int(outputs[i]["offset"]), f"output {int(outputs[i]['step'])}"
        twice = (_standing(row, wheres, output) for row in outputs[i : i + 2])
        yield Finding(
            Law.NO_DUPLICATE,
            f"{output} of the event at {_place(tp, offset)} is there twice",
            (Witness(tp, offset, "the event"), *twice),
        )
    letters = np.sort(stretch.letters, order=["offset", "agent", "at"])
    given_up = events_of(letters)
    for i in np.flatnonzero(given_up[1:] == given_up[:-1]).tolist():
        yield Finding(
            Law.NO_DUPLICATE,
            f"the event at {_place(tp, letters[i]['offset'])} is in the dead letters twice",
            tuple(_standing(row, wheres, "dead letter") for row in letters[i : i + 2]),
        )


def _by_event(outputs: Rows) -> tuple[Rows, Offsets]:
    """Outputs by event and step, and beside each the number of `events_of`."""
    event = events_of(outputs)
    order = np.lexsort((outputs["step"], event))
    return outputs[order], event[order]


def events_of(rows: Rows) -> Offsets:
    """For each output or dead letter a number that is its event's, as its agent handled it."""
    return (rows["offset"] << 8) | rows["agent"]


def _marked_twice(tp: TP, stretch: Stretch, known: Known, rule: Rule) -> Iterator[Finding]:
    rows = known.rows[known.rows["outcome"] != TRIMMED]
    one, other = rows[:-1], rows[1:]
    within = (other["id"] == one["id"]) & (other["offset"] >= stretch.start)
    within &= other["filed"] <= rule.protects_until(one)
    for before, after in zip(one[within], other[within], strict=True):
        first, second = int(before["offset"]), int(after["offset"])
        if first == second:
            sentence = f"the event at {_place(tp, first)} took effect twice: it has two marks"
        else:
            apart = int(after["filed"]) - int(before["filed"])
            sentence = (
                f"the events at {_place(tp, first)} and {_place(tp, second)} have one id and both took effect, "
                f"{apart / 1000:,.3f} s apart; the window is {rule.window_ms / 1000:,.0f} s"
            )
        yield _twice(tp, first, second, sentence)


def _twice(tp: TP, first: int, second: int, sentence: str) -> Finding:
    return Finding(
        Law.NO_DUPLICATE, sentence, (Witness(tp, first, "took effect"), Witness(tp, second, "took effect again"))
    )


def effect_again(tp: TP, witnessed: Known, again: Rows, rule: Rule) -> Iterator[Finding]:
    """An event took effect, as its outputs say, and within its window another one of its id did.

    `witnessed`: those events, filed under the least time that they can have been; `again`: what took effect, filed under the
    most.
    """
    if not len(witnessed.rows):
        return
    before = witnessed.before(again["id"], again["offset"])
    first = witnessed.rows[before]
    twice = (before >= 0) & (again["filed"] <= first["filed"] + rule.window_ms)
    for one, other in zip(first[twice]["offset"].tolist(), again[twice]["offset"].tolist(), strict=True):
        yield _twice(
            tp, one, other,
            f"the events at {_place(tp, one)} and {_place(tp, other)} have one id and both took effect within the window of "
            f"{rule.window_ms / 1000:,.0f} s: the first has outputs, and its mark is gone",
        )  # fmt: skip


def doubled(tp: TP, unmarked: Rows, outcome: NDArray[np.uint8], known: Known) -> Iterator[Finding]:
    """A record that its id's mark calls a duplicate has no outputs."""
    rows = unmarked[outcome == Outcome.DOUBLED]
    first_of = known.rows[known.before(rows["id"], rows["offset"])]["offset"] if len(rows) else rows["offset"]
    for offset, first in zip(rows["offset"].tolist(), first_of.tolist(), strict=True):
        yield Finding(
            Law.NO_DUPLICATE,
            f"the event at {_place(tp, offset)} is a duplicate of the one at offset {first}, and it has outputs",
            (Witness(tp, first, "took effect"), Witness(tp, offset, "the duplicate")),
        )


# -- order


class Origin(NamedTuple):
    """Whose outputs they are: those that an agent, by its number in the plan, had of the events of a source partition."""

    source: TP
    agent: int


class Placed(NamedTuple):
    """An output as it stands in its partition: its key, and where it comes from."""

    at: int
    key: bytes | None
    origin: Origin
    offset: int
    step: int


def order_per_key(
    tp: TP, outputs: Iterable[Placed], last: dict[tuple[bytes | None, Origin], Placed]
) -> Iterator[Finding]:
    """In an output partition, outputs of one key from one source partition stand in the order of their events.

    The same output a second time is a duplicate, not a disorder. `last`: where each key has come to, kept from one piece
    of the partition to the next.
    """
    for after in outputs:
        before = last.get((after.key, after.origin), after)
        if (after.offset, after.step) >= (before.offset, before.step):
            last[after.key, after.origin] = after
            continue
        key = None if after.key is None else after.key.decode(errors="backslashreplace")
        yield Finding(
            Law.ORDER,
            f"key {key!r}: the output of the event at {_place(after.origin.source, after.offset)} stands after that of the "
            f"one at offset {before.offset}",
            tuple(Witness(tp, x.at, f"output {x.step} of offset {x.offset}", key=key) for x in (before, after)),
        )


# -- nothing aborted or torn


def atomicity(tp: TP, stretch: Stretch, wheres: Sequence[TP], whole: Whole) -> Iterator[Finding]:
    """Marks, outputs and dead letters are of committed records, and of one mind about each."""
    marks, outputs, letters = stretch.marks, stretch.outputs, stretch.letters
    if whole.source:
        for what, rows in (("took effect", marks), ("has an output", outputs), ("is in the dead letters", letters)):
            absent = rows[~among(rows["offset"], stretch.records) & (rows["offset"] >= stretch.gone)]
            for row in absent[np.unique(absent["offset"], return_index=True)[1]]:
                offset = int(row["offset"])
                led_to = () if rows is marks else (_standing(row, wheres, "what it led to"),)
                yield Finding(
                    Law.ATOMIC,
                    f"{_place(tp, offset)} {what}, and no committed record stands there: what was read was aborted, or "
                    "never there",
                    (Witness(tp, offset, "no committed record"), *led_to),
                )
    lettered = np.sort(letters["offset"])
    done = marks["offset"][marks["outcome"] == DONE]
    for offset in done[among(done, lettered)].tolist():
        yield _of_event(Law.ATOMIC, tp, offset, "took effect, and it is in the dead letters")
    both = among(events_of(outputs), np.sort(events_of(letters)))
    for offset in np.unique(outputs["offset"][both]).tolist():
        yield _of_event(Law.ATOMIC, tp, offset, "has outputs, and it is in the dead letters")
    for letter in letters[letters["content"] != 0]:
        offset = int(letter["offset"])
        if stretch.contents.get(offset, int(letter["content"])) != int(letter["content"]):
            yield Finding(
                Law.ATOMIC,
                f"the dead letter of the event at {_place(tp, offset)} has another key or value than the event",
                (Witness(tp, offset, "the event"), _standing(letter, wheres, "dead letter")),
            )
    dead = marks["offset"][marks["outcome"] == DEAD]
    for offset in dead[~among(dead, lettered)].tolist() if whole.letters else ():
        yield _of_event(
            Law.NO_LOSS, tp, offset, "is lost: its mark says that it is in the dead letters, and it is not there"
        )
    twice = (marks["offset"][1:] == marks["offset"][:-1]) & (marks["id"][1:] != marks["id"][:-1])
    for offset in marks["offset"][1:][twice].tolist():
        yield _of_event(Law.ATOMIC, tp, offset, "has marks of two ids")
    if whole.outputs:
        yield from _steps_missing(tp, outputs)


def _steps_missing(tp: TP, outputs: Rows) -> Iterator[Finding]:
    """The outputs of an event are numbered from 0, without a gap."""
    if not outputs["step"].any():
        return
    rows, event = _by_event(outputs)
    step = rows["step"].astype(np.int64)
    begins = np.append(True, event[1:] != event[:-1])
    wanted = np.where(begins, 0, np.append(0, step[:-1] + 1))
    # One that is there twice stands beside itself.
    twice = ~begins & (step == wanted - 1)
    gaps = (step != wanted) & ~twice
    for offset, there, missing in zip(rows["offset"][gaps], step[gaps], wanted[gaps], strict=True):
        yield _of_event(Law.ATOMIC, tp, offset, f"has output {there}, and output {missing} is not there")


def torn(tp: TP, unmarked: Rows, outcome: NDArray[np.uint8]) -> Iterator[Finding]:
    """An output has its event's mark beside it."""
    for offset in unmarked["offset"][outcome == Outcome.TORN].tolist():
        yield _of_event(Law.ATOMIC, tp, offset, "has outputs, and no mark says that it took effect")


def within_position(tp: TP, rows: Rows, closing: int, what: str) -> Iterator[Finding]:
    """`rows` were committed before the position `closing` was read: none may lie beyond it."""
    for offset in np.unique(rows["offset"][rows["offset"] >= closing]).tolist():
        claim = f"has {what}, and the position that must be committed with it stands at {closing}"
        yield _of_event(Law.ATOMIC, tp, offset, claim)


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

    def unbalanced(claim: str) -> Finding:
        return Finding(Law.CONSERVATION, f"task {task}: {claim}")

    counts = Counter(position.counts)
    taken = counts["in"] - counts["replayed"]
    effects = taken - counts["duplicates"] - counts["dropped"] - counts["dead"]
    if ledger.records is not None and not ledger.records[0] <= taken <= ledger.records[1]:
        yield unbalanced(f"{_from_to(*ledger.records)} committed records lie below its position, it took in {taken:,}")
    if ledger.letters is not None and ledger.letters != counts["dead"]:
        yield unbalanced(f"{ledger.letters:,} dead letters are there, it wrote {counts['dead']:,}")
    for topic, wanted in sorted(position.outputs.items()):
        if ledger.outputs.get(topic, wanted) != wanted:
            yield unbalanced(f"{ledger.outputs[topic]:,} outputs are in {topic}, it wrote {wanted:,}")
    if ledger.took_effect is not None and not ledger.took_effect[0] <= effects <= ledger.took_effect[1]:
        yield unbalanced(
            f"{_from_to(*ledger.took_effect)} events took effect by what is there, {effects:,} by its counts"
        )
    if ledger.with_output is not None and ledger.with_output + counts["filtered"] != effects:
        yield unbalanced(
            f"{ledger.with_output:,} events have outputs and {counts['filtered']:,} were filtered, which together are not "
            f"the {effects:,} that took effect"
        )


def _from_to(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


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
    fallen = [
        f"{name} from {n:,} to {after.counts[name]:,}"
        for name, n in before.counts.items() if after.counts.get(name, n) < n
    ]  # fmt: skip
    if fallen:
        sentence = f"the running counts of task {tp.partition} went back: {', '.join(fallen)}"
        yield Finding(Law.POSITION, sentence, (witness,))


def fenced_writes_nothing(
    tp: TP, first: tuple[int, Position], middle: tuple[int, Position], last: tuple[int, Position]
) -> Iterator[Finding]:
    """A record of an older generation between two of one worker's generation is of a worker that was fenced.

    Three position records of a task in a row, with their offsets; the middle one is judged.
    """
    (_, one), (at, late), (_, other) = first, middle, last
    same_run = one.writer == other.writer and one.generation == other.generation and one.epoch < other.epoch
    if same_run and 0 <= late.generation < one.generation:
        yield Finding(
            Law.FENCED,
            f"{late.writer} wrote for task {tp.partition} under generation {late.generation} while {one.writer} held it "
            f"under generation {one.generation}",
            (Witness(tp, at, f"generation {late.generation}, epoch {late.epoch}"),),
        )
