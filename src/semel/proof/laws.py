"""The laws, one function each: pure, over columns of a recorded history. An empty answer means that the law holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semel.port import TP
from semel.proof.fates import TRIMMED, Fate, Rule
from semel.proof.findings import Finding, Law, Witness
from semel.proof.history import Known, Rows, Stretch, among
from semel.state.dedup_marks import DEAD, DONE
from semel.state.positions import Position

_SAID = {
    Fate.LOST: "no mark, no dead letter and no earlier event of its id within the window accounts for it",
    Fate.LOST_UNDECODABLE: "it cannot be decoded, and it is not in the dead letters",
    Fate.LOST_MISSING: "its id or its time cannot be read, and it is not in the dead letters",
    Fate.LOST_CONFLICT: "it has the id of an earlier event and another payload, and it is not in the dead letters",
    Fate.LOST_DEAD: "the first event of its id is in the dead letters, where it had to follow, and it is not there",
}


# -- no loss


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
    within = same & (rows["filed"][1:] <= rule.protects_until(rows[:-1]))
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


def effect_again(tp: TP, witnessed: Known, again: Rows, rule: Rule) -> Iterator[Finding]:
    """An event took effect, as its outputs say, and within its window another one of its id did.

    `witnessed`: those events, filed under the least time that they can have been; `again`: what took effect, filed under the
    most.
    """
    if not len(witnessed) or not len(again):
        return
    before = witnessed.before(again["id"], again["offset"])
    first = witnessed.rows[np.maximum(before, 0)]
    twice = (before >= 0) & (again["filed"] <= first["filed"] + rule.window_ms)
    for one, other in zip(first[twice]["offset"].tolist(), again[twice]["offset"].tolist(), strict=True):
        yield Finding(
            Law.NO_DUPLICATE,
            f"the events at {_place(tp, one)} and {_place(tp, other)} have one id and both took effect within the window of "
            f"{rule.window_ms / 1000:,.0f} s: the first has outputs, and its mark is gone",
            (Witness(tp, one, "took effect"), Witness(tp, other, "took effect again")),
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


def _place(tp: TP, offset: int) -> str:
    return f"{tp.topic}[{tp.partition}]@{offset}"


def _output(row: Any, wheres: Sequence[TP]) -> Witness:
    return Witness(wheres[int(row["where"])], int(row["at"]), f"output {int(row['step'])}")
