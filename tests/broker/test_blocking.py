"""Handlers that block the event loop of a real worker."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.ledger import Ledger
from tests.broker.logs import Message

pytestmark = pytest.mark.broker

HOLD_S = 0.5
EVENTS = 30


def message(n: int, hold_s: float, *, once: bool = False) -> Message:
    account = f"account-{n % 8}"
    payment = {"id": f"{n}", "account": account, "hold_s": hold_s, "once": once}
    return Message(account.encode(), json.dumps(payment).encode())


async def settled(ledger: Ledger) -> list[str]:
    """The ids of all results, by their number."""
    lines = await logs.read(ledger.bootstrap, ledger.sink)
    return sorted((json.loads(line.value or b"")["id"] for line in lines), key=int)


async def test_a_handler_that_blocks_half_a_second_each_commits_steadily_and_runs_once(
    kafka: LocalKafka, make_ledger: MakeLedger, tmp_path: Path
) -> None:
    ledger = await make_ledger(kafka, target="blocker:pipeline")
    runs = tmp_path / "runs"
    await ledger.feed(message(n, HOLD_S) for n in range(EVENTS))
    worker = ledger.worker(SEMEL_SESSION_TIMEOUT_MS="6000", RUNS=str(runs)).start()
    began, seen = time.monotonic(), [0]
    while seen[-1] < EVENTS:
        assert time.monotonic() - began < 120, worker.log_end()
        await asyncio.sleep(0.25)
        done = await ledger.done()
        if done != seen[-1]:
            seen.append(done)
    # Never more than a few events between two commits.
    assert max(b - a for a, b in pairwise(seen)) <= 8, seen
    assert set(Counter(runs.read_text().split()).values()) == {1}
    assert await settled(ledger) == [str(n) for n in range(EVENTS)]
    assert "generation 2" not in worker.log
    assert await worker.stopped() == 0


async def test_an_event_that_blocks_past_the_session_ends_in_the_dead_letters_and_the_others_go_on(
    kafka: LocalKafka, make_ledger: MakeLedger, tmp_path: Path
) -> None:
    ledger = await make_ledger(kafka, target="blocker:pipeline", partitions=2)
    runs = tmp_path / "runs"
    worker = ledger.worker(SEMEL_SESSION_TIMEOUT_MS="2000", SEMEL_MAX_BLOCK_MS="0", RUNS=str(runs)).start()
    await worker.ready()
    slow = 3.5
    await ledger.feed([message(0, 0.0), message(1, slow), *(message(n, 0.0) for n in range(2, 12))])
    await worker.said(
        rf"agent \S+ at {ledger.source}\[\d\]@\d+ .* has been holding the event loop for .*blocker\.py:\d+ \(settle\)"
    )
    await ledger.drained()
    (letter,) = await logs.read(ledger.bootstrap, ledger.dead_letter_topic)
    assert json.loads(letter.value or b"")["hold_s"] == slow
    assert (letter.header("semel.reason"), letter.header("semel.attempts")) == ("failed", "2")
    assert "SessionLost" in letter.header("semel.error")
    assert runs.read_text().split().count("1") == 2
    assert await settled(ledger) == [str(n) for n in range(12) if n != 1]
    assert await worker.stopped() == 0


async def test_a_handler_that_blocks_for_several_sessions_keeps_its_partitions_and_runs_once(
    kafka: LocalKafka, make_ledger: MakeLedger, tmp_path: Path
) -> None:
    """Twice, while another worker would take what is given away."""
    ledger = await make_ledger(kafka, target="blocker:pipeline")
    runs, hold_s = tmp_path / "runs", 5.5
    settings = {"SEMEL_SESSION_TIMEOUT_MS": "2000", "RUNS": str(runs)}
    workers = [ledger.worker(name, **settings).start() for name in ("w1", "w2")]
    for worker in workers:
        await worker.ready()
    generations = [worker.log.count("generation ") for worker in workers]
    # Of one key, so that one worker has both; with others before, between and behind.
    blocking = (8, 24)
    await ledger.feed(message(n, 0.0) for n in range(8))
    for n in blocking:
        # No transaction is open when it begins, which it would outlive.
        await ledger.drained()
        await ledger.feed([message(n, hold_s)])
        await asyncio.sleep(1.0)
        await ledger.feed(message(behind, 0.0) for behind in range(n + 1, n + 16))
    await ledger.drained()
    assert await settled(ledger) == [str(n) for n in range(40)]
    done = Counter(runs.read_text().split())
    assert all(done[str(n)] == 1 for n in blocking), done
    assert sum("a thread sends the heartbeats of generation" in worker.log for worker in workers) == 1
    for worker, before in zip(workers, generations, strict=True):
        sent = worker.log.count("a thread sends the heartbeats of generation")
        assert worker.log.count("generation ") == before + sent, worker.log_end()
        assert "no longer knows us" not in worker.log and "is not committed" not in worker.log
        assert await worker.stopped() == 0


async def test_a_handler_that_blocks_past_max_block_loses_its_partitions_and_nothing_takes_effect_twice(
    kafka: LocalKafka, make_ledger: MakeLedger, tmp_path: Path
) -> None:
    ledger = await make_ledger(kafka, target="blocker:pipeline")
    runs = tmp_path / "runs"
    settings = {"SEMEL_SESSION_TIMEOUT_MS": "2000", "SEMEL_MAX_BLOCK_MS": "1500", "RUNS": str(runs)}
    workers = [ledger.worker(name, **settings).start() for name in ("w1", "w2")]
    for worker in workers:
        await worker.ready()
    await ledger.feed(message(n, 12.0 if n == 8 else 0.0, once=True) for n in range(40))
    # The other worker is done with all of it while the first one still sleeps.
    await ledger.until_done(40, within_s=10.0)
    await ledger.drained()
    assert Counter(runs.read_text().split())["8"] == 2
    assert sum("held for over max_block_ms" in worker.log for worker in workers) == 1
    for worker in workers:
        await worker.ready()
    await ledger.feed(message(n, 0.0) for n in range(40, 60))
    await ledger.drained()
    assert await settled(ledger) == [str(n) for n in range(60)]
    for worker in workers:
        assert await worker.stopped() == 0


async def test_a_worker_that_joins_while_handlers_block_for_several_sessions_throws_nobody_out(
    kafka: LocalKafka, make_ledger: MakeLedger, tmp_path: Path
) -> None:
    """The group waits for who is in the middle of an event; else each that comes back would throw the other out, for ever."""
    ledger = await make_ledger(kafka, target="blocker:pipeline")
    runs = tmp_path / "runs"
    settings = {"SEMEL_SESSION_TIMEOUT_MS": "2000", "RUNS": str(runs)}
    # Each event is tried twice, and a lost session is an attempt.
    first, second = (ledger.worker(name, **settings) for name in ("w1", "w2"))
    first.start()
    await first.ready()
    await ledger.feed(message(n, 4.5) for n in range(6))
    await first.said("a thread sends the heartbeats")
    second.start()
    await ledger.drained()
    assert await settled(ledger) == [str(n) for n in range(6)]
    # Once more each time that it outlived a transaction, which is twice at most.
    assert max(Counter(runs.read_text().split()).values()) <= 3
    assert second.log.count("has been holding the event loop") > 0
    for worker in (first, second):
        assert "no longer knows us" not in worker.log, worker.log_end()
        assert await worker.stopped() == 0
