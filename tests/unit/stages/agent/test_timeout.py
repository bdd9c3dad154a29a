"""Timeouts: an event that its handler does not finish in time is a failed attempt, and what goes on of it does nothing."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from semel import Pipeline, Retry, Topic
from semel.errors import DeclarationError, HandlerTimeout
from tests.unit.harness import APP, ATTEMPTS, Payment, World, payments_pipeline

STYLES = ["coroutine", "stream", "stubborn", "batches"]
SOURCE = Topic("payments", key=str, value=Payment)
TIMEOUT_S = 2.0


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


def timed(world: World, style: str, **declared: Any) -> None:
    world.pipeline = payments_pipeline(world.work, style=style, timeout=timedelta(seconds=TIMEOUT_S), **declared)


def letters(world: World) -> list[dict[str, str]]:
    records = [r for log in world.cluster.committed(f"{APP}.dlq") for r in log]
    return [{name: (value or b"").decode() for name, value in r.headers} for r in records]


def settled(world: World) -> list[str]:
    return [orjson.loads(r.value or b"")["id"] for log in world.cluster.committed("settlements") for r in log]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_an_event_that_hangs_is_cancelled_retried_and_dead_lettered_and_the_others_go_on(
    world: World, style: str, concurrency: int
) -> None:
    if style == "batches" and concurrency > 1:
        pytest.skip("refused where it is declared")
    timed(world, style, concurrency=concurrency)
    await world.until_running(world.start())
    before = world.clock.monotonic()
    world.pay("a1", 1, id="first")
    world.pay("a1", 1, id="hangs", sleep_ms=3_600_000)
    world.pay("a1", 1, id="last")
    others = [world.pay(f"b{n}", 1)["id"] for n in range(20)]
    await world.drained(within_s=60)
    assert set(settled(world)) == {"first", "last", *others}
    [letter] = letters(world)
    assert letter["semel.reason"] == "failed" and letter["semel.attempts"] == str(ATTEMPTS)
    assert "not done after 2 s" in letter["semel.error"] and "payments.py" in letter["semel.error"]
    assert Counter(world.work.handled)["hangs"] >= ATTEMPTS
    assert world.clock.monotonic() - before >= TIMEOUT_S * ATTEMPTS
    world.pay_many(100)
    await world.drained()


async def test_one_that_hangs_once_takes_effect_once(world: World) -> None:
    timed(world, "coroutine")
    hung: set[str] = set()

    async def before(payment: Payment) -> None:
        if payment.amount == 7 and payment.id not in hung:
            hung.add(payment.id)
            await asyncio.Event().wait()

    world.work.before = before
    await world.until_running(world.start())
    for n in range(60):
        world.pay(f"a{n % 10}", 7 if n % 20 == 3 else 1)
    await world.drained(within_s=60)
    assert len(hung) == 3 and letters(world) == []
    world.check()


async def test_code_that_swallows_its_cancellation_does_nothing_more(world: World) -> None:
    """It goes on in its own time, and finds its tables closed."""
    ends: list[str] = []

    async def before(payment: Payment) -> None:
        if payment.id != "hangs" or ends:
            return
        ends.append("hung")
        while True:
            try:
                await asyncio.sleep(20)
                break
            except asyncio.CancelledError:
                pass
        ends.append("went on")

    timed(world, "coroutine")
    world.work.before = before
    await world.until_running(world.start())
    world.pay("a1", 5, id="hangs")
    world.pay("a1", 1, id="last")
    await world.drained(within_s=60)
    await world.until(lambda: len(ends) == 2, within_s=60)
    world.pay_many(50)
    await world.drained()
    assert [id for id in settled(world) if id in ("hangs", "last")] == ["hangs", "last"]
    world.check()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("style", ["coroutine", "stubborn"])
async def test_workers_killed_while_events_time_out_lose_and_double_nothing(
    world: World, style: str, seed: int
) -> None:
    slow: set[str] = set()

    async def before(payment: Payment) -> None:
        """One in ten hangs the first time."""
        if payment.id not in slow and world.rng.random() < 0.1:
            slow.add(payment.id)
            await asyncio.sleep(3_600)

    world.pipeline = payments_pipeline(
        world.work, style=style, timeout=timedelta(seconds=0.2), concurrency=8 if seed else 1
    )
    world.work.before = before
    world.rng.seed(seed)
    world.slow_network()
    for n in range(8):
        worker = world.start(f"w{n % 2}")
        world.pay_many(40, trouble=False)
        await world.clock.sleep(world.rng.random() * 3)
        worker.kill()
        await worker.gone()
        if world.rng.random() < 0.3:
            world.lose_store(worker.name)
    world.work.before = None
    await world.caught_up()
    world.check()


async def test_a_thread_that_hangs_is_left_behind(world: World) -> None:
    go, calls = threading.Event(), Counter[str]()

    def handle(payment: Payment) -> dict[str, Any]:
        calls[payment.id] += 1
        if payment.id == "hangs" and calls["hangs"] == 1:
            go.wait(20)
        return {"id": payment.id}

    world.pipeline = Pipeline(
        APP, source=SOURCE, agent=handle, sink=Topic("settlements", key=str, value=dict), threads=2,
        timeout=timedelta(seconds=TIMEOUT_S),
    )  # fmt: skip
    await world.until_running(world.start())
    world.pay("a1", 1, id="hangs")
    world.pay("a1", 1, id="last")
    loop: Any = asyncio.get_running_loop()
    while not calls:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for _ in range(300):
        # Virtual time stands still while a thread works.
        loop.advance(0.01)
        await asyncio.sleep(0)
    await world.until(lambda: len(settled(world)) == 2)
    assert calls == {"hangs": 2, "last": 1}
    go.set()
    await world.drained()
    assert settled(world) == ["hangs", "last"]


async def test_what_code_holds_the_loop_for_does_not_count(world: World) -> None:
    """Another event's handler blocks it for longer than the timeout, while what this one waits for is there already."""
    timed(world, "coroutine", concurrency=2)
    loop: Any = asyncio.get_running_loop()

    async def before(payment: Payment) -> None:
        await asyncio.sleep(0.5)
        if payment.id == "blocks":
            loop.advance(3 * TIMEOUT_S)
        await asyncio.sleep(0.5)

    world.work.before = before
    await world.until_running(world.start())
    world.pay("a1", 1, id="waits")
    world.pay("a2", 1, id="blocks")
    await world.drained(within_s=60)
    assert Counter(world.work.handled) == {"waits": 1, "blocks": 1}


async def test_a_row_that_a_cancelled_handler_goes_on_to_change_is_not_that_of_its_next_attempt(world: World) -> None:
    """A list that is changed in place is written back when its event is done: the first attempt's never is."""
    attempts: list[str] = []
    seen: list[list[str]] = []

    def make(tables: tuple[Any, Any]) -> Any:
        journals = tables[1]

        async def handle(payment: Payment) -> Any:
            attempts.append(payment.id)
            journal = journals[payment.account]
            journal.append(f"{payment.id}, attempt {attempts.count(payment.id)}")
            while payment.id == "hangs" and attempts.count("hangs") == 1:
                try:
                    await asyncio.sleep(TIMEOUT_S + 0.3)
                    break
                except asyncio.CancelledError:
                    journal.append("cancelled")
            else:
                # While the other one is still at it.
                await asyncio.sleep(1.0)
            journal.append("went on")
            seen.append(list(journal))

        return handle

    timed(world, "coroutine", make=make)
    await world.until_running(world.start())
    world.pay("a1", 5, id="hangs")
    world.pay("a1", 1, id="last")
    await world.drained(within_s=60)
    assert attempts == ["hangs", "hangs", "last"]
    assert seen[-1] == ["hangs, attempt 2", "went on", "last, attempt 1", "went on"]


async def test_where_all_time_out_the_agent_halts_and_goes_on_when_that_is_over(world: World) -> None:
    """Nothing is dead-lettered; one event at a time is tried."""
    over = False

    async def before(payment: Payment) -> None:
        if not over:
            await asyncio.Event().wait()

    timed(world, "coroutine", concurrency=4)
    world.work.before = before
    worker = world.start(halt_after=3)
    await world.until_running(worker)
    for n in range(40):
        world.pay(f"a{n}", 1)
    await world.until(lambda: any(runner.slots.halted for runner in worker.engine.runners), within_s=60)
    await asyncio.sleep(120)
    assert letters(world) == [] and settled(world) == []
    over = True
    await world.drained(within_s=120)
    assert len(settled(world)) == 40 and letters(world) == []
    world.check()


def test_the_tester_times_out_as_a_worker_does(tester_of: Any) -> None:
    async def handle(payment: Payment) -> dict[str, Any]:
        await asyncio.sleep(60 if payment.id == "hangs" else 1)
        return {"id": payment.id}

    sink = Topic("settlements", key=str, value=dict)
    once = Retry(attempts=1)
    tester = tester_of(Pipeline(APP, source=SOURCE, agent=handle, sink=sink, retry=once, timeout=timedelta(seconds=5)))
    for id in ("hangs", "last"):
        tester.send(Payment(id, "a1", 1), key="a1")
    assert [output.value["id"] for output in tester.outputs()] == ["last"]
    [letter] = tester.dead_letters()
    assert "HandlerTimeout" in letter.error and "not done after 5 s" in letter.error


@pytest.mark.parametrize("then", ["park", "stop"])
def test_what_stays_parked_times_out_again_until_it_does_not(tester_of: Any, then: Any) -> None:
    attempts = Counter[str]()

    async def handle(payment: Payment) -> dict[str, Any]:
        attempts[payment.id] += 1
        if payment.id == "hangs" and attempts["hangs"] <= 4:
            await asyncio.Event().wait()
        return {"id": payment.id}

    retry = Retry(attempts=2, delays=(timedelta(seconds=10),), then=then)
    sink = Topic("settlements", key=str, value=dict)
    tester = tester_of(Pipeline(APP, source=SOURCE, agent=handle, sink=sink, retry=retry, timeout=timedelta(seconds=5)))
    tester.send(Payment("hangs", "a1", 1), key="a1")
    tester.send(Payment("other", "a2", 1), key="a2")
    tester.advance_time(timedelta(minutes=5))
    assert attempts == {"hangs": 5, "other": 1} and tester.dead_letters() == []
    assert sorted(output.value["id"] for output in tester.outputs()) == ["hangs", "other"]


def test_a_retry_rule_may_name_it() -> None:
    """As what it is, or as a TimeoutError."""
    for kind in (HandlerTimeout, TimeoutError):
        retry = Retry(transient=(kind,))
        assert retry.delay_s(HandlerTimeout(5, "agents/settle.py:7"), 1, 0.0) is not None
    assert str(HandlerTimeout(5, "agents/settle.py:7")).startswith("its handler was not done after 5 s")


@pytest.mark.parametrize("timeout", [5, timedelta(0), timedelta(microseconds=9_999), timedelta(seconds=-1), "5 s"])
def test_a_timeout_that_cannot_be_is_refused(timeout: Any) -> None:
    async def handle(payment: Payment) -> None:
        pass

    with pytest.raises(DeclarationError, match="timeout="):
        Pipeline("p", source=SOURCE, agent=handle, timeout=timeout)


def test_a_plain_function_on_the_loop_cannot_be_timed_out() -> None:
    def handle(payment: Payment) -> None:
        pass

    with pytest.raises(DeclarationError, match="threads="):
        Pipeline("p", source=SOURCE, agent=handle, timeout=timedelta(seconds=5))
