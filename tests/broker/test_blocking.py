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
from tests.broker.logs import Message

pytestmark = pytest.mark.broker

HOLD_S = 0.5
EVENTS = 30


def message(n: int, hold_s: float) -> Message:
    account = f"account-{n % 8}"
    return Message(account.encode(), json.dumps({"id": f"{n}", "account": account, "hold_s": hold_s}).encode())


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
    settled = [json.loads(line.value or b"")["id"] for line in await logs.read(ledger.bootstrap, ledger.sink)]
    assert sorted(settled, key=int) == [str(n) for n in range(EVENTS)]
    assert "generation 2" not in worker.log
    assert await worker.stopped() == 0


async def test_an_event_that_blocks_past_the_session_ends_in_the_dead_letters_and_the_others_go_on(
    kafka: LocalKafka, make_ledger: MakeLedger, tmp_path: Path
) -> None:
    ledger = await make_ledger(kafka, target="blocker:pipeline", partitions=2)
    runs = tmp_path / "runs"
    worker = ledger.worker(SEMEL_SESSION_TIMEOUT_MS="2000", RUNS=str(runs)).start()
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
    settled = [json.loads(line.value or b"")["id"] for line in await logs.read(ledger.bootstrap, ledger.sink)]
    assert sorted(settled, key=int) == [str(n) for n in range(12) if n != 1]
    assert await worker.stopped() == 0
