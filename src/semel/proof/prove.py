"""Prove: from the topics of a pipeline to a `Proof`. The order of reading is what makes it sound while the pipeline runs.

Positions first: what is judged lies below them. Then the ends of every log that the pipeline writes, open transactions
included, and the logs up to there: whatever was committed with those positions is in them. Then the positions again: what
was read must lie below these. At last the source, a stretch at a time.
"""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from itertools import groupby
from pathlib import Path

import numpy as np

from semel.plan import Plan
from semel.port import TP, Broker, Clock, Record
from semel.proof import laws
from semel.proof.columns import Source, content_of, offsets_of
from semel.proof.cut import Cut, NothingToProve
from semel.proof.fates import Missing, Rule
from semel.proof.findings import Finding, Findings, Gap, Law, Witness
from semel.proof.history import LETTER, MARK, OUTPUT, UNMARKED, Rows, Stretch, among, empty
from semel.proof.judge import Judge, Whole
from semel.proof.laws import Ledger
from semel.proof.logs import Logs
from semel.proof.proof import Part, Progress, Proof
from semel.proof.recording import Recording
from semel.proof.scan import Scan
from semel.proof.spool import BLOCK, Spool
from semel.proof.survey import Survey
from semel.state.marks import DONE

__all__ = ["NothingToProve", "prove"]

# Within one epoch marks may stand in another order than their events.
_EPOCH_EVENTS = 50_000
_KINDS = {"marks": MARK, "outputs": OUTPUT, "letters": LETTER}


async def prove(
    broker: Broker,
    plan: Plan,
    clock: Clock,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    block: int = BLOCK,
    recording: Recording | None = None,
) -> Proof:
    """Hold what `plan`'s topics say against the laws.

    `since_ms`, `until_ms`: judge the events from the first stamped at or after the one up to the first stamped at or after
    the other, in ms since 1970. Memory is that of the marks of one window of one partition, and of a stretch of `block`
    events; what does not fit meanwhile goes to files in the temporary directory, about 60 bytes an event.

    `recording`: what was kept of the source, where it was compacted for a while and is not any more.

    NothingToProve, ShapeChanged, other SemelErrors where the topics cannot be understood; RpcLost where no broker answers.
    """
    with tempfile.TemporaryDirectory(prefix="semel-prove-") as folder:
        spool = Spool(Path(folder), block=block)
        prover = _Prover(broker, plan, clock, spool, since_ms, until_ms, progress or (lambda _: None), recording)
        return await prover.run()


class _Prover:
    def __init__(
        self,
        broker: Broker,
        plan: Plan,
        clock: Clock,
        spool: Spool,
        since_ms: int | None,
        until_ms: int | None,
        progress: Callable[[Progress], None],
        recording: Recording | None,
    ) -> None:
        self._broker = broker
        self._plan = plan
        self._clock = clock
        self._spool = spool
        self._since, self._until = since_ms, until_ms
        self._progress = progress
        self._phase, self._done, self._total = "positions", 0, 0
        self._recording = recording
        self._logs = Logs(broker, clock, recording)
        self._findings = Findings()
        self._there = Survey(broker, self._logs, plan, since_ms, until_ms)
        self._gaps = self._there.gaps
        self._notes: list[str] = []
        self._parts: list[Part] = []
        self._closing = Cut()
        self._scan = Scan(plan, self._logs, spool, self._findings, self._read)
        self._ledger_closed = False
        self._unread = 0
        dedup = plan.dedup
        self._rule = None
        if dedup is not None:
            self._rule = Rule(dedup.window_ms, dedup.bucket_ms, dedup.missing, dedup.conflict, dedup.late)

    async def run(self) -> Proof:
        started = self._clock.monotonic()
        there = self._there
        await there.look(self._findings, self._read)
        self._total = self._done + there.offsets
        await self._scan_what_was_written()
        self._phase = "positions"
        self._closing = copy.deepcopy(there.cut)
        await self._closing.read(self._logs, self._plan, there.position_tps, self._findings, self._read)
        await self._judge()
        await self._name_witnesses()
        return self._proof(self._clock.monotonic() - started)

    def _read(self, offsets: int) -> None:
        self._done += offsets
        self._progress(Progress(self._phase, self._done, max(self._total, self._done)))

    # -- what was written

    async def _scan_what_was_written(self) -> None:
        plan, scan, there = self._plan, self._scan, self._there
        self._phase = "outputs"
        for tp in there.outputs:
            await scan.outputs_in(tp, there.begins(tp), there.ends[tp])
        if self._rule is not None:
            self._phase = "marks"
            [source] = plan.sources
            for tp in there.tps(plan.marks_topic):
                await scan.marks_in(tp, TP(source, tp.partition), there.starts[tp], there.ends[tp])
        self._phase = "dead letters"
        for tp in there.tps(plan.dead_letter_topic):
            await scan.letters_in(tp, there.begins(tp), there.ends[tp])

    def _whole(self, tp: TP) -> bool:
        """Nothing was deleted from a log since it began for us."""
        return self._there.untouched(tp) and not self._scan.gone[tp]

    # -- judging

    async def _judge(self) -> None:
        there = self._there
        self._phase = "events"
        dead_letters = self._plan.dead_letter_topic
        whole_outputs = not there.missing.keys() - {dead_letters} and all(map(self._whole, there.outputs))
        whole_letters = dead_letters not in there.missing and all(map(self._whole, there.tps(dead_letters)))
        bare = self._without_lineage()
        judges: dict[TP, Judge] = {}
        for tp in there.sources:
            whole = Whole(not there.compacted(tp.topic), whole_outputs, whole_letters)
            judges[tp] = await self._judge_partition(tp, whole)
        closed: list[bool] = []
        for task, position in sorted(there.cut.positions.items()):
            mine = {tp: judge for tp, judge in judges.items() if tp.partition == task}
            if position.topics and there.everything:
                closed.append(self._close(task, mine, whole_outputs and not bare[task], whole_letters))
        self._ledger_closed = bool(closed) and all(closed)
        for tp, judge in judges.items():
            # What the running counts account for needs no other witness.
            self._gaps += judge.gaps
            if judge.trimmed and not self._ledger_closed:
                self._gaps += judge.trimmed
            elif judge.trimmed:
                self._notes.append(
                    f"{tp.topic}[{tp.partition}]: {judge.tally.unwitnessed:,} events are proven by the running counts alone: "
                    "their marks were trimmed after their window, and they have no outputs"
                )
        if not there.everything:
            self._balance_range(judges, whole_outputs and not any(bare.values()))
        self._judge_the_rest()
        self._judge_outputs(sum(bare.values()), whole_outputs)
        self._judge_marks()
        self._judge_spread()

    def _balance_range(self, judges: dict[TP, Judge], whole_outputs: bool) -> None:
        """The running counts are of the whole history. They say this much of a range: no more than all were filtered."""
        there = self._there
        if not any(end > start for start, end in there.range.values()) and not there.of_another_rule:
            tp = there.sources[0]
            self._gaps.append(Gap(tp, *there.range[tp], "there is no event in the range that was asked for"))
        if self._rule is None or not whole_outputs:
            return
        for tp, judge in judges.items():
            silent = judge.tally.done - judge.tally.with_output
            filtered = there.cut.positions[tp.partition].counts.get("filtered", 0)
            if silent > filtered:
                self._findings.add([Finding(
                    Law.CONSERVATION,
                    f"{silent:,} events of {tp.topic}[{tp.partition}] in the range took effect and have no output, and "
                    f"only {filtered:,} were ever filtered there",
                    (Witness(tp, there.range[tp][0], "the first event of the range"),),
                )])  # fmt: skip
            elif silent > 0:
                self._notes.append(
                    f"{tp.topic}[{tp.partition}]: {silent:,} events of the range have no output; whether they were filtered, "
                    f"as {filtered:,} were in all, is the whole history's to say"
                )

    def _judge_the_rest(self) -> None:
        """What speaks of events that no position has come to: it stands alone, or somebody made it up."""
        for tp in sorted(self._spool.partitions() - set(self._there.sources)):
            if self._closing.next(tp) >= 0:
                continue  # it began while all was read
            alone = [
                Witness(self._scan.wheres[int(row["where"])], int(row["at"]), said)
                for number in self._spool.blocks(tp)
                for kind, said in (("outputs", "output"), ("letters", "dead letter"))
                for row in self._spool.take(kind, tp, number, _KINDS[kind])
            ]
            if not alone:
                continue
            said = f"{len(alone):,} outputs and dead letters are of events of {tp.topic}[{tp.partition}], "
            if tp.topic in self._plan.sources:
                self._findings.add([Finding(
                    Law.ATOMIC, f"{said}of which no position says that it was ever read", tuple(alone[:3])
                )])  # fmt: skip
            else:
                self._gaps.append(Gap(tp, 0, 0, f"{said}which {self._plan.app} does not read now", len(alone)))

    async def _judge_partition(self, tp: TP, whole: Whole) -> Judge:
        there = self._there
        start, end = there.range[tp]
        cut, closing = there.cut.by_agent(tp), self._closing.next(tp)
        position = there.cut.positions[tp.partition]
        rule = self._rule
        drops = rule is not None and "drop" in (rule.missing, rule.conflict, rule.late)
        if rule is not None:
            # What an earlier declaration let pass took effect without a mark, and still has its outputs.
            passed = [name for name in ("missing", "conflict", "late") if name in position.passed]
            rule = rule._replace(**dict.fromkeys(passed, "pass"))
            at = position.topics[tp.topic]
            rule = rule._replace(hashed_from=at.hashed_from)
            windows = there.windows(tp)
            if windows is not None:
                # Marks were trimmed by whole buckets, of a quarter of the window of then.
                bucket_ms = max(rule.bucket_ms, windows.most_ms // 4)
                rule = rule._replace(since=windows.since, least_ms=windows.least_ms, bucket_ms=bucket_ms)
        judge = Judge(
            tp, rule, self._findings, self._scan.wheres, whole=whole, from_the_beginning=there.from_the_first(tp),
            stream_ms=position.stream_time.ms, gone=self._marks_gone(tp, rule),
            dropped_before=position.counts.get("dropped", 0) > 0 and not drops,
        )  # fmt: skip
        source = None
        if self._plan.dedup is not None:
            source = Source(self._plan.sources[tp.topic], self._plan.dedup)
        size = self._spool.block
        numbers = {*self._spool.blocks(tp), *range(start // size, -(-end // size))}
        checked = False
        for number in sorted(numbers):
            rows = {kind: self._spool.take(kind, tp, number, dtype) for kind, dtype in _KINDS.items()}
            for kind, said in (("marks", "a mark"), ("outputs", "outputs"), ("letters", "a dead letter")):
                self._findings.add(laws.within_position(tp, rows[kind], closing, said))
            low, high = max(start, number * size), min(end, (number + 1) * size)
            cuts = [cut.get(a.name, cut[""]) for a in self._plan.agents]
            if number * size < start:
                judge.pass_by(_cut_out(rows, number * size, min(start, (number + 1) * size), cuts, there.everything))
            if low >= high:
                continue
            stretch = _cut_out(rows, low, high, cuts)
            sample = await self._read_source(tp, stretch, source)
            if source is not None and not checked and len(stretch.marks):
                source.check(tp, sample, stretch)
                checked = True
            judge.stretch(stretch)
        tally = judge.tally
        self._unread += tally.unread
        self._parts.append(Part(
            tp, start, end, tally.records, tally.done + tally.unwitnessed, tally.duplicates, tally.letters,
            sum(tally.outputs.values()),
        ))  # fmt: skip
        return judge

    def _marks_gone(self, tp: TP, rule: Rule | None) -> Missing | None:
        if rule is None or not self._scan.marks_gone.get(tp):
            return None
        before, filed = self._scan.first_mark.get(tp, (2**61, 2**61))
        return Missing(
            before + _EPOCH_EVENTS, filed + rule.bucket_ms, self._there.from_the_first(tp), self._scan.ahead[tp]
        )

    def _judge_marks(self) -> None:
        """Marks that somebody else than semel deleted: what they protected, nobody can say."""
        for tp in self._there.tps(self._plan.marks_topic) if self._rule is not None else ():
            # The later positions: workers may have trimmed while all was read.
            position = self._closing.positions.get(tp.partition)
            begins = self._there.starts[tp]
            if position is not None and 0 <= position.trimmed < begins:
                self._gaps.append(Gap(
                    tp, position.trimmed, begins, "these marks were deleted, and not by semel, which deletes expired ones only: "
                    "whether redeliveries of their events took effect again is known of those with outputs only",
                ))  # fmt: skip

    async def _read_source(self, tp: TP, stretch: Stretch, source: Source | None) -> list[Record]:
        """The committed records of a stretch, with the columns of those that nothing names; some that are named."""
        done = np.sort(np.concatenate((
            stretch.marks["offset"][stretch.marks["outcome"] == DONE], stretch.letters["offset"],
        )))  # fmt: skip
        lettered = np.sort(stretch.letters["offset"])
        if self._recording is not None:
            stretch.unread = self._recording.unread(tp, stretch.start, stretch.end)
        offsets: list[Rows] = []
        unmarked: list[Rows] = []
        sample: list[Record] = []
        async with aclosing(self._logs.read(tp, stretch.start, stretch.end)) as pieces:
            async for piece in pieces:
                if piece.missing:
                    stretch.gone = piece.next
                    self._gaps.append(Gap(
                        tp, piece.start, piece.next, "retention deleted these events while they were to be read",
                        piece.missing,
                    ))  # fmt: skip
                there = offsets_of(piece.records)
                offsets.append(there)
                for i in np.flatnonzero(among(there, lettered)).tolist():
                    stretch.contents[piece.records[i].offset] = content_of(piece.records[i])
                if source is not None and len(there):
                    named = among(there, done)
                    unmarked.append(source.unmarked([piece.records[i] for i in np.flatnonzero(~named).tolist()]))
                    if len(sample) < 200:
                        sample += [piece.records[i] for i in np.flatnonzero(named)[:200].tolist()]
                self._read(piece.next - piece.start)
        stretch.records = np.concatenate(offsets) if offsets else stretch.records
        stretch.unmarked = np.concatenate(unmarked) if unmarked else empty(UNMARKED)
        return sample

    # -- the ledger

    def _without_lineage(self) -> dict[int, int]:
        """By task: outputs that were written without lineage."""
        return {
            task: position.counts.get("out", 0) - sum(position.outputs.values())
            for task, position in self._there.cut.positions.items()
        }

    def _close(self, task: int, judges: dict[TP, Judge], whole_outputs: bool, whole_letters: bool) -> bool:
        """Whether the running counts close over what was found. Findings where they contradict it."""
        there = self._there
        position, before = there.cut.positions[task], sum(self._findings.counts.values())
        whole_source = all(
            there.from_the_first(tp) and not there.compacted(tp.topic) for tp in judges
        ) and not any(gap.tp in judges for gap in self._gaps)  # fmt: skip
        outputs: Counter[str] = Counter()
        for judge in judges.values():
            outputs.update(judge.tally.outputs)
        agents = len(self._plan.agents)
        most = sum(j.tally.records for j in judges.values())
        records = most - sum(j.tally.unread for j in judges.values()), most
        took_effect = None
        if self._rule is not None and whole_source:
            least = sum(j.tally.done for j in judges.values())
            took_effect = least, least + sum(j.tally.unwitnessed + j.tally.maybe for j in judges.values())
        ledger = Ledger(
            # With several agents a record is taken in by each that has it among its sources.
            records=records if whole_source and agents == 1 else None,
            took_effect=took_effect,
            letters=sum(j.tally.letters for j in judges.values()) if whole_letters else None,
            outputs={t: outputs[t] for t in position.outputs} if whole_outputs else {},
            with_output=sum(j.tally.with_output for j in judges.values()) if whole_outputs else None,
        )
        self._findings.add(laws.conservation(task, ledger, position))
        return whole_source and agents == 1 and sum(self._findings.counts.values()) == before

    def _judge_outputs(self, bare: int, whole: bool) -> None:
        there = self._there
        sinks = self._plan.sinks
        for topic, tps in groupby(sorted(self._scan.strangers), key=lambda tp: tp.topic):
            strangers = list(tps)
            said = f"{sum(self._scan.strangers[tp] for tp in strangers):,} records in {topic} carry no lineage"
            if bare > 0 or topic not in sinks:
                self._notes.append(said)
                continue
            # All that the pipeline wrote does: its positions count it.
            self._findings.add([Finding(
                Law.CONSERVATION, f"{said} of {self._plan.app}, and all of its outputs do: another program writes to its sink",
                tuple(w for tp in strangers for w in self._scan.stranger_witnesses[tp])[:3],
            )])  # fmt: skip
        if bare > 0:
            for tp in there.outputs:
                self._gaps.append(Gap(
                    tp, there.begins(tp), there.ends[tp], f"{bare:,} outputs of {self._plan.app} were written without "
                    "lineage (`lineage = false`, or by an older version), so that outputs cannot be told from others",
                ))  # fmt: skip
        elif not whole:
            for tp in there.outputs:
                if not self._whole(tp):
                    compacted = there.compacted(tp.topic)
                    self._gaps.append(Gap(
                        tp, 0, there.starts[tp], "compaction removes outputs from it" if compacted else
                        "outputs were deleted from it, so that nobody can say whether all of them were there",
                    ))  # fmt: skip
        for tp in there.tps(self._plan.dead_letter_topic):
            if not self._whole(tp):
                self._gaps.append(Gap(tp, 0, there.starts[tp], "dead letters were deleted from it"))
        if self._scan.sent:
            self._notes.append(f"{self._scan.sent:,} outputs were sent without an event")

    def _judge_spread(self) -> None:
        """Where a topic that outputs go to grew: whether the outputs of a key stayed in one partition."""
        there, app = self._there, self._plan.app
        for name, sink in sorted(there.sinks.items()):
            tps = there.tps(name)
            if sink.least < sink.partitions:
                self._gaps.append(Gap(
                    TP(name, 0), 0, 0, f"outputs of {app} went over {sink.least} of its partitions first and {sink.partitions} "
                    "later: keys moved, and nobody can say in which order a reader meets the outputs of one",
                ))  # fmt: skip
            beyond = [tp for tp in tps if tp.partition >= sink.partitions and self._scan.outputs[tp]]
            if beyond:
                self._findings.add([Finding(
                    Law.ORDER,
                    f"{sum(self._scan.outputs[tp] for tp in beyond):,} outputs are in partitions of {name} that {app} does not "
                    f"use: it grew from {sink.partitions} to {len(tps)} partitions, and the outputs of one key are in several",
                    tuple(Witness(tp, there.starts[tp], "the first record of the partition") for tp in beyond[:3]),
                )])  # fmt: skip
            elif len(tps) > sink.partitions:
                self._notes.append(
                    f"{name} has {len(tps)} partitions; outputs go to the first {sink.partitions}, as before"
                )

    # -- saying so

    async def _name_witnesses(self) -> None:
        """Read the events again that witnesses point at, for their ids and keys."""
        dedup = self._plan.dedup
        for i, finding in enumerate(self._findings.kept):
            named: list[Witness] = []
            for witness in finding.witnesses:
                record = None
                if witness.tp.topic in self._plan.sources and witness.offset >= self._there.starts.get(witness.tp, 0):
                    record = await self._record_at(witness.tp, witness.offset)
                if record is not None:
                    topic = self._plan.sources[witness.tp.topic]
                    witness = witness._replace(
                        id=Source(topic, dedup).id_text(record) if dedup is not None else None,
                        key=None if record.key is None else record.key.decode(errors="backslashreplace"),
                    )
                named.append(witness)
            self._findings.kept[i] = finding._replace(witnesses=tuple(named))

    async def _record_at(self, tp: TP, offset: int) -> Record | None:
        end = (await self._logs.ends([tp]))[tp]
        async with aclosing(self._logs.read(tp, offset, min(end, offset + 1))) as pieces:
            async for piece in pieces:
                return next((r for r in piece.records if r.offset == offset), None)
        return None

    def _proof(self, seconds: float) -> Proof:
        there = self._there
        counts: Counter[str] = Counter()
        for position in there.cut.positions.values():
            counts.update(position.counts)
        looked_at = {
            "records": sum(p.records for p in self._parts),
            "took_effect": sum(p.took_effect for p in self._parts),
            "outputs": sum(p.outputs for p in self._parts),
            "marks": self._scan.marks,
            "dead_letters": sum(p.dead_letters for p in self._parts),
            "duplicates": sum(p.duplicates for p in self._parts),
            "positions": there.cut.records,
            "without_lineage": sum(self._scan.strangers.values()),
        }
        if self._recording is not None:
            looked_at["unread"] = self._unread
        if self._unread:
            self._notes.append(
                f"{self._unread:,} events that led to nothing may have been compacted away before they were read"
            )
        asked = [law for law in Law if law is not Law.FOLD]
        if not there.everything and Law.CONSERVATION not in self._findings.counts:
            asked.remove(Law.CONSERVATION)
        if self._rule is None:
            # Without marks, what became of a single event is the running counts' to say.
            asked = [law for law in asked if law is not Law.NO_LOSS or self._ledger_closed]
        return Proof(
            pipeline=self._plan.app,
            at_ms=int(self._clock.time() * 1000),
            since_ms=self._since,
            until_ms=self._until,
            findings=tuple(sorted(self._findings.kept, key=lambda f: list(Law).index(f.law))),
            found=dict(self._findings.counts),
            gaps=tuple(self._gaps),
            notes=tuple(self._notes),
            counts={**looked_at, **{f"counted_{name}": n for name, n in counts.items()}},
            parts=tuple(self._parts),
            laws=tuple(asked),
            ledger=self._ledger_closed,
            seconds=seconds,
        )


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
