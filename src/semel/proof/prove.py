"""Prove: from the topics of a pipeline to a `Proof`. The order of reading is what makes it sound while the pipeline runs.

Survey: positions first; what is judged lies below them. Then the ends of every log that the pipeline writes, open
transactions included. Read: the logs up to there; whatever was committed with those positions is in them. Then the
positions again: what was read must lie below these. Classify: the source, a stretch at a time. Check: the sums.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import aclosing
from pathlib import Path

from semel.plan import Plan
from semel.port import TP, Broker, Clock
from semel.proof.check import Checked, check
from semel.proof.classify import Classified, classify
from semel.proof.columns import Source
from semel.proof.logs import Logs, Recording
from semel.proof.proof import Findings, Law, Part, Progress, Proof, Witness
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
    logs, findings = Logs(broker, clock, recording, progress), Findings()
    with tempfile.TemporaryDirectory(prefix="semel-prove-") as folder:
        there = await survey(logs, plan, since_ms, until_ms, findings)
        logs.total = logs.done + there.offsets
        history = await read(there, logs, Spool(Path(folder), block=block), findings)
        logs.phase = "events"
        classified = {tp: await classify(history, tp, logs, findings) for tp in there.sources}
        checked = check(history, classified, findings)
    counts, notes = _counts(history, classified), list(checked.notes)
    if counts["unread"]:
        notes.append(
            f"{counts['unread']:,} events that led to nothing may have been compacted away before they were read"
        )
    if recording is None:
        del counts["unread"]
    named = [f._replace(witnesses=tuple([await _named(w, there, logs) for w in f.witnesses])) for f in findings.kept]
    return Proof(
        pipeline=plan.app,
        at_ms=int(clock.time() * 1000),
        since_ms=since_ms,
        until_ms=until_ms,
        findings=tuple(sorted(named, key=lambda f: list(Law).index(f.law))),
        found=dict(findings.counts),
        gaps=tuple(checked.gaps),
        notes=tuple(notes),
        counts=counts,
        parts=tuple(_part(tp, one) for tp, one in classified.items()),
        laws=_laws(there, checked, findings),
        ledger=checked.ledger,
        seconds=clock.monotonic() - started,
    )


def _part(tp: TP, one: Classified) -> Part:
    tally = one.tally
    return Part(
        tp, one.start, one.end, tally.records, tally.done + tally.unwitnessed, tally.duplicates, tally.letters,
        tally.outputs.total(),
    )  # fmt: skip


def _counts(history: History, classified: Mapping[TP, Classified]) -> dict[str, int]:
    """What was looked at, and the running counts of all tasks."""
    tallies = [one.tally for one in classified.values()]
    running: Counter[str] = Counter()
    for position in history.survey.cut.positions.values():
        running.update(position.counts)
    return {
        "records": sum(t.records for t in tallies),
        "took_effect": sum(t.done + t.unwitnessed for t in tallies),
        "outputs": sum(t.outputs.total() for t in tallies),
        "marks": history.marks.total(),
        "dead_letters": sum(t.letters for t in tallies),
        "duplicates": sum(t.duplicates for t in tallies),
        "positions": history.survey.cut.records,
        "without_lineage": history.strangers.total(),
        "unread": sum(t.unread for t in tallies),
        **{f"counted_{name}": n for name, n in running.items()},
    }


def _laws(there: Survey, checked: Checked, findings: Findings) -> tuple[Law, ...]:
    """Those that there were witnesses for."""
    unasked = {Law.FOLD}
    if not there.everything and Law.CONSERVATION not in findings.counts:
        unasked.add(Law.CONSERVATION)
    if there.plan.dedup is None and not checked.ledger:
        # Without marks, what became of a single event is the running counts' to say.
        unasked.add(Law.NO_LOSS)
    return tuple(law for law in Law if law not in unasked)


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
