"""What a run found, into its report: whether its faults bit, whether rows are what changelogs say, and the proof."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from semel import proof
from semel.chaos.events import NOT_JSON
from semel.chaos.fleet import TERM_S, Fleet
from semel.chaos.report import Proved, Report
from semel.chaos.tables import compare
from semel.chaos.timeline import conflict_remarks, void_reasons
from semel.dedup import Dedup
from semel.errors import SemelError
from semel.port import RpcError, RpcLost
from semel.proof.logs import Logs
from semel.runtime.clock import SystemClock
from semel.stages.agent.odd_code import ON_PURPOSE

# A worker that still joins is a session away from its partitions at most, and a restore.
TELL_EVERY_S = 2.0
TABLES_S = 30.0
ASK_EVERY_S = 0.2
# Deliveries of an event that was sent before, by how it came to that.
NO_ORIGINAL = (b"conflict", b"duplicate")
REDELIVERED = ("immediate", "late", "burst", "disordered", "resent")


async def judge(report: Report, on: Fleet, rule: Dedup | None) -> Report:
    """The report with its verdict. Ends the workers between the look at their tables and the proof; what keeps the run from
    its verdict is a finding.
    """
    counts = dict(on.load.counts)
    # What a rule lets pass its workers do not count.
    met = None if rule is None or rule.conflict == "pass" else on.observed.watch.counts()["conflicts"]
    redelivered = sum(counts.get(kind, 0) for kind in REDELIVERED)
    taken, became = on.compaction.taken, on.observed.watch.counts()
    report = replace(
        report,
        seconds=on.now(),
        events={
            "published": on.load.published,
            "redelivered": redelivered,
            **counts,
            "compacted": taken.gone,
            "unread": taken.unread,
            "accepted": became["out"] + became["filtered"],
            **({} if met is None else {"conflicts_met": met}),
        },
        remarks=() if met is None else conflict_remarks(on.load.published, counts.get("conflict", 0), met),
        bites=on.observed.bites(),
        mended=on.mended,
        void=void_reasons(
            on.timeline.entries,
            on.observed.bites(),
            starts=sum(worker.starts for worker in on.everyone),
            redelivered=redelivered,
            deduped=rule is not None,
            taken_in=became["in"],
            given_up=became["dead"],
        ),
    )
    with _as_finding(on, "the tables could not be read"):
        on.findings += await _compare(on)
    with _as_finding(on, "the dead letters could not be read"):
        given_up = await _given_up(on)
        on.findings += given_up.findings
        report = replace(report, events={**report.events, "given_up": given_up.originals})
    for worker in on.workers:
        worker.expected_end = True
        worker.send(signal.SIGTERM)
    for worker in on.workers:
        if await worker.ended(TERM_S) is None:
            on.findings.append(f"{worker.name} did not end within {TERM_S:g} s of SIGTERM after the run")
            await worker.kill9()
    with _as_finding(on, "there is no proof"):
        report = replace(report, proved=await _prove(on))
    return replace(report, findings=on.findings)


async def _compare(on: Fleet) -> list[str]:
    """Any worker answers for all, but the last one to come back may just be joining, and partitions move for that."""
    until = time.monotonic() + TABLES_S
    for worker in itertools.cycle(on.workers):
        try:
            return await compare(on.plan, on.broker, on.views, worker.url)
        except SemelError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(ASK_EVERY_S)
    raise AssertionError("a run has workers")


class GivenUp(NamedTuple):
    """Of the dead letters: what is wrong with them, as sentences, and how many are events that should have taken effect."""

    findings: list[str]
    originals: int


async def _given_up(on: Fleet) -> GivenUp:
    """Wrong is an event that odd code cost its last attempt: each had attempts left."""
    spent: list[str] = []
    originals = 0
    async for tp, record in Logs(on.broker, SystemClock()).records(on.plan.dead_letter_topic):
        headers = dict(record.headers)
        originals += record.value != NOT_JSON and headers.get("semel.reason") not in NO_ORIGINAL
        if ON_PURPOSE.encode() in (headers.get("semel.error") or b""):
            spent.append(f"{tp.topic}[{tp.partition}]@{record.offset} after {headers.get('semel.attempts')} attempts")
    wrong = f"a failed attempt is tried again: given up were {', '.join(spent[:5])}; {len(spent)} in all"
    return GivenUp([wrong] * bool(spent), originals)


async def _prove(on: Fleet) -> Proved:
    """RpcLost where no broker answers; SemelError where the topics cannot be understood."""
    told = time.monotonic()

    def tell(how_far: proof.Progress) -> None:
        nonlocal told
        if time.monotonic() > told + TELL_EVERY_S:
            told = time.monotonic()
            on.say(f"proof: {how_far.phase}, {how_far.done:,} of {how_far.total:,} records read")

    proven = await proof.prove(on.broker, on.plan, SystemClock(), progress=tell, recording=on.compaction.archive)
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
def _as_finding(on: Fleet, what: str) -> Generator[None]:
    """What keeps the run from its verdict is said with everything else."""
    try:
        yield
    except (SemelError, RpcError, RpcLost) as error:
        on.findings.append(f"{what}: {error}")
