"""What a run found, into its report: whether its faults bit, whether rows are what changelogs say, and the proof."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from semel import proof
from semel.chaos.archive import Archive
from semel.chaos.fleet import TERM_S, Fleet
from semel.chaos.report import Proved, Report
from semel.chaos.subject import Subject
from semel.chaos.tables import compare
from semel.chaos.timeline import void_reasons
from semel.errors import SemelError
from semel.kafka import KafkaBroker
from semel.local.views import Views
from semel.plan import Plan
from semel.port import RpcError, RpcLost
from semel.proof.logs import Logs
from semel.runtime.clock import SystemClock
from semel.stages.agent.odd_code import ON_PURPOSE

# A worker that still joins is a session away from its partitions at most, and a restore.
TELL_EVERY_S = 2.0
TABLES_S = 30.0
ASK_EVERY_S = 0.2
# Deliveries of an event that was sent before, by how it came to that.
REDELIVERED = ("immediate", "late", "burst", "disordered", "resent")


def conclude(report: Report, on: Fleet, *, deduped: bool) -> None:
    """The counts of the run, and whether it is void; before the proof, which may not come about."""
    counts = dict(on.load.counts)
    redelivered = sum(counts.get(kind, 0) for kind in REDELIVERED)
    taken, became = on.compaction.taken, on.observed.watch.counts()
    report.seconds = on.now()
    report.processed = on.observed.processed
    report.events = {
        "published": on.load.published, "redelivered": redelivered, **counts, "compacted": taken.gone,
        "unread": taken.unread,
    }  # fmt: skip
    report.bites = on.observed.bites()
    report.mended = on.mended
    report.void = void_reasons(
        on.timeline.entries,
        report.bites,
        starts=sum(worker.starts for worker in on.everyone),
        redelivered=redelivered,
        deduped=deduped,
        taken_in=became["in"],
        given_up=became["dead"],
    )


async def judge(
    report: Report,
    on: Fleet,
    subject: Subject,
    broker: KafkaBroker,
    archive: Archive,
    views: Views,
    say: Callable[[str], None],
) -> None:
    """Ends the workers between the look at their tables and the proof. What keeps the run from its verdict is a finding."""
    with _as_finding(report, "the tables could not be read"):
        report.findings += await _compare(on, subject.plan, broker, views)
    with _as_finding(report, "the dead letters could not be read"):
        report.findings += await _given_up(on.plan, broker)
    for worker in on.workers:
        worker.expected_end = True
        worker.send(signal.SIGTERM)
    for worker in on.workers:
        if await worker.ended(TERM_S) is None:
            report.findings.append(f"{worker.name} did not end within {TERM_S:g} s of SIGTERM after the run")
            await worker.kill9()
    with _as_finding(report, "there is no proof"):
        report.proved = await _prove(broker, subject.plan, archive, say)


async def _compare(on: Fleet, plan: Plan, broker: KafkaBroker, views: Views) -> list[str]:
    """Any worker answers for all, but the last one to come back may just be joining, and partitions move for that."""
    until = time.monotonic() + TABLES_S
    for worker in itertools.cycle(on.workers):
        try:
            return await compare(plan, broker, views, worker.url)
        except SemelError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(ASK_EVERY_S)
    raise AssertionError("a run has workers")


async def _given_up(plan: Plan, broker: KafkaBroker) -> list[str]:
    """Events that odd code cost their last attempt, as a sentence: each had attempts left."""
    spent: list[str] = []
    async for tp, record in Logs(broker, SystemClock()).records(plan.dead_letter_topic):
        headers = dict(record.headers)
        if ON_PURPOSE.encode() in (headers.get("semel.error") or b""):
            spent.append(f"{tp.topic}[{tp.partition}]@{record.offset} after {headers.get('semel.attempts')} attempts")
    return [f"a failed attempt is tried again: given up were {', '.join(spent[:5])}; {len(spent)} in all"] * bool(spent)


async def _prove(
    broker: KafkaBroker, plan: Plan, recording: proof.Recording, progress: Callable[[str], None]
) -> Proved:
    """`recording`: what the run kept of its input. RpcLost where no broker answers; SemelError where the topics cannot be
    understood.
    """
    told = time.monotonic()

    def tell(how_far: proof.Progress) -> None:
        nonlocal told
        if time.monotonic() > told + TELL_EVERY_S:
            told = time.monotonic()
            progress(f"proof: {how_far.phase}, {how_far.done:,} of {how_far.total:,} records read")

    proven = await proof.prove(broker, plan, SystemClock(), progress=tell, recording=recording)
    document = proven.to_json()
    findings = tuple(
        f"{finding['law']}: {finding['sentence']}"
        + "".join(f"\n  {w['topic']}[{w['partition']}]@{w['offset']}: {w['what']}" for w in finding["witnesses"])
        for finding in document["findings"]
    )
    lines = proven.text().splitlines()
    summary = (lines[0], *(line.strip() for line in lines if line.startswith("  note:")))
    return Proved(proven.verdict.value, findings, summary, document, proof.html(proven))


@contextmanager
def _as_finding(report: Report, what: str) -> Generator[None]:
    """What keeps the run from its verdict is said with everything else."""
    try:
        yield
    except (SemelError, RpcError, RpcLost) as error:
        report.findings.append(f"{what}: {error}")
