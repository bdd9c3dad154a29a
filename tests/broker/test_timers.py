"""Outputs with a time on a real broker: workers die and partitions move while some are set, pending and due."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.ledger import Ledger
from tests.broker.logs import Message

pytestmark = pytest.mark.broker

SEED = 20261127
HOUR_MS = 3_600_000


async def reminded(ledger: Ledger) -> list[str]:
    """In the order of their timestamps, which is when each was due."""
    lines = await logs.read(ledger.bootstrap, f"{ledger.name}.reminders")
    return [json.loads(line.value or b"")["id"] for line in lines]


async def test_outputs_that_are_sent_later_are_sent_once_through_kills(
    kafka: LocalKafka, make_ledger: MakeLedger
) -> None:
    """A worker is killed three times, a second one comes and goes, and the disk is lost once. Each account has a reminder that is
    replaced and cancelled again and again; in the end half of them have one."""
    ledger, rng = await make_ledger(kafka, target="reminding:pipeline"), random.Random(SEED)
    wanted: list[str] = []
    messages: list[Message] = []
    for n in range(2_000):
        account, remind_ms, named = rng.randrange(40), rng.choice([-1, 0, 500, 2_000, 6_000]), False
        if n >= 1_960:
            account, remind_ms, named = n - 1_960, (500 if n % 2 else -2), True
        elif rng.random() < 0.4:
            remind_ms, named = rng.choice([HOUR_MS, HOUR_MS, -2]), True
        payment = {"id": f"e{n}", "account": f"account-{account}", "amount": 1, "remind_ms": remind_ms, "named": named}
        messages.append(Message(payment["account"].encode(), json.dumps(payment).encode(), ()))
        wanted += [f"e{n}"] if 0 <= remind_ms < HOUR_MS else []
    feeding = ledger.feed_beside(messages, per_s=400)
    worker = ledger.worker().start()
    await asyncio.sleep(rng.uniform(2.0, 3.0))
    worker.kill9()
    worker = worker.start()
    other = ledger.worker("w2", state="other").start()
    await feeding
    worker.kill9()
    # Another machine's disk: what is pending comes from the log.
    worker = ledger.worker("w1", state="anew", log="anew").start()
    await asyncio.sleep(rng.uniform(1.0, 2.0))
    assert await other.stopped() == 0
    await ledger.drained()
    # The last is due six seconds after the last payment.
    for _ in range(100):
        if len(await reminded(ledger)) >= len(wanted):
            break
        await asyncio.sleep(0.3)
    assert sorted(await reminded(ledger)) == sorted(wanted), f"seed {SEED}"
    assert await worker.metric("semel_timers_pending") == 0
    assert await worker.stopped() == 0
    code, said = await ledger.command("prove")
    assert code == 0, said
