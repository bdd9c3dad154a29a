"""What a run found, into its report: whether its faults bit, whether rows are what changelogs say, and the proof."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from semel.chaos.events import NOT_JSON
from semel.chaos.fleet import TERM_S, Fleet
from semel.chaos.report import Report
from semel.chaos.tables import compare
from semel.chaos.timeline import Entry
from semel.dedup import Dedup
from semel.errors import SemelError
from semel.port import RpcError, RpcLost
from semel.proof import Progress, Proof, prove
from semel.proof.logs import Logs
from semel.runtime.clock import SystemClock
from semel.stages.agent.handler_faults import DOWN_ON_PURPOSE, ON_PURPOSE
from semel.state.positions import accepted

T = TypeVar("T")

# A worker that still joins is a session away from its partitions at most, and a restore.
TELL_EVERY_S = 2.0
TABLES_S = 30.0
ASK_EVERY_S = 0.2
# Deliveries of an event that was sent before, by how it came to that.
NO_ORIGINAL = (b"conflict", b"duplicate")
REDELIVERED = ("immediate", "late", "burst", "disordered", "resent")
# So many events have twenty conflicts among them, nearly always some.
ENOUGH = 2_000


async def judge(report: Report, on: Fleet, rule: Dedup | None) -> Report:
    """The report with its verdict. Ends the workers between the look at their tables and the proof; what keeps the run from
    its verdict is a finding.
    """
    seconds, sent, became, engine = on.now(), on.load.counts, on.observed.counts(), on.observed.engine()
    redelivered = sum(sent[kind] for kind in REDELIVERED)
    void = void_reasons(
        report.timeline.entries,
        engine,
        starts=on.starts,
        redelivered=redelivered,
        deduped=rule is not None,
        taken_in=became["in"],
        given_up=became["dead"],
    )
    # What a rule lets pass its workers do not count.
    met = None if rule is None or rule.conflict == "pass" else became["conflicts"]
    differ = await _tried(on, "the tables could not be read", lambda: _compare(on))
    given_up = await _tried(on, "the dead letters could not be read", lambda: _given_up(on))
    on.findings += [*(differ or ()), *(given_up[0] if given_up is not None else ())]
    for worker, code in zip(on.workers, await asyncio.gather(*(w.term(TERM_S) for w in on.workers)), strict=True):
        on.ended_asked(worker, code, "after the run")
    proof = await _tried(on, "there is no proof", lambda: _prove(on))
    return replace(
        report,
        seconds=seconds,
        events={
            "published": on.load.published,
            "redelivered": redelivered,
            **sent,
            "compacted": on.compaction.taken.gone,
            "unread": on.compaction.taken.unread,
            "accepted": accepted(became),
            **({} if met is None else {"conflicts_met": met}),
            **({} if given_up is None else {"given_up": given_up[1]}),
        },
        remarks=() if met is None else conflict_remarks(on.load.published, sent["conflict"], met),
        engine=engine,
        mended=on.mended,
        void=void,
        findings=on.findings,
        proof=proof,
    )


async def _tried(on: Fleet, otherwise: str, step: Callable[[], Awaitable[T]]) -> T | None:
    """What keeps the run from its verdict is said with everything else."""
    try:
        return await step()
    except (SemelError, RpcError, RpcLost) as error:
        on.findings.append(f"{otherwise}: {error}")
        return None


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


async def _given_up(on: Fleet) -> tuple[list[str], int]:
    """Of the dead letters: what is wrong with them, as sentences, and how many are events that should have taken effect.

    Wrong is an event that odd code cost its last attempt: each had attempts left. One whose dependency was down has taken
    effect when it was replayed.
    """
    spent: list[str] = []
    originals = 0
    async for tp, record in Logs(on.broker, SystemClock()).records(on.plan.dead_letter_topic):
        headers = dict(record.headers)
        error = headers.get("semel.error") or b""
        was_down = DOWN_ON_PURPOSE.encode() in error
        originals += record.value != NOT_JSON and headers.get("semel.reason") not in NO_ORIGINAL and not was_down
        if ON_PURPOSE.encode() in error:
            spent.append(f"{tp.topic}[{tp.partition}]@{record.offset} after {headers.get('semel.attempts')} attempts")
    wrong = f"a failed attempt is tried again: given up were {', '.join(spent[:5])}; {len(spent)} in all"
    return [wrong] if spent else [], originals


async def _prove(on: Fleet) -> Proof:
    """RpcLost where no broker answers; SemelError where the topics cannot be understood."""
    told = time.monotonic()

    def tell(how_far: Progress) -> None:
        nonlocal told
        if time.monotonic() > told + TELL_EVERY_S:
            told = time.monotonic()
            on.say(f"proof: {how_far.phase}, {how_far.done:,} of {how_far.total:,} records read")

    return await prove(on.broker, on.plan, SystemClock(), progress=tell, recording=on.compaction.archive)


# -- what a run does not show


def conflict_remarks(published: int, sent: int, met: int) -> tuple[str, ...]:
    """What a run does not show of conflicts, as sentences. For a dedup rule that does not let them pass."""
    if met and sent:
        return ()
    if sent:
        why = (
            f"none of {sent:,} records sent with another payload under a known id was met as a conflict: look at what "
            "Dedup(compare=) compares, and at the dead letters"
        )
    elif published >= ENOUGH:
        why = (
            "no conflict could be sent, since nothing of these events can be altered so that the dedup rule sees one: give "
            "events that can have one, by chaos_events(rng) in the pipeline's module, or --input"
        )
    else:
        why = f"no conflict was sent among {published:,} records; run it longer"
    return (f"this run says nothing of conflicts: {why}",)


def void_reasons(
    entries: Sequence[Entry],
    engine: Mapping[str, int],
    *,
    starts: int,
    redelivered: int,
    deduped: bool,
    taken_in: int = 0,
    given_up: int = 0,
) -> list[str]:
    """Why the run says nothing of the pipeline, whatever the proof says; empty where it does.

    `starts`: how many workers were started; each of them had one assignment without any fault. `given_up`: how many of the
    records `taken_in` became dead letters.
    """
    felt = engine["assignments"] > starts or any(engine[n] for n in ("aborts", "unknown", "fences", "recoveries"))
    checks = [
        ("no fault took place", not entries),
        (f"none of the {len(entries)} faults met anything at work", entries and not any(e.bit for e in entries)),
        ("no rebalance, abort, fence or restart was seen", not felt and not any(e.bit and e.seen for e in entries)),
        (f"none of {redelivered:,} redelivered records was met as a duplicate",
         deduped and redelivered and not engine["duplicates"]),
        ("no record was redelivered", deduped and not redelivered),
    ]  # fmt: skip
    reasons = [f"{reason}; run it longer, or with more kinds of faults" for reason, holds in checks if holds]
    if given_up * 2 > taken_in:
        reasons.append(
            f"{given_up:,} of {taken_in:,} records became dead letters, so that hardly any took effect; give events that this "
            "pipeline takes, by --key, chaos_events(rng) in its module, or --input"
        )
    return reasons
