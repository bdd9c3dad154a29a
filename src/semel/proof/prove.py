"""Prove: from the topics of a pipeline to a `Proof`. The order of reading is what makes it sound while the pipeline runs.

Survey: positions first; what is judged lies below them. Then the ends of every log that the pipeline writes, open
transactions included. Read: the logs up to there; whatever was committed with those positions is in them. Then the
positions again: what was read must lie below these. Classify: the source, a stretch at a time. Check: the sums.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from semel.plan import Plan
from semel.port import Broker, Clock
from semel.proof.check import check
from semel.proof.classify import classify
from semel.proof.columns import Source
from semel.proof.logs import Logs, Recording
from semel.proof.proof import Law, Part, Progress, Proof, Remarks, Witness
from semel.proof.read import History, read
from semel.proof.spool import BLOCK, Spool
from semel.proof.survey import Survey, survey


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
    started = clock.monotonic()
    logs, remarks = Logs(broker, clock, recording, progress), Remarks()
    with tempfile.TemporaryDirectory(prefix="semel-prove-") as folder:
        there = await survey(logs, plan, since_ms, until_ms, remarks)
        written = sum(end - there.starts[tp] for tp, end in there.ends.items())
        logs.total = logs.done + written + sum(judged.end - judged.start for judged in there.sources.values())
        history = await read(there, logs, Spool(Path(folder), block=block), remarks)
        logs.phase = "events"
        tallies = {tp: await classify(history, tp, logs, remarks) for tp in there.sources}
        ledger = check(history, tallies, remarks)
    parts = tuple(
        Part(tp, t.start, t.end, t.records, t.took_effect + t.unwitnessed, t.duplicates, t.letters, t.outputs.total())
        for tp, t in tallies.items()
    )
    counts = _counts(history, parts)
    if recording is not None:
        counts["unread"] = unread = sum(t.unread for t in tallies.values())
        if unread:
            remarks.add([f"{unread:,} events that led to nothing may have been compacted away before they were read"])
    named = [f._replace(witnesses=tuple([await _named(w, there, logs) for w in f.witnesses])) for f in remarks.findings]
    return Proof(
        pipeline=plan.app,
        at_ms=int(clock.time() * 1000),
        since_ms=since_ms,
        until_ms=until_ms,
        findings=tuple(sorted(named, key=lambda f: list(Law).index(f.law))),
        by_law=dict(remarks.counts),
        gaps=tuple(remarks.gaps),
        notes=tuple(remarks.notes),
        counts=counts,
        parts=parts,
        laws=tuple(law for law in Law if law not in _unasked(there, remarks, ledger=ledger)),
        ledger=ledger,
        seconds=clock.monotonic() - started,
    )


def _counts(history: History, parts: Sequence[Part]) -> dict[str, int]:
    """What was looked at, and the running counts of all tasks."""
    cut = history.survey.cut
    running: Counter[str] = Counter()
    parked = timers = sent = 0
    for position in cut.positions.values():
        running.update(position.counts)
        parked += position.parked
        timers += position.timers
        sent += sum(position.sent_later.values())
    return {
        "records": sum(part.records for part in parts),
        "took_effect": sum(part.took_effect for part in parts),
        "outputs": sum(part.outputs for part in parts),
        "marks": history.marks,
        "dead_letters": sum(part.dead_letters for part in parts),
        "duplicates": sum(part.duplicates for part in parts),
        "positions": cut.records,
        "without_lineage": history.strangers.total(),
        "parked": parked,
        "timers": timers,
        "counted_sent_at_time": sent,
        **{f"counted_{name}": n for name, n in running.items()},
    }


def _unasked(there: Survey, remarks: Remarks, *, ledger: bool) -> set[Law]:
    """Laws that there were no witnesses for."""
    unasked = {Law.FOLD}
    if not there.everything and Law.CONSERVATION not in remarks.counts:
        unasked.add(Law.CONSERVATION)
    if there.plan.dedup is None and not ledger:
        # Without marks, what became of a single event is the running counts' to say.
        unasked.add(Law.NO_LOSS)
    return unasked


async def _named(witness: Witness, there: Survey, logs: Logs) -> Witness:
    """Reads the event again that a witness points at, for its id and key."""
    tp, at, dedup = witness.tp, witness.offset, there.plan.dedup
    topic = there.plan.sources.get(tp.topic)
    if topic is None or at < there.starts.get(tp, 0):
        return witness
    end = (await logs.ends([tp]))[tp]
    async with aclosing(logs.read(tp, at, min(end, at + 1))) as pieces:
        records = [record async for piece in pieces for record in piece.records if record.offset == at]
    for record in records:
        id = None if dedup is None else Source(topic, dedup).id_text(record)
        key = None if record.key is None else record.key.decode(errors="backslashreplace")
        return witness._replace(id=id, key=key)
    return witness
