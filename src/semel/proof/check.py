"""Checks over a whole history, once each of its events is classified: counts, and what nobody can say. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from semel.port import TP
from semel.proof.classify import Tally
from semel.proof.outcomes import Outcome
from semel.proof.proof import Finding, Gap, Law, Remark, Remarks, Witness
from semel.proof.read import History
from semel.proof.survey import partitions


def check(history: History, tallies: Mapping[TP, Tally], remarks: Remarks) -> bool:
    """Everything that is not one event's. Whether the running counts close over the whole history."""
    survey, deleted = history.survey, {gap.tp for gap in remarks.gaps}
    # With several agents a record is taken in by each that has it among its sources.
    one_agent = len(history.plan.agents) == 1
    closed: list[bool] = []
    # Of a range the running counts say nothing: they are of the whole history.
    for task, position in sorted(survey.cut.positions.items()) if survey.everything else ():
        if position.topics:
            of_task = {tp: tally for tp, tally in tallies.items() if tp.partition == task}
            whole = all(
                survey.sources[tp].from_the_first and tp.topic not in survey.compacted and tp not in deleted
                for tp in of_task
            )
            unbalanced = list(_conservation(history, task, list(of_task.values()), whole, one_agent))
            remarks.add(unbalanced)
            closed.append(whole and one_agent and not unbalanced)
    ledger = bool(closed) and all(closed)
    for tp, tally in tallies.items():
        remarks.add(_unaccounted(tp, tally, ledger))
    remarks.add(_range(history, tallies))
    for look in (_beyond_positions, _strangers, _gone, _spread):
        remarks.add(look(history))
    return ledger


def _conservation(
    history: History, task: int, tallies: list[Tally], whole_source: bool, one_agent: bool
) -> Iterator[Finding]:
    """What was found is what the running counts of the position record say."""

    def unbalanced(claim: str) -> Finding:
        return Finding(Law.CONSERVATION, f"task {task}: {claim}")

    position, whole = history.survey.cut.positions[task], history.whole
    counts = Counter(position.counts)
    done = counts["in"] - counts["replayed"]
    taken = done + position.parked
    effects = done - counts["duplicates"] - counts["dropped"] - counts["dead"]
    # What was parked by the position and is not any more has led to something since, nobody knows to what.
    since = max(0, position.parked - sum(t.parked for t in tallies))
    most = sum(t.records for t in tallies)
    least = most - sum(t.unread for t in tallies)
    if whole_source and one_agent and not least <= taken <= most:
        yield unbalanced(f"{_from_to(least, most)} committed records lie below its position, it took in {taken:,}")
    letters = sum(t.letters for t in tallies)
    if whole.letters and not counts["dead"] <= letters <= counts["dead"] + since:
        yield unbalanced(f"{letters:,} dead letters are there, it wrote {counts['dead']:,}")
    whole_outputs = whole.outputs and not history.bare[task]
    outputs = sum((t.outputs for t in tallies), Counter[str]())
    for topic, wanted in sorted(position.outputs.items()) if whole_outputs else ():
        if outputs[topic] < wanted or (outputs[topic] > wanted and not since):
            yield unbalanced(f"{outputs[topic]:,} outputs are in {topic}, it wrote {wanted:,}")
    later, wanted = sum(t.later for t in tallies), position.timers + sum(position.sent_later.values())
    if whole_outputs and (later + history.ended_since[task] < wanted or (later > wanted and not since)):
        yield unbalanced(
            f"{later:,} outputs that were to be sent at a time are there or pending, {wanted:,} by its counts"
        )
    least = sum(t.took_effect for t in tallies)
    most = least + sum(t.unwitnessed + t.maybe for t in tallies)
    if history.plan.dedup is not None and whole_source and not least - since <= effects <= most:
        yield unbalanced(f"{_from_to(least, most)} events took effect by what is there, {effects:,} by its counts")
    with_output = sum(t.with_output for t in tallies)
    if whole_outputs and not effects <= with_output + counts["filtered"] <= effects + since:
        yield unbalanced(
            f"{with_output:,} events have outputs and {counts['filtered']:,} were filtered, which together are not "
            f"the {effects:,} that took effect"
        )


def _from_to(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _unaccounted(tp: TP, tally: Tally, ledger: bool) -> Iterator[Remark]:
    """What the running counts account for needs no other witness."""
    for why, gap in tally.gaps.items():
        if ledger and why is Outcome.UNWITNESSED:
            yield (
                f"{tp.topic}[{tp.partition}]: {gap.events:,} events are proven by the running counts alone: their marks were "
                "trimmed after their window, and they have no outputs"
            )
        else:
            yield gap


def _range(history: History, tallies: Mapping[TP, Tally]) -> Iterator[Remark]:
    """The running counts are of the whole history. They say this much of a range: no more than all were filtered."""
    survey = history.survey
    if survey.everything:
        return
    if all(judged.end <= judged.start == judged.asked for judged in survey.sources.values()):
        for tp, judged in list(survey.sources.items())[:1]:
            yield Gap(tp, judged.start, judged.end, "there is no event in the range that was asked for")
    if history.plan.dedup is None or not history.whole.outputs or any(history.bare.values()):
        return
    for tp, tally in tallies.items():
        silent = tally.took_effect - tally.with_output
        filtered = survey.cut.positions[tp.partition].counts.get("filtered", 0)
        if silent > filtered:
            yield Finding(
                Law.CONSERVATION,
                f"{silent:,} events of {tp.topic}[{tp.partition}] in the range took effect and have no output, and only "
                f"{filtered:,} were ever filtered there",
                (Witness(tp, tally.start, "the first event of the range"),),
            )
        elif silent > 0:
            yield (
                f"{tp.topic}[{tp.partition}]: {silent:,} events of the range have no output; whether they were filtered, as "
                f"{filtered:,} were in all, is the whole history's to say"
            )


def _beyond_positions(history: History) -> Iterator[Remark]:
    """What speaks of events that no position has come to: it stands alone, or somebody made it up."""
    spool, plan = history.spool, history.plan
    for tp in sorted(spool.partitions() - history.survey.sources.keys()):
        if history.closing.next(tp) >= 0:
            continue  # it began while all was read
        alone = [
            Witness(history.wheres[int(row["where"])], int(row["at"]), what)
            for number in spool.blocks(tp)
            for kind, what in (("outputs", "output"), ("letters", "dead letter"), ("timers", "timer"))
            for row in spool.take(kind, tp, number)
        ]
        these = f"{len(alone):,} outputs and dead letters are of events of {tp.topic}[{tp.partition}], "
        if alone and tp.topic in plan.sources:
            yield Finding(Law.ATOMIC, f"{these}of which no position says that it was ever read", tuple(alone[:3]))
        elif alone:
            yield Gap(tp, 0, 0, f"{these}which {plan.app} does not read now", len(alone))


def _strangers(history: History) -> Iterator[Remark]:
    """Records in the sinks that are no outputs with lineage."""
    app, bare = history.plan.app, sum(history.bare.values())
    for topic, n in sorted(history.strangers.items()):
        these = f"{n:,} records in {topic} carry no lineage"
        if bare > 0 or topic not in history.plan.sinks:
            yield these
            continue
        # All that the pipeline wrote does: its positions count it.
        witnesses = tuple(witness for witness in history.stranger_witnesses if witness.tp.topic == topic)
        yield Finding(
            Law.CONSERVATION,
            f"{these} of {app}, and all of its outputs do: another program writes to its sink",
            witnesses,
        )
    for tp in history.survey.outputs if bare > 0 else ():
        yield Gap(
            tp, history.survey.starts[tp], history.survey.ends[tp], f"{bare:,} outputs of {app} were written without lineage "
            "(`lineage = false`, or by an older version), so that outputs cannot be told from others",
        )  # fmt: skip
    if history.sent:
        yield f"{history.sent:,} outputs were sent without an event"


def _gone(history: History) -> Iterator[Gap]:
    """Logs from which somebody else than semel deleted: what stood there, nobody can say."""
    survey = history.survey
    whole = "outputs were deleted from it, so that nobody can say whether all of them were there"
    for tp in survey.outputs if sum(history.bare.values()) <= 0 else ():
        if not history.untouched(tp):
            why = "compaction removes outputs from it" if tp.topic in survey.compacted else whole
            yield Gap(tp, 0, survey.starts[tp], why)
    for tp in survey.letters:
        if not history.untouched(tp):
            yield Gap(tp, 0, survey.starts[tp], "dead letters were deleted from it")
    for tp in survey.marks:
        # The later positions: workers may have trimmed while all was read.
        position = history.closing.positions.get(tp.partition)
        if position is not None and 0 <= position.trimmed < survey.starts[tp]:
            yield Gap(
                tp, position.trimmed, survey.starts[tp], "these marks were deleted, and not by semel, which deletes expired "
                "ones only: whether redeliveries of their events took effect again is known of those with outputs only",
            )  # fmt: skip


def _spread(history: History) -> Iterator[Remark]:
    """Where a topic that outputs go to grew: whether the outputs of a key stayed in one partition."""
    survey, app, outputs = history.survey, history.plan.app, history.outputs
    sinks = [sink for position in survey.cut.positions.values() for sink in position.sinks.items()]
    for name in sorted({name for name, _ in sinks} & survey.topics.keys()):
        of_name = [sink for other, sink in sinks if other == name and sink.id == survey.topics[name].id]
        if not of_name:
            continue
        # Each task goes by its own number of partitions; `least` is below it where the keys of one have moved.
        most = max(sink.partitions for sink in of_name)
        least = min((sink.least for sink in of_name if sink.least < sink.partitions), default=most)
        tps = partitions(survey.topics, name)
        if least < most:
            yield Gap(
                TP(name, 0), 0, 0, f"outputs of {app} went over {least} of its partitions first and {most} later: keys "
                "moved, and nobody can say in which order a reader meets the outputs of one",
            )  # fmt: skip
        beyond = [tp for tp in tps if tp.partition >= most and outputs[tp]]
        if beyond:
            yield Finding(
                Law.ORDER,
                f"{sum(outputs[tp] for tp in beyond):,} outputs are in partitions of {name} that {app} does not use: it grew "
                f"from {most} to {len(tps)} partitions, and the outputs of one key are in several",
                tuple(Witness(tp, survey.starts[tp], "the first record of the partition") for tp in beyond[:3]),
            )
        elif len(tps) > most:
            yield f"{name} has {len(tps)} partitions; outputs go to the first {most}, as before"
