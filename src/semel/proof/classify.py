"""Classifying: a source partition is read once, a stretch at a time and in order; each record has an outcome, by what was
written of it, and stretch by stretch the laws are held against them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semel.port import TP, Record
from semel.proof import laws, outcomes
from semel.proof.columns import (
    MARK,
    SAMPLE,
    Kind,
    Known,
    Offsets,
    Rows,
    Source,
    Stretch,
    Times,
    Which,
    among,
    columns,
    content_of,
    distinct,
    offsets_of,
)
from semel.proof.logs import Logs
from semel.proof.outcomes import NEVER, TRIMMED, Missing, Outcome, Rule, is_lost
from semel.proof.proof import Findings, Gap
from semel.proof.read import History
from semel.state.dedup_marks import DONE

# Event times go up and down a little; their median over so many records is a clock that no single one can move.
_CALM = 64
_DELETED = "retention deleted these events while they were to be read"
_TRIMMED = (
    "their marks were trimmed after their window and they have no outputs, so that nothing but the running counts says "
    "whether they took effect"
)
_UNLETTERED = "nothing but a dead letter could account for them, and dead letters were deleted"
_DROPPED = (
    "nothing accounts for them, and the pipeline dropped events under an earlier declaration: whether it dropped these, "
    "nobody can say"
)


@dataclass(slots=True)
class Tally:
    """What was found of a source partition. `maybe`: events that took effect unless they were dropped or duplicates.

    `unread`: those of its `records` that led to nothing and may have been compacted away before they were read.
    """

    records: int = 0
    done: int = 0
    maybe: int = 0
    duplicates: int = 0
    letters: int = 0
    unwitnessed: int = 0
    unread: int = 0
    with_output: int = 0
    outputs: Counter[str] = field(default_factory=Counter[str])


class Classified(NamedTuple):
    """What was found of the events of a source partition, `start` to `end` (exclusive).

    `deleted`: what went while it was to be read; `trimmed`: a gap that the running counts may make up for.
    """

    start: int
    end: int
    tally: Tally
    deleted: Sequence[Gap]
    gaps: Sequence[Gap]
    trimmed: Gap | None


async def classify(history: History, tp: TP, logs: Logs, findings: Findings) -> Classified:
    """What became of each event of a source partition below its position. Findings go where they are gathered.

    OtherRule, Unreadable; RpcLost where no broker answers.
    """
    survey, plan, spool = history.survey, history.plan, history.spool
    start, end = survey.range(tp)
    cut, closing = survey.cut.by_agent(tp), history.closing.next(tp)
    cuts = [cut.get(agent.name, cut[""]) for agent in plan.agents]
    source = None if plan.dedup is None else Source(plan.sources[tp.topic], plan.dedup)
    into = _Classifier(history, tp, findings)
    deleted: list[Gap] = []
    checked = False
    for number in sorted({*spool.blocks(tp), *range(start // spool.block, -(-end // spool.block))}):
        marks, outputs, letters = (spool.take(kind, tp, number) for kind in ("marks", "outputs", "letters"))
        for rows, what in ((marks, "a mark"), (outputs, "outputs"), (letters, "a dead letter")):
            findings.add(laws.within_position(tp, rows, closing, what))
        marks = marks[np.argsort(marks["offset"], kind="stable")]
        outputs, letters = _below(outputs, cuts), _below(letters, cuts)
        first, after = number * spool.block, (number + 1) * spool.block
        if first < start:
            # Those events are not judged: what they led to counts, and is there once.
            before = Stretch(first, min(start, after), _between(marks, first, start))
            if survey.everything:
                before.outputs, before.letters = _between(outputs, first, start), _between(letters, first, start)
            into.add(before, judged=False)
        low, high = max(start, first), min(end, after)
        if low >= high:
            continue
        marks, letters, outputs = (_between(rows, low, high) for rows in (marks, letters, outputs))
        stretch = Stretch(low, high, marks, letters, outputs)
        sample = await _read_source(logs, tp, stretch, source, deleted)
        if source is not None and not checked and len(stretch.marks):
            source.check(tp, sample, stretch.marks)
            checked = True
        into.add(stretch)
    gaps = into.gaps
    trimmed = gaps.pop(_TRIMMED, None)
    return Classified(start, end, into.tally, deleted, list(gaps.values()), trimmed)


async def _read_source(logs: Logs, tp: TP, stretch: Stretch, source: Source | None, deleted: list[Gap]) -> list[Record]:
    """The committed records of a stretch, with the columns of those that nothing names; some that are named."""
    lettered = np.sort(stretch.letters["offset"])
    named = np.sort(np.concatenate((stretch.marks["offset"][stretch.marks["outcome"] == DONE], lettered)))
    if logs.recording is not None:
        stretch.unread = logs.recording.unread(tp, stretch.start, stretch.end)
    offsets, unmarked, sample = [stretch.records], [stretch.unmarked], list[Record]()
    async with aclosing(logs.read(tp, stretch.start, stretch.end)) as pieces:
        async for piece in pieces:
            if piece.missing:
                stretch.gone = piece.next
                deleted.append(Gap(tp, piece.start, piece.next, _DELETED, piece.missing))
            there = offsets_of(piece.records)
            offsets.append(there)
            for i in np.flatnonzero(among(there, lettered)).tolist():
                stretch.contents[piece.records[i].offset] = content_of(piece.records[i])
            if source is not None:
                known = among(there, named)
                unmarked.append(source.unmarked([piece.records[i] for i in np.flatnonzero(~known).tolist()]))
                if len(sample) < SAMPLE:
                    sample += [piece.records[i] for i in np.flatnonzero(known)[:SAMPLE].tolist()]
    stretch.records, stretch.unmarked = np.concatenate(offsets), np.concatenate(unmarked)
    return sample


def _between(rows: Rows, low: int, high: int) -> Rows:
    return rows[(rows["offset"] >= low) & (rows["offset"] < high)]


def _below(rows: Rows, cuts: list[int]) -> Rows:
    """Outputs or dead letters below what their agent had come to."""
    return rows if len(set(cuts)) <= 1 else rows[rows["offset"] < np.array(cuts, np.int64)[rows["agent"]]]


class _Classifier:
    """Takes the history of a source partition stretch by stretch, in order. `gaps`: by what they say."""

    def __init__(self, history: History, tp: TP, findings: Findings) -> None:
        survey, dedup = history.survey, history.plan.dedup
        position = survey.cut.positions[tp.partition]
        self.tally = Tally()
        self.gaps: dict[str, Gap] = {}
        self._tp = tp
        self._findings = findings
        self._wheres = history.wheres
        self._whole = history.whole._replace(source=not survey.compacted(tp.topic))
        self._rule = rule = history.rule(tp)
        # Events were dropped, which the rule of today does not.
        drops = dedup is not None and "drop" in (dedup.missing, dedup.conflict, dedup.late)
        self._dropped_before = position.counts.get("dropped", 0) > 0 and not drops
        # What stream time has come to.
        self._stream_ms = 2**62 if position.stream_time.ms is None else position.stream_time.ms
        from_the_first = survey.from_the_first(tp)
        gone = history.trimmed.get(tp)
        self._gone = None if rule is None or gone is None else gone._replace(
            filed_before=gone.filed_before + rule.bucket_ms, first_seen=from_the_first
        )  # fmt: skip
        self._known = Known()
        # Events whose marks are gone and that have outputs, filed under the least time that they can have been.
        self._witnessed = Known()
        self._floor = NEVER
        self._begun = not from_the_first or self._gone is not None
        self._calm = NEVER

    def add(self, stretch: Stretch, *, judged: bool = True) -> None:
        """The next stretch; of one that is not judged, no event is there."""
        tp, tally, rule, say = self._tp, self.tally, self._rule, self._findings.add
        tally.letters += len(stretch.letters)
        tally.with_output += distinct(np.sort(laws.events_of(stretch.outputs)))
        for where, count in enumerate(np.bincount(stretch.outputs["where"]).tolist()):
            tally.outputs[self._wheres[where].topic] += count
        if judged:
            tally.records += len(stretch.records)
            tally.unread += len(stretch.silent)
            say(laws.atomicity(tp, stretch, self._wheres, self._whole))
        self._known = self._known.later(stretch.marks)
        say(laws.no_duplicate(tp, stretch, self._known, rule, self._wheres))
        if rule is None:
            if judged:
                tally.done += len(stretch.records) - len(stretch.silent) - distinct(np.sort(stretch.letters["offset"]))
            return
        # How marks of another window moved stream time, that of now does not say.
        marks = stretch.marks[stretch.marks["offset"] >= rule.since]
        before = self._floor
        if not self._begun and len(marks):
            # The first event of a task sets its stream time.
            before, self._begun = int(marks[0]["filed"]), True
        floors = outcomes.stream_floor(marks, stretch.records if judged else marks["offset"], before, rule.window_ms)
        if judged:
            tally.done += int(np.count_nonzero(marks["outcome"] == DONE))
            offsets = stretch.unmarked["offset"]
            ceiling = outcomes.ceiling_at(offsets, marks, self._stream_ms)
            self._classify(stretch, rule, outcomes.floor_at(offsets, marks, floors, before), ceiling)
        self._floor = int(floors[-1]) if len(floors) else before
        # Memory is bounded by the window: what protects no more is not needed.
        since = max(self._floor - rule.window_ms, min(self._calm - 3 * rule.window_ms, self._stream_ms))
        self._known, self._witnessed = self._known.protecting(since), self._witnessed.protecting(since)

    def _classify(self, stretch: Stretch, rule: Rule, floor: Times, ceiling: Times) -> None:
        rows, tally, gone = stretch.unmarked, self.tally, self._gone
        has_output = among(rows["offset"], np.sort(stretch.outputs["offset"]))
        if gone is not None:
            calm = self._calm_times(rows)
            self._look_at_witnesses(stretch, has_output, ceiling, calm, rule, gone)
            self._know_by_sight(rows, calm, rule, gone)
        outcome = outcomes.of_unmarked(rows, has_output, self._known, floor, ceiling, rule, gone)
        if not self._whole.letters or self._dropped_before:
            # It may be in the dead letters that are gone, or dropped.
            outcome[is_lost(outcome)] = Outcome.UNLETTERED
        if gone is not None and len(self._known.rows):
            first = self._known.before(rows["id"], rows["offset"])
            # Whether its first still protected it, nobody knows.
            again = (first >= 0) & (self._known.rows["outcome"][first] == TRIMMED)
            tally.maybe += _count(again & _either(outcome, Outcome.DUPLICATE, Outcome.DROPPED))
            outcome[again & (outcome == Outcome.DOUBLED)] = Outcome.PASSED
        silent = among(rows["offset"], stretch.silent)
        # If it was read, it may have taken effect in silence.
        tally.maybe += _count(silent & _either(outcome, Outcome.PASSED, Outcome.UNWITNESSED, Outcome.MAYBE_DUPLICATE))
        outcome[silent] = Outcome.UNREAD
        passed = outcome == Outcome.PASSED
        tally.duplicates += _count(_either(outcome, Outcome.DUPLICATE, Outcome.MAYBE_DUPLICATE))
        tally.maybe += _count((outcome == Outcome.MAYBE_DUPLICATE) | (passed & ~has_output))
        tally.done += _count(passed & has_output)
        tally.unwitnessed += _count(outcome == Outcome.UNWITNESSED)
        self._gap(rows["offset"][outcome == Outcome.UNWITNESSED], _TRIMMED)
        self._gap(rows["offset"][outcome == Outcome.UNLETTERED], _DROPPED if self._dropped_before else _UNLETTERED)
        self._findings.add(laws.doubled(self._tp, rows, outcome, self._known))
        self._findings.add(laws.no_loss(self._tp, rows, outcome))
        self._findings.add(laws.torn(self._tp, rows, outcome))

    def _know_by_sight(self, rows: Rows, calm: Times, rule: Rule, gone: Missing) -> None:
        """Where marks are gone, the first record of an id stands for its mark, as one that was filed late."""
        candidates = np.flatnonzero((rows["kind"] == Kind.KEYED) & (rows["offset"] < gone.before))
        candidates = candidates[np.unique(rows["id"][candidates], return_index=True)[1]]
        new = candidates[self._known.before(rows["id"][candidates], rows["offset"][candidates]) < 0]
        seen = rows[new]
        # Real marks are filed up to a window after the calm clock.
        filed = np.minimum(gone.filed_before, calm[new] + 2 * rule.window_ms)
        self._known = self._known.later(
            columns(MARK, seen["offset"], id=seen["id"], payload=seen["payload"], filed=filed, outcome=TRIMMED)
        )

    def _look_at_witnesses(
        self, stretch: Stretch, has_output: Which, ceiling: Times, calm: Times, rule: Rule, gone: Missing
    ) -> None:
        """Where marks are gone, an output says all the same that its event took effect, and so does a later mark of its id.

        Where conflicts are passed on, an output says nothing of marks.
        """
        if rule.conflict == "pass":
            return
        keyed = (stretch.unmarked["kind"] == Kind.KEYED) & has_output
        rows, most = stretch.unmarked[keyed], ceiling[keyed]
        # Some events' clocks are ahead; not that of most of them.
        least = np.minimum(np.minimum(rows["time"], calm[keyed]), most) - gone.ahead_ms
        effects = columns(MARK, rows["offset"], id=rows["id"], filed=least, outcome=DONE)
        self._witnessed = self._witnessed.later(effects)
        again = columns(MARK, rows["offset"], id=rows["id"], filed=most, outcome=DONE)
        again = np.concatenate((again, stretch.marks[stretch.marks["outcome"] == DONE]))
        self._findings.add(laws.effect_again(self._tp, self._witnessed, again, rule))

    def _calm_times(self, rows: Rows) -> Times:
        """For each row: the greatest median of event times so far."""
        calm = np.empty(len(rows), np.int64)
        for begin in range(0, len(rows), _CALM):
            piece = rows[begin : begin + _CALM]
            timed = piece["time"][piece["kind"] == Kind.KEYED]
            if len(timed):
                self._calm = max(self._calm, int(np.median(timed)))
            calm[begin : begin + _CALM] = self._calm
        return calm

    def _gap(self, offsets: Offsets, sentence: str) -> None:
        """One gap for each reason, however many stretches it goes through."""
        if len(offsets):
            first = Gap(self._tp, int(offsets.min()), 0, sentence)
            before = self.gaps.get(sentence, first)
            self.gaps[sentence] = before._replace(end=int(offsets.max()) + 1, events=before.events + len(offsets))


def _either(outcome: NDArray[np.uint8], *these: Outcome) -> Which:
    return np.isin(outcome, these)


def _count(which: Which) -> int:
    return int(np.count_nonzero(which))
