"""The judge of one source partition: takes its history stretch by stretch, in order, and holds it against the laws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from semel.port import TP
from semel.proof import laws
from semel.proof.fates import NEVER, TRIMMED, Fate, Missing, Rule, ceiling_at, fates, floor_at, stream_floor
from semel.proof.findings import Findings, Gap
from semel.proof.history import MARK, Kind, Known, Offsets, Rows, Stretch, among, distinct
from semel.state.dedup_marks import DONE

# Event times go up and down a little; their median over so many records is a clock that no single one can move.
_CALM = 64
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
    dropped: int = 0
    letters: int = 0
    lost: int = 0
    unwitnessed: int = 0
    unread: int = 0
    with_output: int = 0
    outputs: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Whole:
    """Which logs are there from where the task began, but for what was never committed."""

    source: bool = True
    outputs: bool = True
    letters: bool = True


class Judge:
    """`rule`: None without dedup. `wheres`: the partitions that rows number. `stream_ms`: what stream time has come to.

    `dropped_before`: events were dropped, which the rule of today does not.
    """

    def __init__(
        self,
        tp: TP,
        rule: Rule | None,
        findings: Findings,
        wheres: Sequence[TP],
        *,
        whole: Whole,
        from_the_beginning: bool = True,
        stream_ms: int | None = None,
        gone: Missing | None = None,
        dropped_before: bool = False,
    ) -> None:
        self.tp = tp
        self.tally = Tally()
        self.gaps: list[Gap] = []
        # What the running counts may make up for.
        self.trimmed: list[Gap] = []
        self._rule = rule
        self._findings = findings
        self._wheres = wheres
        self._whole = whole
        self._stream_ms = 2**62 if stream_ms is None else stream_ms
        self._gone = gone
        self._dropped_before = dropped_before
        self._known = Known()
        # Events whose marks are gone and that have outputs, filed under the least time that they can have been.
        self._witnessed = Known()
        self._floor = NEVER
        self._begun = not from_the_beginning or gone is not None
        self._calm = NEVER

    @property
    def known(self) -> int:
        """Marks held: what the window costs."""
        return len(self._known)

    def pass_by(self, found: Stretch) -> None:
        """A stretch before what is judged, whose events are not there: what they led to counts, and is there once."""
        self._count_effects(found)
        marks = found.marks = found.marks[np.argsort(found.marks["offset"], kind="stable")]
        known = self._known.later(marks)
        self._findings.add(laws.no_duplicate(self.tp, found, known, self._rule, self._wheres))
        if self._rule is None or not len(marks):
            return
        self._known = known
        # How marks of another window moved stream time, that of now does not say.
        marks = marks[marks["offset"] >= self._rule.since]
        if len(marks):
            before = self._floor
            if not self._begun:
                before, self._begun = int(marks[0]["filed"]), True
            self._floor = int(stream_floor(marks, marks["offset"], before, self._rule.window_ms)[-1])
            self._forget(self._rule)

    def _count_effects(self, found: Stretch) -> None:
        tally = self.tally
        tally.letters += len(found.letters)
        tally.with_output += distinct(np.sort(laws.events_of(found.outputs)))
        for where, count in enumerate(np.bincount(found.outputs["where"]).tolist()):
            if count:
                topic = self._wheres[where].topic
                tally.outputs[topic] = tally.outputs.get(topic, 0) + count

    def stretch(self, found: Stretch) -> None:
        """The next stretch. Findings go where they are gathered."""
        found.marks = found.marks[np.argsort(found.marks["offset"], kind="stable")]
        tp, tally, whole, say = self.tp, self.tally, self._whole, self._findings.add
        tally.records += len(found.records)
        tally.unread += len(found.silent)
        self._count_effects(found)
        say(laws.atomicity(
            tp, found, self._wheres, whole_source=whole.source, whole_outputs=whole.outputs, whole_letters=whole.letters
        ))  # fmt: skip
        if self._rule is None:
            say(laws.no_duplicate(tp, found, self._known, None, self._wheres))
            tally.done += len(found.records) - len(found.silent) - distinct(np.sort(found.letters["offset"]))
            return
        before = self._floor
        if not self._begun and len(found.marks):
            # The first event of a task sets its stream time.
            before, self._begun = int(found.marks[0]["filed"]), True
        floors = stream_floor(found.marks, found.records, before, self._rule.window_ms)
        known = self._known.later(found.marks)
        say(laws.no_duplicate(tp, found, known, self._rule, self._wheres))
        tally.done += int(np.count_nonzero(found.marks["outcome"] == DONE))
        self._known = known
        offsets = found.unmarked["offset"]
        floor = floor_at(offsets, found.marks, floors, before)
        self._explain(found, known, floor, ceiling_at(offsets, found.marks, self._stream_ms))
        self._floor = int(floors[-1]) if len(floors) else before
        self._forget(self._rule)

    # -- inside

    def _forget(self, rule: Rule) -> None:
        """Memory is bounded by the window: what protects no more is not needed."""
        calm = self._calm - 3 * rule.window_ms
        since = max(self._floor - rule.window_ms, min(calm, self._stream_ms))
        self._known, self._witnessed = self._known.protecting(since), self._witnessed.protecting(since)

    def _explain(self, found: Stretch, known: Known, floor: NDArray[np.int64], ceiling: NDArray[np.int64]) -> None:
        rule = self._rule
        assert rule is not None
        if self._gone is not None:
            calm = self._calm_times(found.unmarked)
            self._by_witness(found, ceiling, calm, self._gone)
            if len(found.unmarked):
                self._known_by_sight(found, known, floor, ceiling, calm)
            return
        if not len(found.unmarked):
            return
        has_output = among(found.unmarked["offset"], np.sort(found.outputs["offset"]))
        fate = fates(found.unmarked, has_output, known, floor, ceiling, rule, whole_letters=self._lettered)
        self._count(found, fate, has_output, known)

    def _known_by_sight(
        self,
        found: Stretch,
        known: Known,
        floor: NDArray[np.int64],
        ceiling: NDArray[np.int64],
        calm: NDArray[np.int64],
    ) -> None:
        """Where marks are gone, the first record of an id stands for its mark, as one that was filed late."""
        rule, gone, rows = self._rule, self._gone, found.unmarked
        assert rule is not None and gone is not None
        window = rule.window_ms
        sights = np.zeros(len(rows), MARK)
        for name in ("offset", "id", "payload"):
            sights[name] = rows[name]
        # Real marks are filed up to a window after the calm clock.
        sights["filed"], sights["outcome"] = np.minimum(gone.filed_before, calm + 2 * window), TRIMMED
        candidates = np.flatnonzero((rows["kind"] == Kind.KEYED) & (rows["offset"] < gone.before))
        _, first = np.unique(rows["id"][candidates], return_index=True)
        candidates = candidates[first]
        new = known.before(rows["id"][candidates], rows["offset"][candidates]) < 0
        known = known.later(sights[candidates[new]])
        has_output = among(rows["offset"], np.sort(found.outputs["offset"]))
        fate = fates(
            rows,
            has_output,
            known,
            floor,
            ceiling,
            rule,
            gone=gone,
            whole_letters=self._lettered,
        )
        if len(known):
            first_of = known.before(rows["id"], rows["offset"])
            there = known.rows[np.maximum(first_of, 0)]
            # Whether its first still protected it, nobody knows.
            again = (first_of >= 0) & (there["outcome"] == TRIMMED)
            self.tally.maybe += int(np.count_nonzero(again & ((fate == Fate.DUPLICATE) | (fate == Fate.DROPPED))))
            fate[again & (fate == Fate.DOUBLED)] = Fate.PASSED
        self._count(found, fate, has_output, known)
        self._known = known

    def _by_witness(self, found: Stretch, ceiling: NDArray[np.int64], calm: NDArray[np.int64], gone: Missing) -> None:
        """Where marks are gone, an output says all the same that its event took effect, and so does a later mark of its id.

        Where conflicts are passed on, an output says nothing of marks.
        """
        rule, rows = self._rule, found.unmarked
        assert rule is not None
        if rule.conflict == "pass":
            return
        keyed = (rows["kind"] == Kind.KEYED) & among(rows["offset"], np.sort(found.outputs["offset"]))
        effects = np.zeros(np.count_nonzero(keyed), MARK)
        for name in ("offset", "id"):
            effects[name] = rows[name][keyed]
        effects["outcome"] = DONE
        least, most = effects, effects.copy()
        # Some events' clocks are ahead; not that of most of them.
        least["filed"] = np.minimum(np.minimum(rows["time"][keyed], calm[keyed]), ceiling[keyed]) - gone.ahead_ms
        most["filed"] = ceiling[keyed]
        self._witnessed = self._witnessed.later(least)
        again = np.concatenate((most, found.marks[found.marks["outcome"] == DONE]))
        self._findings.add(laws.effect_again(self.tp, self._witnessed, again, rule))

    @property
    def _lettered(self) -> bool:
        """Whether all that is neither done nor a duplicate is in the dead letters."""
        return self._whole.letters and not self._dropped_before

    def _calm_times(self, rows: Rows) -> NDArray[np.int64]:
        """For each row: the greatest median of event times so far."""
        calm = np.empty(len(rows), np.int64)
        for begin in range(0, len(rows), _CALM):
            piece = rows[begin : begin + _CALM]
            timed = piece["time"][piece["kind"] == Kind.KEYED]
            if len(timed):
                self._calm = max(self._calm, int(np.median(timed)))
            calm[begin : begin + _CALM] = self._calm
        return calm

    def _count(self, found: Stretch, fate: NDArray[np.uint8], has_output: NDArray[np.bool_], known: Known) -> None:
        tally, rows = self.tally, found.unmarked
        silent = among(rows["offset"], found.silent)
        # If it was read, it may have taken effect in silence.
        could = (fate == Fate.PASSED) | (fate == Fate.UNWITNESSED) | (fate == Fate.MAYBE_DUPLICATE)
        tally.maybe += int(np.count_nonzero(silent & could))
        fate[silent] = Fate.UNREAD
        maybe = int(np.count_nonzero(fate == Fate.MAYBE_DUPLICATE))
        tally.duplicates += int(np.count_nonzero(fate == Fate.DUPLICATE)) + maybe
        tally.maybe += maybe
        tally.dropped += int(np.count_nonzero(fate == Fate.DROPPED))
        tally.unwitnessed += int(np.count_nonzero(fate == Fate.UNWITNESSED))
        self._gap(rows["offset"][fate == Fate.UNWITNESSED], _TRIMMED, of_marks=True)
        self._gap(rows["offset"][fate == Fate.UNLETTERED], _DROPPED if self._dropped_before else _UNLETTERED)
        effect = fate == Fate.PASSED
        tally.done += int(np.count_nonzero(effect & has_output))
        tally.maybe += int(np.count_nonzero(effect & ~has_output))
        self._findings.add(laws.doubled(self.tp, rows, fate, known))
        tally.lost += int(np.count_nonzero((fate >= Fate.LOST) & (fate <= Fate.LOST_DEAD)))
        self._findings.add(laws.no_loss(self.tp, rows, fate))
        self._findings.add(laws.torn(self.tp, rows, fate))

    def _gap(self, offsets: Offsets, sentence: str, *, of_marks: bool = False) -> None:
        """One gap for each reason, however many stretches it goes through."""
        if not len(offsets):
            return
        gaps = self.trimmed if of_marks else self.gaps
        found = Gap(self.tp, int(offsets.min()), int(offsets.max()) + 1, sentence, len(offsets))
        if gaps:
            found = found._replace(start=gaps[0].start, events=gaps[0].events + found.events)
        gaps[:] = [found]
