"""Checks over a whole history, once each of its events is classified: counts, and what nobody can say. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from semel.port import TP
from semel.proof import laws
from semel.proof.classify import KINDS, History, Judged
from semel.proof.findings import Finding, Findings, Gap, Law, Witness
from semel.proof.laws import Ledger


@dataclass(frozen=True, slots=True)
class Checked:
    """`ledger`: whether the running counts close over the whole history."""

    ledger: bool = False
    gaps: list[Gap] = field(default_factory=list[Gap])
    notes: list[str] = field(default_factory=list[str])


def check(history: History, judged: Mapping[TP, Judged], findings: Findings) -> Checked:
    """Everything that is not one event's. Findings go where they are gathered."""
    there = history.there
    gaps: list[Gap] = [*there.gaps(), *(gap for one in judged.values() for gap in one.deleted)]
    checked = Checked(_ledger_closes(history, judged, gaps, findings), gaps)
    for tp, one in judged.items():
        gaps += one.gaps
        # What the running counts account for needs no other witness.
        if one.trimmed and not checked.ledger:
            gaps += one.trimmed
        elif one.trimmed:
            checked.notes.append(
                f"{tp.topic}[{tp.partition}]: {one.tally.unwitnessed:,} events are proven by the running counts alone: their "
                "marks were trimmed after their window, and they have no outputs"
            )
    if not there.everything:
        _balance_range(history, judged, checked, findings)
    _look_beyond_positions(history, checked, findings)
    _look_at_outputs(history, checked, findings)
    _look_at_marks(history, checked)
    _look_at_spread(history, checked, findings)
    return checked


def _ledger_closes(history: History, judged: Mapping[TP, Judged], gaps: Sequence[Gap], findings: Findings) -> bool:
    """Whether the running counts close over all that was found. Findings where they contradict it."""
    there = history.there
    closed = [
        _closes(history, task, {tp: one for tp, one in judged.items() if tp.partition == task}, gaps, findings)
        for task, position in sorted(there.cut.positions.items())
        if position.topics and there.everything
    ]
    return bool(closed) and all(closed)


def _closes(history: History, task: int, judged: Mapping[TP, Judged], gaps: Sequence[Gap], findings: Findings) -> bool:
    there, whole, tallies = history.there, history.whole, [one.tally for one in judged.values()]
    position, before = there.cut.positions[task], sum(findings.counts.values())
    whole_outputs = whole.outputs and not history.bare[task]
    whole_source = all(there.from_the_first(tp) and not there.compacted(tp.topic) for tp in judged) and not any(
        gap.tp in judged for gap in gaps
    )
    outputs: Counter[str] = Counter()
    for tally in tallies:
        outputs.update(tally.outputs)
    # With several agents a record is taken in by each that has it among its sources.
    one_agent = len(history.plan.agents) == 1
    most, least = sum(t.records for t in tallies), sum(t.done for t in tallies)
    ledger = Ledger(
        records=(most - sum(t.unread for t in tallies), most) if whole_source and one_agent else None,
        took_effect=(least, least + sum(t.unwitnessed + t.maybe for t in tallies))
        if history.plan.dedup is not None and whole_source
        else None,
        letters=sum(t.letters for t in tallies) if whole.letters else None,
        outputs={t: outputs[t] for t in position.outputs} if whole_outputs else {},
        with_output=sum(t.with_output for t in tallies) if whole_outputs else None,
    )
    findings.add(laws.conservation(task, ledger, position))
    return whole_source and one_agent and sum(findings.counts.values()) == before


def _balance_range(history: History, judged: Mapping[TP, Judged], checked: Checked, findings: Findings) -> None:
    """The running counts are of the whole history. They say this much of a range: no more than all were filtered."""
    there = history.there
    ranges = {tp: there.range(tp) for tp in there.sources}
    if not any(end > start for start, end in ranges.values()) and not there.of_another_rule:
        tp = there.sources[0]
        checked.gaps.append(Gap(tp, *ranges[tp], "there is no event in the range that was asked for"))
    if history.plan.dedup is None or not history.whole.outputs or any(history.bare.values()):
        return
    for tp, one in judged.items():
        silent = one.tally.done - one.tally.with_output
        filtered = there.cut.positions[tp.partition].counts.get("filtered", 0)
        if silent > filtered:
            findings.add([Finding(
                Law.CONSERVATION,
                f"{silent:,} events of {tp.topic}[{tp.partition}] in the range took effect and have no output, and only "
                f"{filtered:,} were ever filtered there",
                (Witness(tp, ranges[tp][0], "the first event of the range"),),
            )])  # fmt: skip
        elif silent > 0:
            checked.notes.append(
                f"{tp.topic}[{tp.partition}]: {silent:,} events of the range have no output; whether they were filtered, as "
                f"{filtered:,} were in all, is the whole history's to say"
            )


def _look_beyond_positions(history: History, checked: Checked, findings: Findings) -> None:
    """What speaks of events that no position has come to: it stands alone, or somebody made it up."""
    spool, plan = history.spool, history.plan
    for tp in sorted(spool.partitions() - set(history.there.sources)):
        if history.closing.next(tp) >= 0:
            continue  # it began while all was read
        alone = [
            Witness(history.written.wheres[int(row["where"])], int(row["at"]), what)
            for number in spool.blocks(tp)
            for kind, what in (("outputs", "output"), ("letters", "dead letter"))
            for row in spool.take(kind, tp, number, KINDS[kind])
        ]
        if not alone:
            continue
        these = f"{len(alone):,} outputs and dead letters are of events of {tp.topic}[{tp.partition}], "
        if tp.topic in plan.sources:
            findings.add([Finding(
                Law.ATOMIC, f"{these}of which no position says that it was ever read", tuple(alone[:3])
            )])  # fmt: skip
        else:
            checked.gaps.append(Gap(tp, 0, 0, f"{these}which {plan.app} does not read now", len(alone)))


def _look_at_outputs(history: History, checked: Checked, findings: Findings) -> None:
    there, written, app = history.there, history.written, history.plan.app
    bare = sum(history.bare.values())
    for topic, tps in groupby(sorted(written.strangers), key=lambda tp: tp.topic):
        strangers = list(tps)
        these = f"{sum(written.strangers[tp] for tp in strangers):,} records in {topic} carry no lineage"
        if bare > 0 or topic not in history.plan.sinks:
            checked.notes.append(these)
            continue
        # All that the pipeline wrote does: its positions count it.
        findings.add([Finding(
            Law.CONSERVATION, f"{these} of {app}, and all of its outputs do: another program writes to its sink",
            tuple(w for tp in strangers for w in written.stranger_witnesses[tp])[:3],
        )])  # fmt: skip
    for tp in there.outputs:
        if bare > 0:
            checked.gaps.append(Gap(
                tp, there.begins(tp), there.ends[tp], f"{bare:,} outputs of {app} were written without lineage (`lineage = "
                "false`, or by an older version), so that outputs cannot be told from others",
            ))  # fmt: skip
        elif not history.untouched(tp):
            checked.gaps.append(Gap(
                tp, 0, there.starts[tp], "compaction removes outputs from it" if there.compacted(tp.topic) else
                "outputs were deleted from it, so that nobody can say whether all of them were there",
            ))  # fmt: skip
    for tp in there.tps(history.plan.dead_letter_topic):
        if not history.untouched(tp):
            checked.gaps.append(Gap(tp, 0, there.starts[tp], "dead letters were deleted from it"))
    if sent := written.counts["sent"]:
        checked.notes.append(f"{sent:,} outputs were sent without an event")


def _look_at_marks(history: History, checked: Checked) -> None:
    """Marks that somebody else than semel deleted: what they protected, nobody can say."""
    there = history.there
    for tp in there.tps(history.plan.marks_topic) if history.plan.dedup is not None else ():
        # The later positions: workers may have trimmed while all was read.
        position = history.closing.positions.get(tp.partition)
        if position is not None and 0 <= position.trimmed < there.starts[tp]:
            checked.gaps.append(Gap(
                tp, position.trimmed, there.starts[tp], "these marks were deleted, and not by semel, which deletes expired ones "
                "only: whether redeliveries of their events took effect again is known of those with outputs only",
            ))  # fmt: skip


def _look_at_spread(history: History, checked: Checked, findings: Findings) -> None:
    """Where a topic that outputs go to grew: whether the outputs of a key stayed in one partition."""
    there, app, outputs = history.there, history.plan.app, history.written.outputs
    for name, sink in sorted(there.sinks.items()):
        tps = there.tps(name)
        if sink.least < sink.partitions:
            checked.gaps.append(Gap(
                TP(name, 0), 0, 0, f"outputs of {app} went over {sink.least} of its partitions first and {sink.partitions} "
                "later: keys moved, and nobody can say in which order a reader meets the outputs of one",
            ))  # fmt: skip
        beyond = [tp for tp in tps if tp.partition >= sink.partitions and outputs[tp]]
        if beyond:
            findings.add([Finding(
                Law.ORDER,
                f"{sum(outputs[tp] for tp in beyond):,} outputs are in partitions of {name} that {app} does not use: it grew "
                f"from {sink.partitions} to {len(tps)} partitions, and the outputs of one key are in several",
                tuple(Witness(tp, there.starts[tp], "the first record of the partition") for tp in beyond[:3]),
            )])  # fmt: skip
        elif len(tps) > sink.partitions:
            checked.notes.append(
                f"{name} has {len(tps)} partitions; outputs go to the first {sink.partitions}, as before"
            )
