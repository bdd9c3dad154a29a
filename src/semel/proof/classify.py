"""Classifying: the source read once, a stretch of one partition at a time, each held against what was written of it."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from semel.plan import Plan
from semel.port import TP, Record
from semel.proof import laws
from semel.proof.columns import Source, content_of, offsets_of
from semel.proof.cut import Cut
from semel.proof.fates import Missing, Rule
from semel.proof.findings import Findings, Gap
from semel.proof.history import LETTER, MARK, OUTPUT, UNMARKED, Rows, Stretch, among, empty
from semel.proof.judge import Judge, Tally, Whole
from semel.proof.logs import Logs
from semel.proof.proof import Part
from semel.proof.scan import Written
from semel.proof.spool import Spool
from semel.proof.survey import Survey
from semel.state.dedup_marks import DONE

# Within one epoch marks may stand in another order than their events.
_EPOCH_EVENTS = 50_000
KINDS = {"marks": MARK, "outputs": OUTPUT, "letters": LETTER}
_SAMPLE = 200


class Judged(NamedTuple):
    """What was found of one source partition. `deleted`: what went while it was to be read; `trimmed`: gaps that the running
    counts may make up for.
    """

    part: Part
    tally: Tally
    deleted: tuple[Gap, ...]
    gaps: tuple[Gap, ...]
    trimmed: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class History:
    """All that was recorded, the source's own records aside. `closing`: the positions after what was written was read.

    `whole`: which logs are there from where the task began, but for what was never committed.
    """

    there: Survey
    written: Written
    closing: Cut
    spool: Spool

    @property
    def plan(self) -> Plan:
        return self.there.plan

    def untouched(self, tp: TP) -> bool:
        """Nothing was deleted from a log since it began for us."""
        return self.there.untouched(tp) and not self.written.gone[tp]

    @property
    def whole(self) -> Whole:
        there, letters = self.there, self.plan.dead_letter_topic
        return Whole(
            outputs=not there.missing.keys() - {letters} and all(map(self.untouched, there.outputs)),
            letters=letters not in there.missing and all(map(self.untouched, there.tps(letters))),
        )

    @property
    def bare(self) -> dict[int, int]:
        """By task: outputs that were written without lineage."""
        return {
            task: position.counts.get("out", 0) - sum(position.outputs.values())
            for task, position in self.there.cut.positions.items()
        }

    def rule(self, tp: TP) -> Rule | None:
        """As it judged the events of a source partition."""
        dedup = self.plan.dedup
        if dedup is None:
            return None
        position = self.there.cut.positions[tp.partition]
        rule = Rule(
            dedup.window_ms, dedup.bucket_ms, dedup.missing, dedup.conflict, dedup.late,
            hashed_from=position.topics[tp.topic].hashed_from,
        )  # fmt: skip
        # What an earlier declaration let pass took effect without a mark, and still has its outputs.
        passed = [name for name in ("missing", "conflict", "late") if name in position.passed]
        rule = rule._replace(**dict.fromkeys(passed, "pass"))
        windows = self.there.windows(tp)
        if windows is None:
            return rule
        # Marks were trimmed by whole buckets, of a quarter of the window of then.
        bucket_ms = max(rule.bucket_ms, windows.most_ms // 4)
        return rule._replace(since=windows.since, least_ms=windows.least_ms, bucket_ms=bucket_ms)

    def marks_gone(self, tp: TP, rule: Rule | None) -> Missing | None:
        written = self.written
        if rule is None or not written.marks_gone.get(tp):
            return None
        before, filed = written.first_mark.get(tp, (2**61, 2**61))
        return Missing(before + _EPOCH_EVENTS, filed + rule.bucket_ms, self.there.from_the_first(tp), written.ahead[tp])


async def classify(history: History, tp: TP, logs: Logs, findings: Findings) -> Judged:
    """What became of each event of a source partition below its position. Findings go where they are gathered.

    OtherRule, Unreadable; RpcLost where no broker answers.
    """
    there, plan, spool = history.there, history.plan, history.spool
    start, end = there.range(tp)
    cut, closing = there.cut.by_agent(tp), history.closing.next(tp)
    cuts = [cut.get(agent.name, cut[""]) for agent in plan.agents]
    position, dedup = there.cut.positions[tp.partition], plan.dedup
    rule = history.rule(tp)
    drops = dedup is not None and "drop" in (dedup.missing, dedup.conflict, dedup.late)
    judge = Judge(
        tp, rule, findings, history.written.wheres,
        whole=replace(history.whole, source=not there.compacted(tp.topic)),
        from_the_beginning=there.from_the_first(tp),
        stream_ms=position.stream_time.ms,
        gone=history.marks_gone(tp, rule),
        dropped_before=position.counts.get("dropped", 0) > 0 and not drops,
    )  # fmt: skip
    source = None if dedup is None else Source(plan.sources[tp.topic], dedup)
    deleted: list[Gap] = []
    checked = False
    for number in sorted({*spool.blocks(tp), *range(start // spool.block, -(-end // spool.block))}):
        rows = {kind: spool.take(kind, tp, number, dtype) for kind, dtype in KINDS.items()}
        for kind, what in (("marks", "a mark"), ("outputs", "outputs"), ("letters", "a dead letter")):
            findings.add(laws.within_position(tp, rows[kind], closing, what))
        first, after = number * spool.block, (number + 1) * spool.block
        low, high = max(start, first), min(end, after)
        if first < start:
            judge.pass_by(_cut_out(rows, first, min(start, after), cuts, there.everything))
        if low >= high:
            continue
        stretch = _cut_out(rows, low, high, cuts)
        sample = await _read_source(logs, tp, stretch, source, deleted)
        if source is not None and not checked and len(stretch.marks):
            source.check(tp, sample, stretch)
            checked = True
        judge.stretch(stretch)
    tally = judge.tally
    part = Part(
        tp, start, end, tally.records, tally.done + tally.unwitnessed, tally.duplicates, tally.letters,
        sum(tally.outputs.values()),
    )  # fmt: skip
    return Judged(part, tally, tuple(deleted), tuple(judge.gaps), tuple(judge.trimmed))


async def _read_source(logs: Logs, tp: TP, stretch: Stretch, source: Source | None, deleted: list[Gap]) -> list[Record]:
    """The committed records of a stretch, with the columns of those that nothing names; some that are named."""
    lettered = np.sort(stretch.letters["offset"])
    done = np.sort(np.concatenate((stretch.marks["offset"][stretch.marks["outcome"] == DONE], lettered)))
    if logs.recording is not None:
        stretch.unread = logs.recording.unread(tp, stretch.start, stretch.end)
    offsets: list[Rows] = []
    unmarked: list[Rows] = []
    sample: list[Record] = []
    async with aclosing(logs.read(tp, stretch.start, stretch.end)) as pieces:
        async for piece in pieces:
            if piece.missing:
                stretch.gone = piece.next
                why = "retention deleted these events while they were to be read"
                deleted.append(Gap(tp, piece.start, piece.next, why, piece.missing))
            there = offsets_of(piece.records)
            offsets.append(there)
            for i in np.flatnonzero(among(there, lettered)).tolist():
                stretch.contents[piece.records[i].offset] = content_of(piece.records[i])
            if source is not None and len(there):
                named = among(there, done)
                unmarked.append(source.unmarked([piece.records[i] for i in np.flatnonzero(~named).tolist()]))
                if len(sample) < _SAMPLE:
                    sample += [piece.records[i] for i in np.flatnonzero(named)[:_SAMPLE].tolist()]
    stretch.records = np.concatenate(offsets) if offsets else stretch.records
    stretch.unmarked = np.concatenate(unmarked) if unmarked else empty(UNMARKED)
    return sample


def _cut_out(rows: dict[str, Rows], low: int, high: int, cuts: list[int], effects: bool = True) -> Stretch:
    stretch = Stretch(low, high, np.empty(0, np.int64), marks=_between(rows["marks"], low, high))
    if effects:
        stretch.letters = _below(_between(rows["letters"], low, high), cuts)
        stretch.outputs = _below(_between(rows["outputs"], low, high), cuts)
    return stretch


def _between(rows: Rows, low: int, high: int) -> Rows:
    return rows[(rows["offset"] >= low) & (rows["offset"] < high)]


def _below(rows: Rows, cuts: list[int]) -> Rows:
    """Outputs or dead letters below what their agent had come to."""
    if len(set(cuts)) <= 1 or not len(rows):
        return rows
    return rows[rows["offset"] < np.array(cuts, np.int64)[rows["agent"]]]
