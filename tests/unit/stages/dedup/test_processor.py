"""What a runner makes of late redeliveries, of bad clocks that come three times, and of tasks that a handler left behind."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import orjson
import pytest

from semel import Dedup
from semel.errors import OutsideEvent
from tests.unit.harness import APP, Settlement, World, committed_values, dead_letters, folded, payments_pipeline

HOUR = 3_600_000
A1 = "a1"


def ids(world: World) -> list[str]:
    return [orjson.loads(r.value or b"")["id"] for log in world.cluster.committed("settlements") for r in log]


def dead(world: World) -> list[str]:
    return [reason for _, reason in dead_letters([r for log in world.cluster.committed(f"{APP}.dlq") for r in log])]


def count(world: World, name: str) -> int:
    return world.committed_positions()[world.place(A1).partition].counts[name]


@pytest.mark.parametrize("late", ["quarantine", "drop", "pass"])
async def test_the_redelivery_of_an_event_that_was_nearly_late_is_a_duplicate_and_not_late(
    world: World, late: Any
) -> None:
    world.pipeline = payments_pipeline(world.work, dedup=Dedup("id", window=timedelta(hours=1), late=late))
    start = int(world.clock.time() * 1000) - 10 * HOUR
    world.pay(A1, 1, id="first", at_ms=start)
    nearly = world.pay(A1, 1, id="nearly", at_ms=start - HOUR)
    world.pay(A1, 1, id="tick", at_ms=start + 1)
    world.write(nearly, A1, at_ms=start - HOUR)
    world.write({**nearly, "amount": 7}, A1, at_ms=start - HOUR)
    world.start()
    await world.drained()
    assert ids(world) == ["first", "nearly", "tick"]
    assert (count(world, "duplicates"), count(world, "conflicts")) == (1, 1)
    assert dead(world) == ["conflict"]


async def test_one_event_with_a_bad_clock_three_times_is_no_agreement_of_three(world: World) -> None:
    world.pipeline = payments_pipeline(world.work, dedup=Dedup("id", window=timedelta(hours=1)))
    now = int(world.clock.time() * 1000)
    start = now - 100 * HOUR
    world.pay(A1, 1, id="first", at_ms=start)
    bad = world.pay(A1, 1, id="bad clock", at_ms=now)
    for _ in range(5):
        world.write(bad, A1, at_ms=now)
    world.pay(A1, 1, id="second", at_ms=start + 1)
    world.start()
    await world.drained()
    # Were stream time at the bad clock, the second one would be late.
    assert ids(world) == ["first", "bad clock", "second"]
    assert count(world, "duplicates") == 5
    assert dead(world) == []


async def test_a_task_that_a_handler_leaves_behind_writes_into_no_other_event(world: World) -> None:
    refused: list[str] = []
    left: list[asyncio.Task[None]] = []

    def make(tables: Any) -> Any:
        balances, _ = tables

        async def behind(account: str) -> None:
            for _ in range(50):
                await asyncio.sleep(0.0005)
                try:
                    balances[account] += 1_000_000
                except OutsideEvent as exc:
                    refused.append(str(exc))
                    return

        async def settle(payments: Any) -> Any:
            async for payment in payments:
                if len(left) < 5:
                    left.append(asyncio.create_task(behind(payment.account)))
                balances[payment.account] += payment.amount
                # The next event is in hand when the tasks wake up.
                if payment.id.startswith("slow"):
                    await asyncio.sleep(0.1)

        return settle

    world.pipeline = payments_pipeline(world.work, make=make)
    for n in range(5):
        world.pay(A1, 1, id=f"quick-{n}")
    for n in range(5):
        world.pay(A1, 1, id=f"slow-{n}")
    world.start()
    await world.drained()
    await asyncio.gather(*left)
    assert len(refused) == 5
    assert all("await such tasks before the event ends" in why for why in refused)
    rows = folded(committed_values(world.cluster, f"{APP}-balances-changelog", world.place(A1).partition))
    assert rows == {A1.encode(): b"10"}


async def test_a_batch_that_is_looked_at_again_changes_nothing_for_the_one_in_hand(world: World) -> None:
    kept: list[Any] = []

    def make(tables: Any) -> Any:
        async def settle(payments: Any) -> Any:
            async for batch in payments.batches():
                kept.append(batch)
                for payment in batch:
                    if len(kept) > 1:
                        assert [p.id for p in kept[0]] == ["p1"]
                    yield Settlement(payment.id, payment.account, payment.amount)

        return settle

    world.pipeline = payments_pipeline(world.work, make=make)
    for n in range(4):
        world.pay(A1 if n % 2 else "b1", 1)
        await asyncio.sleep(0)
        if n == 0:
            world.start()
            await world.drained()
    await world.drained()
    assert len(kept) > 1
    for log in world.cluster.committed("settlements"):
        for record in log:
            assert orjson.loads(record.value or b"")["account"] == (record.key or b"").decode()
