"""Prove: from the topics of a pipeline to a `Proof`. The order of reading is what makes it sound while the pipeline runs.

Positions first: what is judged lies below them. Then the ends of every log that the pipeline writes, open transactions
included, and the logs up to there: whatever was committed with those positions is in them. Then the positions again: what
was read must lie below these. At last the source, a stretch at a time.
"""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

from semel.plan import Plan
from semel.port import TP, Broker, Clock, Record
from semel.proof.checks import Checked, check
from semel.proof.classify import History, Judged, classify
from semel.proof.columns import Source
from semel.proof.cut import NothingToProve
from semel.proof.findings import Finding, Findings, Law, Witness
from semel.proof.logs import Logs
from semel.proof.proof import Progress, Proof
from semel.proof.recording import Recording
from semel.proof.scan import read_written
from semel.proof.spool import BLOCK, Spool
from semel.proof.survey import Survey, survey

__all__ = ["NothingToProve", "prove"]


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
        spool = Spool(Path(folder), block=block)
        there = await survey(logs, plan, since_ms, until_ms, findings)
        logs.total = logs.done + there.offsets
        written = await read_written(there, logs, spool, findings)
        logs.phase = "positions"
        closing = copy.deepcopy(there.cut)
        await closing.read(logs, plan, there.position_tps, findings)
        logs.phase = "events"
        history = History(there, written, closing, spool)
        judged = {tp: await classify(history, tp, logs, findings) for tp in there.sources}
        checked = check(history, judged, findings)
    named = await _with_names(findings.kept, there, logs)
    return _proof(history, judged, checked, named, findings, clock, started, recorded=recording is not None)


async def _with_names(findings: Sequence[Finding], there: Survey, logs: Logs) -> list[Finding]:
    """Read the events again that witnesses point at, for their ids and keys."""
    return [
        finding._replace(witnesses=tuple([await _with_name(witness, there, logs) for witness in finding.witnesses]))
        for finding in findings
    ]


async def _with_name(witness: Witness, there: Survey, logs: Logs) -> Witness:
    topic, dedup = there.plan.sources.get(witness.tp.topic), there.plan.dedup
    if topic is None or witness.offset < there.starts.get(witness.tp, 0):
        return witness
    record = await _record_at(logs, witness.tp, witness.offset)
    if record is None:
        return witness
    return witness._replace(
        id=Source(topic, dedup).id_text(record) if dedup is not None else None,
        key=None if record.key is None else record.key.decode(errors="backslashreplace"),
    )


async def _record_at(logs: Logs, tp: TP, offset: int) -> Record | None:
    end = (await logs.ends([tp]))[tp]
    async with aclosing(logs.read(tp, offset, min(end, offset + 1))) as pieces:
        async for piece in pieces:
            return next((r for r in piece.records if r.offset == offset), None)
    return None


def _proof(
    history: History,
    judged: Mapping[TP, Judged],
    checked: Checked,
    named: Sequence[Finding],
    findings: Findings,
    clock: Clock,
    started: float,
    *,
    recorded: bool,
) -> Proof:
    there, written, plan = history.there, history.written, history.plan
    parts = tuple(one.part for one in judged.values())
    unread = sum(one.tally.unread for one in judged.values())
    notes = list(checked.notes)
    counts: dict[str, int] = {
        "records": sum(p.records for p in parts),
        "took_effect": sum(p.took_effect for p in parts),
        "outputs": sum(p.outputs for p in parts),
        "marks": written.counts["marks"],
        "dead_letters": sum(p.dead_letters for p in parts),
        "duplicates": sum(p.duplicates for p in parts),
        "positions": there.cut.records,
        "without_lineage": sum(written.strangers.values()),
    }
    if recorded:
        counts["unread"] = unread
    if unread:
        notes.append(f"{unread:,} events that led to nothing may have been compacted away before they were read")
    counted: Counter[str] = Counter()
    for position in there.cut.positions.values():
        counted.update(position.counts)
    asked = [law for law in Law if law is not Law.FOLD]
    if not there.everything and Law.CONSERVATION not in findings.counts:
        asked.remove(Law.CONSERVATION)
    if plan.dedup is None:
        # Without marks, what became of a single event is the running counts' to say.
        asked = [law for law in asked if law is not Law.NO_LOSS or checked.ledger]
    return Proof(
        pipeline=plan.app,
        at_ms=int(clock.time() * 1000),
        since_ms=there.since_ms,
        until_ms=there.until_ms,
        findings=tuple(sorted(named, key=lambda f: list(Law).index(f.law))),
        found=dict(findings.counts),
        gaps=tuple(checked.gaps),
        notes=tuple(notes),
        counts={**counts, **{f"counted_{name}": n for name, n in counted.items()}},
        parts=parts,
        laws=tuple(asked),
        ledger=checked.ledger,
        seconds=clock.monotonic() - started,
    )
