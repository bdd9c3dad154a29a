"""Rate limiter: a pipeline handles no more events than it may, whatever there is to handle, and whoever does (rule 3)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from semel import Pipeline, RateLimit, Topic
from semel.errors import DeclarationError
from semel.stages.agent.rate_limiter import RateLimiter
from semel.testing import PipelineTester
from semel.worker.metrics import exposition
from semel.worker.view import EngineView
from tests.unit.harness import APP, Payment, Worker, World, payments_pipeline

STYLES = ["function", "coroutine", "stream", "batches"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


class Times(list[float]):
    """When each attempt began."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._now = world.clock.monotonic

    def append_now(self) -> None:
        self.append(self._now())

    def most_within(self, seconds: float) -> int:
        return max(sum(1 for at in self if first <= at < first + seconds) for first in self)


def watched(world: World) -> Times:
    """The times of attempts, of agents of any style."""
    times, handled = Times(world), world.work.handled

    class Noted(list[str]):
        def append(self, id: str) -> None:
            times.append_now()
            super().append(id)

    world.work.handled = Noted(handled)
    return times


def limited(world: World, limit: RateLimit, style: str = "stream", **declared: Any) -> Times:
    world.pipeline = payments_pipeline(world.work, style=style, rate_limit=limit, **declared)
    return watched(world)


def limiter_of(worker: Worker) -> RateLimiter:
    [agent] = worker.engine.agents
    assert agent.limiter is not None
    return agent.limiter


@pytest.mark.parametrize("style", STYLES)
async def test_so_many_events_take_so_long(world: World, style: str) -> None:
    times = limited(world, RateLimit(50), style)
    await world.until_running(world.start())
    began = world.clock.monotonic()
    for n in range(200):
        world.pay(f"a{n % 20}", 1)
    await world.drained(within_s=30)
    took = world.clock.monotonic() - began
    assert 200 / 50 - 0.2 <= took < 200 / 50 + 1.0
    assert times.most_within(1.0) <= 50 + 5
    world.check()


@pytest.mark.parametrize("style", ["coroutine", "stream"])
async def test_handlers_side_by_side_share_it(world: World, style: str) -> None:
    times = limited(world, RateLimit(50), style, concurrency=20)
    worker = world.start()
    await world.until_running(worker)
    for n in range(200):
        world.pay(f"a{n % 40}", 1, sleep_ms=200)
    began = world.clock.monotonic()
    await world.until(lambda: len(times) == 200)
    assert 200 / 50 - 0.2 <= world.clock.monotonic() - began < 200 / 50 + 1.0
    assert times.most_within(1.0) <= 50 + 5
    assert len(worker.engine.runners) > 5
    await world.drained()
    world.check()


@pytest.mark.parametrize("style", STYLES)
async def test_every_attempt_counts(world: World, style: str) -> None:
    times = limited(world, RateLimit(20), style)
    await world.until_running(world.start())
    for n in range(60):
        world.pay(f"a{n}", 1, fails=1)
    began = world.clock.monotonic()
    await world.drained(within_s=60)
    assert len(times) >= 120
    assert world.clock.monotonic() - began >= len(times) / 20 - 1.0
    assert times.most_within(1.0) <= 20 + 2
    world.check()


@pytest.mark.parametrize("style", STYLES)
async def test_what_the_agent_is_not_given_costs_nothing(world: World, style: str) -> None:
    times = limited(world, RateLimit(5), style)
    await world.until_running(world.start())
    first = world.pay("a1", 1)
    await world.drained()
    began = world.clock.monotonic()
    for _ in range(300):
        world.write(first, "a1")
        world.write(b"not json", "a1")
    await world.drained(within_s=30)
    assert world.clock.monotonic() - began < 2.0
    assert len(times) == 1
    world.check()


@pytest.mark.parametrize("style", ["function", "batches"])
async def test_workers_together_handle_no_more_and_one_alone_handles_all_of_it(tmp_path: Path, style: str) -> None:
    world = World(tmp_path, partitions=6)
    times = limited(world, RateLimit(60), style)
    workers = [world.start(f"w{n}") for n in range(3)]
    await world.until_running(*workers)
    assert sum(limiter_of(w).here_per_second for w in workers) == pytest.approx(60)
    accounts = {world.place(f"a{n}").partition: f"a{n}" for n in range(100)}
    for _ in range(100):
        for account in accounts.values():
            world.pay(account, 1)
    await world.clock.sleep(5)
    assert 240 < len(times) <= 310
    for worker in workers[1:]:
        worker.kill()
        await worker.gone()
    await world.until(lambda: len(workers[0].engine.tasks) == 6)
    await world.drained(within_s=60)
    assert limiter_of(workers[0]).here_per_second == 60
    assert times.most_within(1.0) <= 60 + 6 + 3
    world.check()
    await world.close()


async def test_neither_a_restart_nor_a_rebalance_gives_events_away(tmp_path: Path) -> None:
    """A worker begins with nothing, however short the last one lived."""
    world = World(tmp_path, partitions=4)
    times = limited(world, RateLimit(10, burst=10))
    for n in range(200):
        world.pay(f"a{n % 30}", 1)
    for n in range(12):
        worker = world.start(f"w{n % 2}")
        await world.until_running(worker)
        await world.clock.sleep(0.5 + n % 3)
        if n % 4 == 3:
            worker.leave()
        else:
            worker.kill()
        await worker.gone()
    assert len(times) > 60
    assert times.most_within(1.0) <= 10 + 10 + 1
    assert times.most_within(10.0) <= 100 + 10 + 1
    world.pipeline = payments_pipeline(world.work)
    await world.caught_up()
    world.check()
    await world.close()


async def test_slow_limits_are_waited_for_and_a_burst_comes_at_once(world: World) -> None:
    times = limited(world, RateLimit(6, per=timedelta(minutes=1), burst=3))
    await world.until_running(world.start())
    await world.clock.sleep(120)
    for n in range(6):
        world.pay(f"a{n}", 1)
    began = world.clock.monotonic()
    await world.drained(within_s=120)
    waited = [round(at - began) for at in times]
    assert waited == [0, 0, 0, 10, 20, 30]
    world.check()


async def test_batches_are_as_large_as_may_come_at_once(world: World) -> None:
    sizes: list[int] = []

    async def note(stream: Any) -> Any:
        async for batch in stream.batches():
            sizes.append(len(batch))
            for payment in batch:
                yield {"id": payment.id}

    world.pipeline = Pipeline(
        APP, source=Topic("payments", key=str, value=Payment), agent=note, sink=Topic("settlements", key=str, value=dict),
        rate_limit=RateLimit(100, burst=50),
    )  # fmt: skip
    await world.until_running(world.start())
    for n in range(1, 501):
        world.pay(f"a{n}", 1)
    began = world.clock.monotonic()
    await world.drained()
    assert 4.0 < world.clock.monotonic() - began < 6.5
    assert sum(sizes) == 500 and max(sizes) == 50
    assert len(sizes) < 40
    # Nor are they smaller where something comes in all the time.
    sizes.clear()
    for n in range(501, 901):
        world.pay(f"a{n}", 1)
    for n in range(901, 1_001):
        await world.clock.sleep(0.02)
        world.pay(f"a{n}", 1)
    await world.drained()
    assert sum(sizes) == 500 and sum(size for size in sizes if size > 20) > 350
    # What is less than that is not kept waiting for more.
    await world.clock.sleep(1)
    began = world.clock.monotonic()
    world.pay("a1", 1)
    await world.drained()
    assert world.clock.monotonic() - began < 0.5


async def test_what_waits_behind_an_event_that_hangs_does_not_come_all_at_once_then(tmp_path: Path) -> None:
    """As where what all partitions depend on stands still, and goes on."""
    world = World(tmp_path, partitions=12)
    limited(world, RateLimit(20, burst=20), "coroutine")
    hangs = asyncio.Event()
    began: list[float] = []

    async def before(payment: object) -> None:
        began.append(world.clock.monotonic())
        await hangs.wait()

    world.work.before = before
    worker = world.start()
    await world.until_running(worker)
    for n in range(600):
        world.pay(f"a{n}", 1)
    await world.clock.sleep(30)
    at = world.clock.monotonic()
    hangs.set()
    await world.clock.sleep(1.0)
    assert len([time for time in began if at <= time <= at + 0.9]) <= 20 + 0.9 * 20 + 1
    await world.drained()
    world.check()
    await world.close()


@pytest.mark.parametrize("burst", [None, 1, 7])
async def test_at_a_high_rate_events_come_several_at_a_time_and_as_fast_as_they_may(
    world: World, burst: int | None
) -> None:
    limited(world, RateLimit(2_000, burst=burst), "function")
    worker = world.start()
    await world.until_running(worker)
    count = 300 * (burst or 10)
    for n in range(count):
        world.pay(f"a{n % 50}", 1)
    began = world.clock.monotonic()
    await world.drained()
    assert count / 2_000 - 0.2 < world.clock.monotonic() - began < count / 2_000 + 0.3
    assert worker.engine.runners[0].taken <= count / (burst or 8) * 1.2
    world.check()


async def test_one_partition_that_is_full_does_not_keep_another_from_its_turn(world: World) -> None:
    times = limited(world, RateLimit(20))
    await world.until_running(world.start())
    full = next(f"a{n}" for n in range(50) if world.place(f"a{n}").partition == 0)
    other = next(f"a{n}" for n in range(50) if world.place(f"a{n}").partition == 1)
    for _ in range(400):
        world.pay(full, 1)
    await world.clock.sleep(1)
    id = world.pay(other, 1)["id"]
    began = world.clock.monotonic()
    await world.until(lambda: id in world.work.handled)
    assert world.clock.monotonic() - began < 0.5
    assert len(times) < 60


@pytest.mark.parametrize("style", ["function", "stream"])
async def test_commits_heartbeats_and_the_lag_go_on_while_events_wait_and_no_time_is_burnt(
    world: World, style: str
) -> None:
    limited(world, RateLimit(0.5), style)
    worker = world.start(session_timeout_ms=6_000)
    await world.until_running(worker)
    for n in range(30):
        world.pay(f"a{n}", 1)
    rebalances = worker.engine.stats["rebalances"]
    cpu = time.process_time()
    await world.clock.sleep(40)
    assert time.process_time() - cpu < 5
    assert 18 <= len(world.work.handled) <= 21
    committed = sum(len(log) for log in world.cluster.committed("settlements"))
    assert committed >= len(world.work.handled) - 1
    assert worker.engine.stats["rebalances"] == rebalances
    assert sum(n or 0 for n in worker.engine.lag().values()) == 30 - committed
    assert worker.engine.lingering.unready_not_asking() == []
    ready, said = EngineView(worker.engine).readiness()
    assert ready, said
    await world.drained(within_s=120)
    world.check()


async def test_while_events_wait_memory_is_bounded_and_the_lag_grows(world: World) -> None:
    """Ten times as much comes as may be handled."""
    limited(world, RateLimit(100))
    budget = 16 << 20
    worker = world.start(memory_budget_bytes=budget)
    await world.until_running(worker)
    held: list[int] = []
    for _ in range(20):
        for n in range(250):
            world.pay(f"a{n % 50}", 1, id=f"{world.numbers}-" + "x" * 4_000)
        await world.clock.sleep(0.25)
        held.append(worker.engine.held_bytes()["source"])
    await world.clock.sleep(2)
    handled = len(world.work.handled)
    assert handled == pytest.approx(700, abs=40)
    assert sum(n or 0 for n in worker.engine.lag().values()) == pytest.approx(5_000 - handled, abs=5)
    assert max(held) <= worker.engine.budget_bytes()["source"]
    assert max(held) < 5_000 * 4_000 / 2, "less than half of what is there"


async def test_what_is_sent_at_its_time_has_no_part_in_it(world: World) -> None:
    times = limited(world, RateLimit(10, burst=40), "stream")
    world.cluster.create_topic("reminders", 2)
    await world.until_running(world.start())
    await world.clock.sleep(10)
    for n in range(40):
        world.pay(f"a{n}", 1, remind_ms=1_000)
    began = world.clock.monotonic()
    await world.until(lambda: sum(len(log) for log in world.cluster.committed("reminders")) == 40)
    assert world.clock.monotonic() - began < 2
    assert len(times) == 40


async def test_metrics_and_views_say_the_limit_and_what_it_costs(world: World) -> None:
    limited(world, RateLimit(10), "function")
    worker = world.start()
    await world.until_running(worker)
    for n in range(100):
        world.pay(f"a{n}", 1)
    await world.clock.sleep(5)
    [shown] = EngineView(worker.engine).pipelines()[0]["rate_limits"]
    assert (shown["agent"], shown["per_second"], shown["here_per_second"], shown["limits"]) == (
        "settle_at_once", 10, 10, True,
    )  # fmt: skip
    assert 4 < shown["limited_s"] <= 5.5
    said = exposition(worker.engine).decode()
    assert f'semel_agent_rate_limit{{agent="settle_at_once",pipeline="{APP}"}} 10.0' in said
    [line] = [line for line in said.splitlines() if line.startswith("semel_agent_rate_limited_seconds_total")]
    assert 4 < float(line.split()[-1]) <= 5.5
    await world.drained(within_s=30)
    before = EngineView(worker.engine).pipelines()[0]["rate_limits"][0]
    await world.clock.sleep(10)
    assert EngineView(worker.engine).pipelines()[0]["rate_limits"][0] == before
    assert not before["limits"]


async def test_where_there_is_none_nothing_is_said_of_it(world: World) -> None:
    worker = world.start()
    await world.until_running(worker)
    assert worker.engine.agents[0].limiter is None
    assert EngineView(worker.engine).pipelines()[0]["rate_limits"] == []
    assert "semel_agent_rate_limit{" not in exposition(worker.engine).decode()


def test_a_test_waits_for_what_a_slow_limit_keeps_waiting() -> None:
    def take(payment: Payment) -> str:
        return payment.id

    pipeline = Pipeline(
        APP, source=Topic("payments", key=str, value=Payment), agent=take, sink=Topic("taken", key=str, value=str),
        rate_limit=RateLimit(1, per=timedelta(minutes=5)),
    )  # fmt: skip
    with PipelineTester(pipeline) as t:
        began = t.now
        t.send_all([Payment(f"p{n}", "a", 1) for n in range(5)], key="account")
        assert [out.value for out in t.outputs()] == ["p0", "p1", "p2", "p3", "p4"]
        assert t.now - began > timedelta(minutes=20)


def test_a_number_is_refused_with_the_next_step() -> None:
    async def nothing(payment: Payment) -> None: ...

    source = Topic("payments", key=str, value=Payment)
    with pytest.raises(DeclarationError, match=r"rate_limit is 100; give a semel.RateLimit, as RateLimit\(100\)"):
        Pipeline(APP, source=source, agent=nothing, rate_limit=100)  # type: ignore[arg-type]
