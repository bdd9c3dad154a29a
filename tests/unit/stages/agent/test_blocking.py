"""Handlers that hold the event loop: nothing else runs meanwhile, and yet commits and the group's session go on."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from semel.memory.faults import Call, Fault, Rule, delay, lose_answer
from semel.plan import AgentKind, AgentPlan
from semel.testing.clock import VirtualLoop
from tests.unit.harness import APP, ATTEMPTS, Worker, World, payments_pipeline

STYLES = ["stream", "coroutine", "batches"]
SESSION_MS = 6_000


def hold(seconds: float) -> None:
    """As `time.sleep` does: the clock goes on, and the loop does not."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.advance(seconds)


def holding(world: World, seconds: Any) -> None:
    """Each payment's handler holds the loop; `seconds`: a number, or a function of the payment."""

    async def before(payment: Any) -> None:
        hold(seconds(payment) if callable(seconds) else seconds)

    world.work.before = before


def there_and_back(world: World, rtt_s: float = 0.004) -> None:
    """Every call takes a while, each way a timer of its own, as packets do."""
    rng = random.Random(1)

    def script(call: Call) -> Fault:
        return delay(rtt_s / 2 * (1 + rng.random()), rtt_s / 2 * (1 + rng.random()))

    world.cluster.faults.script(script)


def settled(world: World) -> int:
    return sum(len(log) for log in world.cluster.committed("settlements"))


def stats(worker: Worker) -> dict[str, float]:
    return {name: worker.engine.stats[name] for name in ("aborts", "unknown", "fences", "rebalances")}


CALM = {"aborts": 0, "unknown": 0, "fences": 0, "rebalances": 1}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("held_s", [0.4, 0.5, 1.5, 3.0, 5.0])
async def test_a_handler_that_blocks_at_every_event_commits_steadily_and_repeats_nothing(
    world: World, style: str, held_s: float
) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    there_and_back(world)
    worker = world.start(session_timeout_ms=SESSION_MS)
    await world.until_running(worker)
    holding(world, held_s)
    # One partition each time, so that a batch holds few of them; the backlog grows while they are worked through.
    for n in range(30):
        world.pay(f"a{n % 8}", 1)
        if style == "batches":
            await world.clock.sleep(0.3)
    if style != "batches":
        await world.until(lambda: settled(world) >= 5, within_s=6 * held_s + 3, what="a commit")
    await world.drained(within_s=30 * held_s * 2 + 10)
    assert set(Counter(world.work.handled).values()) == {1}
    assert stats(worker) == CALM
    world.check()


async def test_a_commit_that_a_handler_falls_into_is_heard_when_the_loop_runs_again(world: World) -> None:
    there_and_back(world)
    worker = world.start(session_timeout_ms=10_000)
    await world.until_running(worker)
    # Fast events keep commits under way; now and then one blocks, longer than a commit may take.
    holding(world, lambda payment: 8.0 if payment.amount == 50 else 0.0)
    for n in range(200):
        world.pay(f"a{n % 8}", 50 if n % 40 == 39 else 1)
        await world.clock.sleep(0.005)
    await world.drained(within_s=120)
    assert set(Counter(world.work.handled).values()) == {1}
    assert stats(worker) == CALM
    world.check()


async def test_an_agent_that_awaits_waits_for_nobody_else(world: World) -> None:
    """What is kept for commits is taken from those who hold the loop, not from those who let go of it."""
    there_and_back(world, 0.05)
    worker = world.start()
    await world.until_running(worker)
    for _ in range(20):
        world.pay("a1", 1, sleep_ms=100)
    began = world.clock.monotonic()
    await world.until(lambda: len(world.work.handled) == 20)
    assert world.clock.monotonic() - began < 20 * 0.1 + 0.2
    await world.drained()


async def test_a_slow_network_gets_its_share_of_the_time_between_two_events_that_block(world: World) -> None:
    there_and_back(world, 0.05)
    worker = world.start(session_timeout_ms=SESSION_MS)
    await world.until_running(worker)
    holding(world, 1.0)
    for n in range(12):
        world.pay(f"a{n % 8}", 1)
    await world.until(lambda: settled(world) > 0)
    # Seven exchanges of 75 ms each are more than half a second; a twentieth of the time would take ten events.
    assert len(world.work.handled) <= 4
    await world.drained()
    assert stats(worker) == CALM
    world.check()


async def test_agents_that_block_in_turns_do_not_use_up_each_others_share(tmp_path: Path) -> None:
    """While one lets others run, the next one holds the loop: six of them for longer than the session."""
    world = World(tmp_path, partitions=8)
    try:
        there_and_back(world, 0.05)
        plan = world.pipeline.plan()
        for n in range(5):
            plan.agents.append(AgentPlan(f"twin{n}", plan.agents[0].sources, AgentKind.FUNCTION, lambda _: hold(2.0)))
        world.plan = lambda: plan  # type: ignore[method-assign]
        worker = world.start(session_timeout_ms=SESSION_MS)
        await world.until_running(worker)
        holding(world, 2.0)
        for n in range(9):
            world.pay(f"b{n}", 1)
        await world.until(lambda: settled(world) >= 3, within_s=100)
        await world.drained(within_s=600)
        assert stats(worker) == CALM
    finally:
        await world.close()


@pytest.mark.parametrize("style", STYLES)
async def test_an_event_that_blocks_for_longer_than_the_session_is_dead_lettered_after_its_attempts(
    world: World, style: str
) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    there_and_back(world)
    worker = world.start(session_timeout_ms=SESSION_MS)
    await world.until_running(worker)
    holding(world, lambda payment: 9.0 if payment.id == "slow" else 0.0)
    world.pay("a1", 1)
    world.pay("a1", 2, id="slow")
    for n in range(20):
        world.pay(f"a{n % 8}", 1)
    await world.drained(within_s=120)
    # In a batch it takes one more session to find out which of them it is.
    assert world.work.handled.count("slow") == ATTEMPTS + (style == "batches")
    letters = [r for log in world.cluster.committed(f"{APP}.dlq") for r in log]
    assert [dict(r.headers)["semel.reason"] for r in letters] == [b"failed"]
    assert dict(letters[0].headers)["semel.attempts"] == str(ATTEMPTS).encode()
    assert b"session_timeout_ms" in (dict(letters[0].headers)["semel.error"] or b"")
    assert settled(world) == 21
    # A redelivery follows it there, and costs nobody a session.
    world.pay("a1", 2, id="slow")
    await world.drained()
    assert world.work.handled.count("slow") == ATTEMPTS + (style == "batches")


@pytest.mark.parametrize("style", STYLES)
async def test_a_run_that_costs_the_session_and_then_fails_is_one_attempt(world: World, style: str) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    there_and_back(world)
    worker = world.start(session_timeout_ms=SESSION_MS)
    await world.until_running(worker)
    holding(world, lambda payment: 9.0 if payment.id == "slow" else 0.0)
    world.pay("a1", 2, id="slow", fails=-1)
    await world.drained(within_s=120)
    assert world.work.handled.count("slow") == ATTEMPTS
    world.check()


async def test_a_process_that_was_stopped_as_a_whole_blames_no_event(world: World) -> None:
    there_and_back(world)
    worker = world.start(session_timeout_ms=SESSION_MS)
    worker.engine.scheduler.awake = lambda held_s: False
    await world.until_running(worker)
    frozen = 0

    def seconds(payment: Any) -> float:
        nonlocal frozen
        frozen += payment.id == "here"
        return 9.0 if payment.id == "here" and frozen <= 5 else 0.0

    holding(world, seconds)
    world.pay("a1", 2, id="here")
    await world.drained(within_s=120)
    assert frozen == 6
    world.check()


async def test_attempts_are_not_counted_anew_after_a_rebalance(world: World) -> None:
    there_and_back(world)
    worker = world.start(session_timeout_ms=SESSION_MS)
    await world.until_running(worker)
    world.pay("a1", 2, id="bad", fails=-1)
    await world.until(lambda: len(world.work.handled) == ATTEMPTS - 1)
    assert worker.engine.group is not None
    worker.engine.group.request_rejoin()
    await world.drained()
    assert worker.engine.stats["rebalances"] == 2
    assert len(world.work.handled) == ATTEMPTS
    world.check()


async def test_a_worker_that_blocks_at_every_event_shares_its_partitions_with_one_that_joins(world: World) -> None:
    there_and_back(world)
    first = world.start(session_timeout_ms=SESSION_MS)
    await world.until_running(first)
    holding(world, 2.0)
    for n in range(24):
        world.pay(f"a{n % 8}", 1)
    await world.until(lambda: settled(world) >= 2)
    second = world.start("w2", session_timeout_ms=SESSION_MS)
    await world.until(lambda: len(second.engine.tasks) == 1 and len(first.engine.tasks) == 1, within_s=60)
    await world.drained(within_s=200)
    assert set(Counter(world.work.handled).values()) == {1}
    assert first.engine.stats["aborts"] == first.engine.stats["unknown"] == 0
    world.check()


async def test_an_event_that_blocks_a_little_is_not_blamed_for_a_broker_that_does_not_answer(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    there_and_back(world)
    silence = Rule(["Heartbeat"], lose_answer(after_s=0.5), when=None, times=None, skip=0)
    world.cluster.faults._scripts.insert(0, silence)
    worker = world.start(session_timeout_ms=SESSION_MS)
    await world.until_running(worker)
    holding(world, 0.1)
    for n in range(200):
        world.pay(f"a{n % 8}", 1)
    await world.until(lambda: "no heartbeat was answered" in caplog.text)
    assert len(world.work.handled) > 20
    assert all(not state.lost for state in worker.engine._retry_states.values())
    world.cluster.faults._scripts.remove(silence)
    await world.drained(within_s=120)
    world.check()


def holding_in_tasks(world: World, tasks: int, seconds: Any) -> None:
    """Each payment's handler waits for tasks that it has started, and each of them holds the loop."""

    async def part(held_s: float) -> None:
        await asyncio.sleep(0)
        hold(held_s)

    async def before(payment: Any) -> None:
        held_s = seconds(payment) if callable(seconds) else seconds
        await asyncio.gather(*(part(held_s) for _ in range(tasks)))

    world.work.before = before


@pytest.mark.parametrize("style", STYLES)
async def test_tasks_of_a_handler_that_block_are_given_back_as_what_it_does_itself(world: World, style: str) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    there_and_back(world)
    worker = world.start(session_timeout_ms=SESSION_MS)
    await world.until_running(worker)
    holding_in_tasks(world, 3, 1.4)
    # Of one partition: what events of several have started holds the loop at the same time, and adds up.
    accounts = [account for n in range(8) if world.place(account := f"a{n}").partition == 0]
    for n in range(15):
        world.pay(accounts[n % len(accounts)], 1)
        if style == "batches":
            await world.clock.sleep(1)
    if style != "batches":
        await world.until(lambda: settled(world) >= 3, within_s=6 * 4.2 + 3, what="a commit")
    await world.drained(within_s=200)
    assert set(Counter(world.work.handled).values()) == {1}
    assert stats(worker) == CALM
    world.check()


async def test_an_event_whose_tasks_block_for_longer_than_the_session_is_dead_lettered(world: World) -> None:
    there_and_back(world)
    worker = world.start(session_timeout_ms=SESSION_MS)
    await world.until_running(worker)
    holding_in_tasks(world, 3, lambda payment: 3.0 if payment.id == "slow" else 0.0)
    world.pay("a1", 2, id="slow")
    for n in range(10):
        world.pay(f"a{n % 8}", 1)
    await world.drained(within_s=120)
    assert world.work.handled.count("slow") == ATTEMPTS
    letters = [r for log in world.cluster.committed(f"{APP}.dlq") for r in log]
    assert [dict(r.headers)["semel.reason"] for r in letters] == [b"failed"]
    assert settled(world) == 10


async def test_what_a_timer_of_the_app_holds_is_no_events_fault(world: World) -> None:
    there_and_back(world)
    worker = world.start(session_timeout_ms=SESSION_MS)
    worker.engine.scheduler.only_agents = False
    await world.until_running(worker)
    begun = asyncio.Event()

    async def before(payment: Any) -> None:
        begun.set()
        await asyncio.sleep(0.5)

    world.work.before = before
    world.pay("a1", 1)
    for _ in range(ATTEMPTS + 1):
        await begun.wait()
        begun.clear()
        await asyncio.sleep(0.1)
        hold(9.0)
    await world.drained()
    assert not any(world.cluster.committed(f"{APP}.dlq"))
    world.check()


async def test_an_event_that_blocks_while_a_transaction_is_open_is_done_all_the_same(tmp_path: Path) -> None:
    """Brokers end the transaction, and all is undone. So that it does not go on like this for ever, none is open the third time
    that the event is handled."""
    world = World(tmp_path, style="coroutine", session_timeout_ms=600_000, transaction_timeout_ms=6_000)

    async def before(payment: Any) -> None:
        if payment.id != "blocks":
            return
        [worker] = world.workers.values()
        for _ in range(300):
            writer = worker.engine.owned.writer
            if writer is not None and writer.transaction_open_since is not None:
                await asyncio.sleep(0.02)
                hold(10.0)
                return
            await asyncio.sleep(0.001)

    world.work.before = before
    there_and_back(world, 0.02)
    worker = world.start()
    await world.until_running(worker)
    for n in range(40):
        world.pay(f"a{n % 8}", 1, id="blocks" if n == 30 else f"e{n}")
    await world.drained(within_s=600)
    assert world.work.handled.count("blocks") == 3
    world.check()
    await world.close()
