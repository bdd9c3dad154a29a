"""Parked events on a real broker: workers die at any moment while events fail, and order and effects are what they were."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict

import pytest

from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.logs import Message

pytestmark = pytest.mark.broker

SEED = 20261127


async def test_events_that_fail_hold_up_neither_other_keys_nor_their_own_order_through_kills(
    kafka: LocalKafka, make_ledger: MakeLedger
) -> None:
    """Every twentieth event fails once or for good; a worker is killed four times while they wait."""
    picky, rng = await make_ledger(kafka, target="picky:pipeline"), random.Random(SEED)
    fed: dict[str, list[str]] = defaultdict(list)
    dead: list[str] = []
    messages: list[Message] = []
    for n in range(3_000):
        key, do = f"account-{rng.randrange(40)}", rng.choice(["fail once", "fail"]) if n % 20 == 0 else "settle"
        id = f"e{n}"
        value = json.dumps({"id": id, "account": key, "amount": 1, "do": do}).encode()
        messages.append(Message(key.encode(), value, ()))
        (dead if do == "fail" else fed[key]).append(id)
    feeding = picky.feed_beside(messages, per_s=500)
    worker = picky.worker().start()
    for _ in range(4):
        await asyncio.sleep(rng.uniform(1.0, 2.0))
        worker.kill9()
        worker = worker.start()
    await feeding
    await picky.drained()
    settled: dict[str, list[str]] = defaultdict(list)
    for line in await logs.read(picky.bootstrap, picky.sink):
        settled[(line.key or b"").decode()].append(json.loads(line.value or b"")["id"])
    assert settled == fed, f"seed {SEED}"
    letters = await logs.read(picky.bootstrap, picky.dead_letter_topic)
    assert sorted(json.loads(letter.value or b"")["id"] for letter in letters) == sorted(dead)
    assert await worker.stopped() == 0
