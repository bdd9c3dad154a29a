"""Handlers that wait, a hundred at a time, and some that hang, on a real broker: through kill -9 (protocol rules 1 and 3)."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest

from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.logs import Message

pytestmark = pytest.mark.broker

SEED = 20261128


@pytest.mark.parametrize("target", ["side_by_side", "in_threads"])
async def test_a_thousand_handlers_that_wait_overlap_and_keep_the_order_of_each_key_through_kills(
    kafka: LocalKafka, make_ledger: MakeLedger, target: str
) -> None:
    """Two workers die with their hundred events in hand; then the last one has a thousand to itself."""
    ledger, rng = await make_ledger(kafka, target=f"waiting:{target}"), random.Random(SEED)
    fed: dict[str, list[str]] = defaultdict(list)

    def payments(count: int) -> list[Message]:
        messages: list[Message] = []
        for _ in range(count):
            key, id = f"account-{rng.randrange(250)}", f"e{sum(map(len, fed.values()))}"
            fed[key].append(id)
            messages.append(Message(key.encode(), json.dumps({"id": id, "account": key, "amount": 1}).encode(), ()))
        return messages

    feeding = ledger.feed_beside(payments(2_000), per_s=800)
    worker = ledger.worker().start()
    for _ in range(2):
        await asyncio.sleep(rng.uniform(1.0, 2.0))
        worker.kill9()
        worker = worker.start()
    await feeding
    await ledger.drained()
    await ledger.feed(payments(1_000))
    await ledger.drained()
    settled: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in await logs.read(ledger.bootstrap, ledger.sink):
        settled[(line.key or b"").decode()].append(json.loads(line.value or b""))
    assert {key: [s["id"] for s in of_key] for key, of_key in settled.items()} == fed, f"seed {SEED}"
    assert all([s["balance"] for s in of_key] == list(range(1, len(of_key) + 1)) for of_key in settled.values())
    for of_key in settled.values():
        spans = sorted((s["began"], s["ended"]) for s in of_key)
        assert all(ended <= began for (_, ended), (began, _) in pairwise(spans)), "side by side"
    assert _most_at_a_time([s for of_key in settled.values() for s in of_key]) > 50
    assert not await logs.read(ledger.bootstrap, ledger.dead_letter_topic)
    assert await worker.stopped() == 0


async def test_handlers_that_hang_time_out_and_all_else_takes_effect_once_through_a_kill(
    kafka: LocalKafka, make_ledger: MakeLedger
) -> None:
    ledger, fed = await make_ledger(kafka, target="waiting:timed"), defaultdict[str, list[str]](list)
    messages: list[Message] = []
    for n in range(400):
        key = f"account-{n % 40}"
        kind = "poison" if n in (25, 225) else "once" if n % 20 == 7 else "e"
        fed[key].append(f"{kind}-{n}")
        payment = {"id": fed[key][-1], "account": key, "amount": 1}
        messages.append(Message(key.encode(), json.dumps(payment).encode(), ()))
    worker = ledger.worker().start()
    await worker.ready()
    await ledger.feed(messages)
    # In the middle of the first that hang.
    await asyncio.sleep(0.7)
    worker.kill9()
    worker = worker.start()
    await ledger.drained()
    settled = defaultdict[str, list[str]](list)
    for line in await logs.read(ledger.bootstrap, ledger.sink):
        settled[(line.key or b"").decode()].append(json.loads(line.value or b"")["id"])
    assert settled == {key: [id for id in ids if not id.startswith("poison")] for key, ids in fed.items()}
    letters = await logs.read(ledger.bootstrap, ledger.dead_letter_topic)
    assert {json.loads(letter.value or b"")["id"] for letter in letters} == {"poison-25", "poison-225"}
    for letter in letters:
        assert letter.header("semel.reason") == "failed"
        assert "HandlerTimeout" in letter.header("semel.error") and "waiting.py" in letter.header("semel.error")
    assert await worker.metric("semel_agent_timed_out_total") >= 20
    assert await worker.stopped() == 0


def _most_at_a_time(settled: list[dict[str, Any]]) -> int:
    moments = sorted([(s["began"], 1) for s in settled] + [(s["ended"], -1) for s in settled])
    most = now = 0
    for _, step in moments:
        now += step
        most = max(most, now)
    return most
