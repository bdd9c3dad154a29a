"""Classifying: a source partition is read once, a stretch at a time and in order; each record has an outcome, by what was
written of it, and stretch by stretch the laws are held against them.
"""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np

from semel.port import TP
from semel.proof import laws, outcomes
from semel.proof.columns import (
    LATER,
    MARK,
    SAMPLE,
    UNMARKED,
    Kind,
    Known,
    Offsets,
    Rows,
    Source,
    Stretch,
    among,
    between,
    chosen,
    columns,
    content_of,
    distinct,
    events_of,
    offsets_of,
    settled,
    still_pending,
)
from semel.proof.logs import Logs
from semel.proof.outcomes import NEVER, TRIMMED, Missing, Outcome, Rule
from semel.proof.proof import Gap, Remarks
from semel.proof.read import History
from semel.state import replay
from semel.state.dedup_marks import DONE

# Event times go up and down a little; their median over so many records is a clock that no single one can move.
_CALM = 64
_DELETED = "retention deleted these events while they were to be read"
# What nobody can say of records with these outcomes.
_UNKNOWN = {
    Outcome.UNWITNESSED: "their marks were trimmed after their window and they have no outputs, so that nothing but the "
    "running counts says whether they took effect",
    Outcome.UNLETTERED: "nothing but a dead letter could account for them, and dead letters were deleted",
}
_DROPPED = (
    "nothing accounts for them, and the pipeline dropped events under an earlier declaration: whether it dropped these, "
    "nobody can say"
)


@dataclass(slots=True)
class Tally:
    """What was found of a source partition, offsets `start` to `end` (exclusive).

    `unread`: those of its `records` that led to nothing and may have been compacted away before they were read.
    `took_effect`: by what is there; `maybe`: those that did unless they were dropped or duplicates; `unwitnessed`: those that
    nothing tells of; `parked`: those that wait, and led to nothing yet. `with_output`: events that have one that was sent with
    them. `later`: outputs that were to be sent at a time, sent or not. `gaps`: by the outcome of their events.
    """

    start: int
    end: int
    records: int = 0
    unread: int = 0
    took_effect: int = 0
    maybe: int = 0
    unwitnessed: int = 0
    parked: int = 0
    duplicates: int = 0
    letters: int = 0
    with_output: int = 0
    later: int = 0
    outputs: Counter[str] = field(default_factory=Counter[str])
    gaps: dict[Outcome, Gap] = field(default_factory=dict[Outcome, Gap])


async def classify(history: History, tp: TP, logs: Logs, remarks: Remarks) -> Tally:
    """What became of each event of a source partition below its position.

    OtherRule, Unreadable; RpcLost where no broker answers.
    """
    survey, spool, judged = history.survey, history.spool, history.survey.sources[tp]
    cut, closing = survey.cut.by_agent(tp), history.closing.next(tp)
    cuts = np.array([cut.get(agent.name, cut[""]) for agent in history.plan.agents], np.int64)
    classifier = _Classifier(history, tp, logs, remarks)
    parked = history.parked(tp)
    classifier.tally.parked = len(between(parked, 0, judged.end))
    blocks = range(judged.start // spool.block, -(-judged.end // spool.block))
    for number in sorted({*spool.blocks(tp), *blocks}):
        marks, outputs, letters, timers = (
            spool.take(kind, tp, number) for kind in ("marks", "outputs", "letters", "timers")
        )
        for rows, what in ((marks, "a mark"), (outputs, "outputs"), (letters, "a dead letter"), (timers, "a timer")):
            remarks.add(laws.within_position(tp, rows, closing, what))
        outputs = np.concatenate((outputs, still_pending(timers, outputs)))
        waiting = between(parked, number * spool.block, (number + 1) * spool.block)
        outputs, letters = (rows[~among(events_of(rows), events_of(waiting))] for rows in (outputs, letters))
        marks = marks[np.argsort(marks["offset"], kind="stable")]
        marks = settled(marks, np.sort(letters["offset"]), np.sort(waiting["offset"]))
        if len(set(cuts.tolist())) > 1:
            # Below what their agent had come to.
            outputs, letters = (rows[rows["offset"] < cuts[rows["agent"]]] for rows in (outputs, letters))
        first, after = number * spool.block, (number + 1) * spool.block
        if first < judged.start:
            # Those events are not judged: what they led to counts, and is there once.
            marked, counted = between(marks, first, judged.start), judged.start if survey.everything else first
            earlier = between(outputs, first, counted), between(letters, first, counted)
            classifier.add(Stretch(False, marked, *earlier, records=marked["offset"]))
        low, high = max(judged.start, first), min(judged.end, after)
        if low < high:
            marks, outputs, letters = (between(rows, low, high) for rows in (marks, outputs, letters))
            classifier.add(await classifier.read(low, high, marks, outputs, letters))
    return classifier.tally


class _Classifier:
    """Takes the history of a source partition stretch by stretch, in order."""

    def __init__(self, history: History, tp: TP, logs: Logs, remarks: Remarks) -> None:
        plan, judged = history.plan, history.survey.sources[tp]
        dedup, rule = plan.dedup, judged.rule
        position, gone = history.survey.cut.positions[tp.partition], history.trimmed.get(tp)
        self.tally = Tally(judged.start, judged.end)
        self._tp = tp
        self._logs = logs
        self._remarks = remarks
        self._wheres = history.wheres
        self._parked = history.parked(tp)
        self._whole = history.whole._replace(source=tp.topic not in history.survey.compacted)
        self._source = None if dedup is None else Source(plan.sources[tp.topic], dedup)
        self._checked = False
        self._rule = rule
        # Events were dropped, which the rule of today does not.
        drops = dedup is not None and "drop" in (dedup.missing, dedup.conflict, dedup.late)
        self._dropped_before = position.counts.get("dropped", 0) > 0 and not drops
        # What stream time has come to.
        self._stream_ms = 2**62 if position.stream_time.ms is None else position.stream_time.ms
        self._gone = None if rule is None or gone is None else gone._replace(
            filed_before=gone.filed_before + rule.bucket_ms, first_seen=judged.from_the_first
        )  # fmt: skip
        self._known = Known()
        # Events whose marks are gone and that have outputs, filed under the least time that they can have been.
        self._witnessed = Known()
        self._floor = NEVER
        self._begun = not judged.from_the_first or self._gone is not None
        self._calm = NEVER

    async def read(self, low: int, high: int, marks: Rows, outputs: Rows, letters: Rows) -> Stretch:
        """What there is between two offsets: with the committed records, those read that no mark or dead letter names."""
        tp, source, recording, gone = self._tp, self._source, self._logs.recording, 0
        lettered = np.sort(letters["offset"])
        waiting = np.unique(between(self._parked, low, high)["offset"])
        named = np.sort(np.concatenate((marks["offset"][marks["outcome"] == DONE], lettered, waiting)))
        offsets, unmarked = [columns(UNMARKED)["offset"]], [columns(UNMARKED)]
        contents: dict[int, int] = {}
        skips = 0
        async with aclosing(self._logs.read(tp, low, high)) as pieces:
            async for piece in pieces:
                if piece.missing:
                    gone = piece.next
                    self._remarks.add([Gap(tp, piece.start, gone, _DELETED, piece.missing)])
                there = offsets_of(piece.records)
                offsets.append(there)
                contents |= {r.offset: content_of(r) for r in chosen(piece.records, among(there, lettered))}
                skips += sum(replay.is_skip(r.headers) for r in piece.records if r.headers)
                if source is not None:
                    known = among(there, named)
                    unmarked.append(source.unmarked(chosen(piece.records, ~known)))
                    if not self._checked and len(marks):
                        source.check(tp, chosen(piece.records, known)[:SAMPLE], marks)
                        self._checked = bool(known.any())
        unread = recording.unread(tp, low, high) if recording is not None else offsets[0]
        told = np.sort(np.concatenate((marks["offset"], letters["offset"], outputs["offset"], waiting)))
        return Stretch(
            True, marks, outputs, letters, np.concatenate(offsets), np.concatenate(unmarked), contents, gone,
            silent=unread[~among(unread, told)], parked=waiting, skips=skips,
        )  # fmt: skip

    def add(self, stretch: Stretch) -> None:
        """The next stretch."""
        tp, tally, rule, say = self._tp, self.tally, self._rule, self._remarks.add
        tally.letters += len(stretch.letters)
        later = stretch.outputs["step"] >= LATER
        at_once, steps = stretch.outputs[~later], stretch.outputs[later]
        tally.with_output += distinct(np.sort(events_of(at_once)))
        tally.later += len({*zip(events_of(steps).tolist(), steps["step"].tolist(), strict=True)}) if len(steps) else 0
        for where, count in enumerate(np.bincount(at_once["where"]).tolist()):
            tally.outputs[self._wheres[where].topic] += count
        self._known = self._known.later(stretch.marks)
        if stretch.judged:
            tally.records += len(stretch.records)
            tally.unread += len(stretch.silent)
            say(laws.atomicity(tp, stretch, self._wheres, self._whole))
        say(laws.no_duplicate(tp, stretch, self._wheres))
        if rule is not None:
            say(laws.effect_again(tp, self._known, stretch.marks, rule))
            self._add_marked(stretch, rule)
        elif stretch.judged:
            tally.duplicates += stretch.skips
            tally.took_effect += (
                len(stretch.records)
                - stretch.skips
                - len(stretch.silent)
                - len(stretch.parked)
                - distinct(np.sort(stretch.letters["offset"]))
            )

    def _add_marked(self, stretch: Stretch, rule: Rule) -> None:
        # How marks of another window moved stream time, that of now does not say.
        marks = stretch.marks[stretch.marks["offset"] >= rule.since]
        before = self._floor
        if not self._begun and len(marks):
            # The first event of a task sets its stream time.
            before, self._begun = int(marks[0]["filed"]), True
        floors = outcomes.stream_floor(marks, stretch.records, before, rule.window_ms)
        if stretch.judged:
            self.tally.took_effect += int(np.count_nonzero(marks["outcome"] == DONE))
            rows = stretch.unmarked
            rows["floor"] = outcomes.floor_at(rows["offset"], marks, floors, before)
            rows["ceiling"] = outcomes.ceiling_at(rows["offset"], marks, self._stream_ms)
            rows["output"] = among(rows["offset"], np.sort(stretch.outputs["offset"]))
            rows["silent"] = among(rows["offset"], stretch.silent)
            self._judge(rows, marks[marks["outcome"] == DONE], rule)
        self._floor = int(floors[-1]) if len(floors) else before
        # Memory is bounded by the window: what protects no more is not needed.
        since = max(self._floor - rule.window_ms, min(self._calm - 3 * rule.window_ms, self._stream_ms))
        self._known, self._witnessed = self._known.protecting(since), self._witnessed.protecting(since)

    def _judge(self, rows: Rows, done: Rows, rule: Rule) -> None:
        if self._gone is not None:
            self._read_clock(rows)
            # Where conflicts are passed on, an output says nothing of marks.
            if rule.conflict != "pass":
                self._look_at_witnesses(rows[(rows["kind"] == Kind.KEYED) & rows["output"]], done, rule, self._gone)
            self._know_by_sight(rows, rule, self._gone)
        letters_gone = not self._whole.letters or self._dropped_before
        outcome = outcomes.of_unmarked(rows, self._known, rule, self._gone, letters_gone=letters_gone)
        count, tally = np.bincount(outcome, minlength=len(Outcome)).tolist(), self.tally
        tally.took_effect += count[Outcome.PASSED]
        tally.maybe += count[Outcome.MAYBE_PASSED] + count[Outcome.MAYBE_DUPLICATE] + count[Outcome.MAYBE_UNREAD]
        tally.unwitnessed += count[Outcome.UNWITNESSED]
        tally.duplicates += count[Outcome.DUPLICATE] + count[Outcome.MAYBE_DUPLICATE]
        for unknown in _UNKNOWN:
            self._gap(rows["offset"][outcome == unknown], unknown)
        self._remarks.add(laws.of_outcomes(self._tp, rows, outcome, self._known))

    def _read_clock(self, rows: Rows) -> None:
        """The greatest median of event times so far."""
        for begin in range(0, len(rows), _CALM):
            piece = rows[begin : begin + _CALM]
            timed = piece["time"][piece["kind"] == Kind.KEYED]
            if len(timed):
                self._calm = max(self._calm, int(np.median(timed)))
            piece["calm"] = self._calm

    def _look_at_witnesses(self, rows: Rows, done: Rows, rule: Rule, gone: Missing) -> None:
        """Where marks are gone, an output says all the same that its event took effect, and so does a later mark of its id."""
        # Some events' clocks are ahead; not that of most of them.
        least = np.minimum(np.minimum(rows["time"], rows["calm"]), rows["ceiling"]) - gone.ahead_ms
        self._witnessed = self._witnessed.later(columns(MARK, rows["offset"], id=rows["id"], filed=least))
        again = np.concatenate((columns(MARK, rows["offset"], id=rows["id"], filed=rows["ceiling"]), done))
        self._remarks.add(laws.effect_again(self._tp, self._witnessed, again, rule, marked=False))

    def _know_by_sight(self, rows: Rows, rule: Rule, gone: Missing) -> None:
        """Where marks are gone, the first record of an id stands for its mark, as one that was filed late."""
        seen = rows[(rows["kind"] == Kind.KEYED) & (rows["offset"] < gone.before)]
        seen = seen[np.unique(seen["id"], return_index=True)[1]]
        seen = seen[self._known.before(seen["id"], seen["offset"]) < 0]
        # Real marks are filed up to a window after the calm clock.
        filed = np.minimum(gone.filed_before, seen["calm"] + 2 * rule.window_ms)
        self._known = self._known.later(
            columns(MARK, seen["offset"], id=seen["id"], payload=seen["payload"], filed=filed, outcome=TRIMMED)
        )

    def _gap(self, offsets: Offsets, why: Outcome) -> None:
        """One gap for each reason, however many stretches it goes through."""
        if len(offsets):
            sentence = _DROPPED if self._dropped_before and why is Outcome.UNLETTERED else _UNKNOWN[why]
            gap = self.tally.gaps.get(why) or Gap(self._tp, int(offsets.min()), 0, sentence)
            self.tally.gaps[why] = gap._replace(end=int(offsets.max()) + 1, events=gap.events + len(offsets))
