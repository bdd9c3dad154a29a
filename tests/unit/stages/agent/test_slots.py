"""Slots: a handler that waits keeps only its partition, or with `concurrency` only its key, waiting (rules 1 and 3)."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from semel import Pipeline, Reject, Retry, Table, Topic
from semel.state.parked import CONFLICTS
from semel.testing import PipelineTester
from tests.unit.harness import APP, ATTEMPTS, Payment, World, payments_pipeline

STYLES = ["coroutine", "stream"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


def side_by_side(world: World, style: str = "coroutine", concurrency: int = 100, **declared: Any) -> None:
    world.pipeline = payments_pipeline(world.work, style=style, concurrency=concurrency, **declared)


def settled(world: World) -> list[str]:
    return [orjson.loads(r.value or b"")["id"] for log in world.cluster.committed("settlements") for r in log]


async def test_a_waiting_handler_of_one_partition_keeps_no_other_waiting(tmp_path: Path) -> None:
    world = World(tmp_path, partitions=10)
    world.pipeline = payments_pipeline(world.work, style="coroutine")
    worker = world.start()
    await world.until_running(worker)
    accounts = {world.place(f"a{n}").partition: f"a{n}" for n in range(200)}
    assert len(accounts) == 10
    for _ in range(10):
        for account in accounts.values():
            world.pay(account, 1, sleep_ms=100)
    began = world.clock.monotonic()
    await world.drained()
    assert world.clock.monotonic() - began < 2.5, "a hundred events of 100 ms, ten partitions"
    world.check()
    await world.close()


async def test_where_no_handler_waits_there_is_one_slot(world: World) -> None:
    worker = world.start()
    await world.until_running(worker)
    world.pay_many(200, trouble=False)
    await world.drained()
    assert len(worker.engine.runners) == 1
    world.check()


@pytest.mark.parametrize("style", STYLES)
async def test_a_thousand_handlers_of_100_ms_take_about_a_second_and_each_key_keeps_its_order(
    world: World, style: str
) -> None:
    side_by_side(world, style)
    worker = world.start()
    await world.until_running(worker)
    sent: dict[str, list[str]] = defaultdict(list)
    for n in range(1000):
        account = f"a{n % 250}"
        sent[account].append(world.pay(account, 1, sleep_ms=100)["id"])
    began = world.clock.monotonic()
    await world.until(lambda: len(world.work.handled) == 1000)
    assert world.clock.monotonic() - began < 2.5
    await world.drained()
    assert set(Counter(world.work.handled).values()) == {1}
    handled: dict[str, list[str]] = defaultdict(list)
    account_of = {id: account for account, ids in sent.items() for id in ids}
    for id in world.work.handled:
        handled[account_of[id]].append(id)
    assert handled == sent
    assert 50 < len(worker.engine.runners) <= 100
    world.check()


@pytest.mark.parametrize("style", STYLES)
async def test_no_more_keys_are_in_hand_than_it_says_and_a_key_once(world: World, style: str) -> None:
    side_by_side(world, style, concurrency=3)
    now: Counter[str] = Counter()
    most = 0

    async def before(payment: Payment) -> None:
        nonlocal most
        now[payment.account] += 1
        assert now[payment.account] == 1, "two events of a key at a time"
        most = max(most, now.total())
        await asyncio.sleep(0.01)
        now[payment.account] -= 1

    world.work.before = before
    await world.until_running(world.start())
    world.pay_many(300)
    await world.drained()
    assert most == 3
    world.check()


async def test_a_slow_event_holds_up_neither_other_keys_nor_commits(world: World) -> None:
    side_by_side(world, concurrency=4)
    worker = world.start()
    await world.until_running(worker)
    world.pay("a1", 1, id="slow", sleep_ms=60_000)
    behind = world.pay("a1", 1)["id"]
    others = [world.pay(f"b{n}", 1, sleep_ms=10)["id"] for n in range(100)]
    await world.clock.sleep(10)
    assert set(settled(world)) == set(others)
    await world.drained(within_s=120)
    assert world.work.handled[-1] == behind
    world.check()


async def test_an_event_that_was_in_hand_when_the_worker_died_is_handled_by_the_next_in_its_order(world: World) -> None:
    side_by_side(world, concurrency=4)
    worker = world.start()
    await world.until_running(worker)
    world.pay("a1", 1, id="slow", sleep_ms=5_000)
    world.pay("a1", 2, id="behind")
    again = world.pay("b1", 1, id="other")
    await world.until(lambda: settled(world) == ["other"])
    worker.kill()
    await worker.gone()
    world.write({**again}, "b1")
    world.pay("a1", 3, id="later")
    world.lose_store("w1")
    await world.caught_up()
    assert [id for id in settled(world) if id != "other"] == ["slow", "behind", "later"]
    assert Counter(world.work.handled) == {"slow": 2, "behind": 1, "other": 1, "later": 1}
    world.check()


@pytest.mark.parametrize("style", STYLES)
async def test_whatever_fails_is_retried_and_dead_lettered_as_ever(world: World, style: str) -> None:
    side_by_side(world, style, concurrency=20)
    await world.until_running(world.start())
    for n in range(400):
        world.pay(f"a{n % 40}", 1, sleep_ms=5, fails=-1 if n % 20 == 7 else int(n % 5 == 3))
    world.pay_many(200)
    await world.drained(within_s=300)
    letters = [r for log in world.cluster.committed(f"{APP}.dlq") for r in log]
    failed = [r for r in letters if dict(r.headers)["semel.reason"] == b"failed"]
    assert len(failed) >= 20
    assert {dict(r.headers)["semel.attempts"] for r in failed} == {str(ATTEMPTS).encode()}
    world.check()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("style", STYLES)
async def test_workers_killed_at_any_moment_lose_and_double_nothing(tmp_path: Path, style: str, seed: int) -> None:
    world = World(tmp_path, partitions=3, seed=seed)
    side_by_side(world, style, concurrency=8)
    world.slow_network()
    for n in range(12):
        worker = world.start(f"w{n % 2}")
        for _ in range(60):
            world.pay(f"a{world.rng.randrange(20)}", 1, sleep_ms=world.rng.choice([0, 5, 50, 400]))
        world.pay_many(30)
        await world.clock.sleep(world.rng.random() * 4)
        worker.kill()
        await worker.gone()
        if world.rng.random() < 0.3:
            world.lose_store(worker.name)
    await world.until_running(world.start())
    await world.drained(within_s=120)
    world.check()
    await world.close()


async def test_a_handler_that_outlives_its_run_writes_nothing(world: World) -> None:
    side_by_side(world, concurrency=4)
    first = world.start("w1")
    await world.until_running(first)
    for n in range(4):
        world.pay(f"a{n}", 1, sleep_ms=2_000)
    await world.until(lambda: len(world.work.handled) == 4)
    first.engine.drop_everything()
    first.engine.start_over()
    await world.drained()
    assert len(world.work.handled) == 8
    assert len(settled(world)) == 4
    world.check()


async def test_a_worker_that_stops_waits_for_all_events_in_hand(world: World) -> None:
    side_by_side(world, concurrency=10)
    worker = world.start()
    await world.until_running(worker)
    for n in range(30):
        world.pay(f"a{n}", 1, sleep_ms=1_000)
    await world.until(lambda: len(world.work.handled) == 10)
    await worker.stop()
    assert len(settled(world)) == 10
    await world.caught_up()
    assert set(Counter(world.work.handled).values()) == {1}
    world.check()


async def test_of_slots_in_line_that_asked_for_their_turn_whichever_comes_goes_on(world: World) -> None:
    side_by_side(world, concurrency=4)
    worker = world.start()
    await world.until_running(worker)
    for n in range(20):
        world.pay(f"a{n}", 1, sleep_ms=10)
    await world.drained()
    slots = worker.engine.runners
    assert len(slots) == 4 and all(slot.waiting for slot in slots)
    for asked in slots:
        # As for an event that the process may have died of.
        assert worker.engine.scheduler.has_all_to_itself(asked)
        world.pay("b1", 1)
        await world.drained(within_s=5)
    world.check()


# ---------------------------------------------------------------------- rows that several keys share


def counting(style: str, seen: Counter[str], wait_s: float = 0.01, **declared: Any) -> Pipeline:
    """Each event adds to one row, whatever its key, and waits between reading and writing it."""
    totals = Table("totals", key=str, value=int, default=int, merge=lambda a, b: a + b)
    lists = Table("lists", key=str, value=list, default=list, merge=lambda a, b: a + b)

    async def count(payment: Payment) -> dict[str, Any]:
        seen[payment.id] += 1
        before, noted = totals["all"], lists["all"]
        await asyncio.sleep(wait_s)
        totals["all"] = before + payment.amount
        noted.append(payment.id)
        return {"id": payment.id, "total": before + payment.amount}

    async def count_all(payments: Any) -> Any:
        async for payment in payments:
            yield await count(payment)

    return Pipeline(
        APP, source=Topic("payments", key=str, value=Payment), agent=count if style == "coroutine" else count_all,
        tables=[totals, lists], sink=Topic("settlements", key=str, value=dict), concurrency=8,
        retry=Retry(attempts=ATTEMPTS, first_delay=timedelta(milliseconds=20)), **declared,
    )  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
async def test_events_that_change_one_row_side_by_side_lose_no_change(tmp_path: Path, style: str) -> None:
    world = World(tmp_path, partitions=1)
    seen: Counter[str] = Counter()
    world.pipeline = counting(style, seen)
    worker = world.start()
    await world.until_running(worker)
    sent = [world.pay(f"a{n}", 1)["id"] for n in range(60)]
    await world.drained(within_s=300)
    results = [orjson.loads(r.value or b"") for log in world.cluster.committed("settlements") for r in log]
    assert [r["total"] for r in results] == list(range(1, 61)), "as if one came after the other"
    assert sorted(r["id"] for r in results) == sorted(sent)
    [rows] = [worker.engine.tasks[0].tables["lists"]]
    assert sorted(orjson.loads(rows.committed(rows.raw("all")) or b"")) == sorted(sent)
    assert worker.engine.agents[0].conflicts > 0
    assert max(seen.values()) <= 3 + 1, "after three times it has its partition to itself"
    await world.close()


async def test_events_that_only_read_a_row_do_not_meet(tmp_path: Path) -> None:
    world = World(tmp_path, partitions=1)
    rates = Table("rates", key=str, value=int, default=int, merge=max)

    async def look(payment: Payment) -> dict[str, Any]:
        rate = rates["all"]
        await asyncio.sleep(0.01)
        return {"id": payment.id, "rate": rate}

    world.pipeline = Pipeline(
        APP, source=Topic("payments", key=str, value=Payment), agent=look, tables=[rates],
        sink=Topic("settlements", key=str, value=dict), concurrency=8,
    )  # fmt: skip
    worker = world.start()
    await world.until_running(worker)
    for n in range(60):
        world.pay(f"a{n}", 1)
    await world.drained()
    assert len(settled(world)) == 60
    assert worker.engine.agents[0].conflicts == 0
    await world.close()


@pytest.mark.parametrize("error", [ValueError, Reject])
@pytest.mark.parametrize("style", STYLES)
def test_no_event_is_given_up_for_two_rows_that_were_never_so_together(style: str, error: type[Exception]) -> None:
    halves = Table("halves", value=int, default=lambda: 50)

    async def handle(event: int) -> int:
        left = halves["left"]
        await asyncio.sleep(0.01)
        right = halves["right"]
        if event % 2:
            halves["left"], halves["right"] = left - 1, right + 1
        elif left + right != 100:
            raise error(f"{left} + {right}")
        return event

    async def each(events: Any) -> Any:
        async for event in events:
            yield await handle(event)

    declared = Pipeline(
        "pay", source=Topic("events", value=int), agent=handle if style == "coroutine" else each, tables=[halves],
        sink=Topic("done", value=int), concurrency=5, retry=Retry(attempts=1),
    )  # fmt: skip
    with PipelineTester(declared, partitions=1) as t:
        t.send_all(range(40), key=str)
        assert not t.dead_letters() and sorted(out.value for out in t.outputs()) == [*range(40)]
        assert t.tables["halves"] == {"left": 30, "right": 70}


def test_an_event_that_failed_when_it_had_its_partition_to_itself_has_it_again() -> None:
    """Else what is slower than those that change its rows would be handled anew for as long as there are such."""
    total, runs, failed = Table("total", value=int, default=int), list[int](), list[int]()

    async def handle(event: int) -> int:
        before = total["all"]
        if not event:
            runs.append(total["all"])
            await asyncio.sleep(0.2)
            if len(runs) == CONFLICTS + 1:
                failed.append(before)
                raise ConnectionError("down")
        await asyncio.sleep(0.01)
        total["all"] = before + 1
        return event

    declared = Pipeline(
        "pay", source=Topic("events", value=int), agent=handle, tables=[total], sink=Topic("done", value=int), concurrency=4,
        retry=Retry(first_delay=timedelta(milliseconds=10)),
    )  # fmt: skip
    with PipelineTester(declared, partitions=1) as t:
        t.send_all(range(400), key=str)
        assert len(runs) == 2 * (CONFLICTS + 1) and len(failed) == 1
        assert t.tables["total"] == {"all": 400} and not t.dead_letters()
