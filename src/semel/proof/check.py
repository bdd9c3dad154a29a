"""Checks over a whole history, once each of its events is classified: counts, and what nobody can say. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from semel.port import TP
from semel.proof import laws
from semel.proof.classify import Classified
from semel.proof.proof import Finding, Findings, Gap, Law, Witness
from semel.proof.read import History


@dataclass(frozen=True, slots=True)
class Checked:
    """`ledger`: whether the running counts close over the whole history."""

    ledger: bool
    gaps: list[Gap] = field(default_factory=list[Gap])
    notes: list[str] = field(default_factory=list[str])


# What a check says: a law is broken, or nobody can say, or it is a note.
Said = Iterator[Finding | Gap | str]


def check(history: History, classified: Mapping[TP, Classified], findings: Findings) -> Checked:
    """Everything that is not one event's. Findings go where they are gathered."""
    survey = history.survey
    gaps = [*survey.gaps(), *(gap for one in classified.values() for gap in one.deleted)]
    # Of a range the running counts say nothing: they are of the whole history.
    closed = survey.everything and [
        _closes(history, task, {tp: one for tp, one in classified.items() if tp.partition == task}, gaps, findings)
        for task, position in sorted(survey.cut.positions.items())
        if position.topics
    ]
    checked = Checked(bool(closed) and all(closed), gaps)
    for remark in (
        *_unwitnessed(classified, checked.ledger),
        *_range(history, classified),
        *_beyond_positions(history),
        *_outputs(history),
        *_marks(history),
        *_spread(history),
    ):
        if isinstance(remark, Finding):
            findings.add([remark])
        elif isinstance(remark, Gap):
            checked.gaps.append(remark)
        else:
            checked.notes.append(remark)
    return checked


def _closes(
    history: History, task: int, classified: Mapping[TP, Classified], gaps: list[Gap], findings: Findings
) -> bool:
    """Whether the running counts of a task close over all that was found. Findings where they contradict it."""
    survey, tallies = history.survey, [one.tally for one in classified.values()]
    whole_outputs = history.whole.outputs and not history.bare[task]
    whole_source = not any(gap.tp in classified for gap in gaps) and all(
        survey.from_the_first(tp) and not survey.compacted(tp.topic) for tp in classified
    )
    outputs = sum((t.outputs for t in tallies), Counter[str]())
    # With several agents a record is taken in by each that has it among its sources.
    one_agent = len(history.plan.agents) == 1
    position, before = survey.cut.positions[task], findings.counts.total()
    most, least = sum(t.records for t in tallies), sum(t.done for t in tallies)
    ledger = laws.Ledger(
        records=(most - sum(t.unread for t in tallies), most) if whole_source and one_agent else None,
        took_effect=(least, least + sum(t.unwitnessed + t.maybe for t in tallies))
        if history.plan.dedup is not None and whole_source
        else None,
        letters=sum(t.letters for t in tallies) if history.whole.letters else None,
        outputs={t: outputs[t] for t in position.outputs} if whole_outputs else {},
        with_output=sum(t.with_output for t in tallies) if whole_outputs else None,
    )
    findings.add(laws.conservation(task, ledger, position))
    return whole_source and one_agent and findings.counts.total() == before


def _unwitnessed(classified: Mapping[TP, Classified], ledger: bool) -> Said:
    """What the running counts account for needs no other witness."""
    for tp, one in classified.items():
        yield from one.gaps
        if one.trimmed is not None:
            yield (
                one.trimmed
                if not ledger
                else (
                    f"{tp.topic}[{tp.partition}]: {one.tally.unwitnessed:,} events are proven by the running counts alone: their "
                    "marks were trimmed after their window, and they have no outputs"
                )
            )


def _range(history: History, classified: Mapping[TP, Classified]) -> Said:
    """The running counts are of the whole history. They say this much of a range: no more than all were filtered."""
    survey = history.survey
    if survey.everything:
        return
    if all(one.end <= one.start for one in classified.values()) and not survey.of_another_rule:
        tp = survey.sources[0]
        yield Gap(tp, *survey.range(tp), "there is no event in the range that was asked for")
    if history.plan.dedup is None or not history.whole.outputs or any(history.bare.values()):
        return
    for tp, one in classified.items():
        silent = one.tally.done - one.tally.with_output
        filtered = survey.cut.positions[tp.partition].counts.get("filtered", 0)
        if silent > filtered:
            yield Finding(
                Law.CONSERVATION,
                f"{silent:,} events of {tp.topic}[{tp.partition}] in the range took effect and have no output, and only "
                f"{filtered:,} were ever filtered there",
                (Witness(tp, one.start, "the first event of the range"),),
            )
        elif silent > 0:
            yield (
                f"{tp.topic}[{tp.partition}]: {silent:,} events of the range have no output; whether they were filtered, as "
                f"{filtered:,} were in all, is the whole history's to say"
            )


def _beyond_positions(history: History) -> Said:
    """What speaks of events that no position has come to: it stands alone, or somebody made it up."""
    spool, plan = history.spool, history.plan
    for tp in sorted(spool.partitions() - set(history.survey.sources)):
        if history.closing.next(tp) >= 0:
            continue  # it began while all was read
        alone = [
            Witness(history.wheres[int(row["where"])], int(row["at"]), what)
            for number in spool.blocks(tp)
            for kind, what in (("outputs", "output"), ("letters", "dead letter"))
            for row in spool.take(kind, tp, number)
        ]
        these = f"{len(alone):,} outputs and dead letters are of events of {tp.topic}[{tp.partition}], "
        if alone and tp.topic in plan.sources:
            yield Finding(Law.ATOMIC, f"{these}of which no position says that it was ever read", tuple(alone[:3]))
        elif alone:
            yield Gap(tp, 0, 0, f"{these}which {plan.app} does not read now", len(alone))


def _outputs(history: History) -> Said:
    survey, app, bare = history.survey, history.plan.app, sum(history.bare.values())
    for topic, tps in groupby(sorted(history.strangers), key=lambda tp: tp.topic):
        these = f"{sum(history.strangers[tp] for tp in tps):,} records in {topic} carry no lineage"
        if bare > 0 or topic not in history.plan.sinks:
            yield these
            continue
        # All that the pipeline wrote does: its positions count it.
        witnesses = [witness for witness in history.stranger_witnesses if witness.tp.topic == topic]
        yield Finding(
            Law.CONSERVATION,
            f"{these} of {app}, and all of its outputs do: another program writes to its sink",
            tuple(witnesses[:3]),
        )
    for tp in survey.outputs:
        if bare > 0:
            yield Gap(
                tp, survey.begins(tp), survey.ends[tp], f"{bare:,} outputs of {app} were written without lineage (`lineage = "
                "false`, or by an older version), so that outputs cannot be told from others",
            )  # fmt: skip
        elif not history.untouched(tp):
            yield Gap(
                tp, 0, survey.starts[tp], "compaction removes outputs from it" if survey.compacted(tp.topic) else
                "outputs were deleted from it, so that nobody can say whether all of them were there",
            )  # fmt: skip
    for tp in survey.tps(history.plan.dead_letter_topic):
        if not history.untouched(tp):
            yield Gap(tp, 0, survey.starts[tp], "dead letters were deleted from it")
    if sent := history.sent.total():
        yield f"{sent:,} outputs were sent without an event"


def _marks(history: History) -> Said:
    """Marks that somebody else than semel deleted: what they protected, nobody can say."""
    starts = history.survey.starts
    for tp in history.survey.tps(history.plan.marks_topic) if history.plan.dedup is not None else ():
        # The later positions: workers may have trimmed while all was read.
        position = history.closing.positions.get(tp.partition)
        if position is not None and 0 <= position.trimmed < starts[tp]:
            yield Gap(
                tp, position.trimmed, starts[tp], "these marks were deleted, and not by semel, which deletes expired ones "
                "only: whether redeliveries of their events took effect again is known of those with outputs only",
            )  # fmt: skip


def _spread(history: History) -> Said:
    """Where a topic that outputs go to grew: whether the outputs of a key stayed in one partition."""
    survey, app, outputs = history.survey, history.plan.app, history.outputs
    for name, sink in sorted(survey.sinks.items()):
        tps = survey.tps(name)
        if sink.least < sink.partitions:
            yield Gap(
                TP(name, 0), 0, 0, f"outputs of {app} went over {sink.least} of its partitions first and {sink.partitions} "
                "later: keys moved, and nobody can say in which order a reader meets the outputs of one",
            )  # fmt: skip
        beyond = [tp for tp in tps if tp.partition >= sink.partitions and outputs[tp]]
        if beyond:
            yield Finding(
                Law.ORDER,
                f"{sum(outputs[tp] for tp in beyond):,} outputs are in partitions of {name} that {app} does not use: it grew "
                f"from {sink.partitions} to {len(tps)} partitions, and the outputs of one key are in several",
                tuple(Witness(tp, survey.starts[tp], "the first record of the partition") for tp in beyond[:3]),
            )
        elif len(tps) > sink.partitions:
            yield f"{name} has {len(tps)} partitions; outputs go to the first {sink.partitions}, as before"
