"""Taking over from the dead (rule 15): what a writer that is gone left open, and what is nobody's to end."""

from __future__ import annotations

import asyncio

import pytest

from semel.port import TP, Producer
from semel.state.positions import Position
from semel.state.task import TaskState
from semel.worker.view import EngineView
from tests.unit.harness import APP, World


async def test_what_a_dead_writer_left_open_is_ended_at_once(world: World) -> None:
    first, second = world.start("w1"), world.start("w2")
    await world.until_running(first, second)
    world.pay_many(60, trouble=False)
    await world.drained()
    reached = first.kill_at("commit.after_offsets")
    while not reached.is_set():
        world.pay_many(5, trouble=False)
        await asyncio.sleep(0.02)
    await first.gone()
    # Its session ends after ten seconds, its transaction only ten to twenty after that.
    await world.until(lambda: len(second.engine.tasks) == 2, within_s=15)
    began = world.clock.monotonic()
    await world.until_running(second)
    assert world.clock.monotonic() - began < 1.0
    await world.drained()
    world.check()


async def test_the_open_transaction_of_a_living_member_is_never_ended_by_another(world: World) -> None:
    first, second = world.start("w1"), world.start("w2")
    world.pay_many(60)
    await world.until_running(first, second)
    await world.drained()
    (held,) = second.engine.tasks
    # w1 is a member; that it writes where w2 restores is between the two of them and time.
    producer = await hold_open(world, f"{APP}-w1", TP(f"{APP}-positions", held), timeout_ms=6_000)
    second.kill()
    await second.gone()
    again = world.start("w2")
    await asyncio.sleep(4)
    assert again.engine.tasks[held].state is TaskState.RESTORING
    assert world.cluster.transactions.get(f"{APP}-w1").epoch == producer.epoch  # type: ignore[union-attr]
    await world.until_running(again)
    world.pay_many(20)
    await world.drained()
    world.check()


async def test_a_stranger_that_writes_to_our_logs_is_never_fenced(world: World) -> None:
    await world.settled(40)
    await asyncio.sleep(15)
    producer = await hold_open(world, "somebody-else", TP(f"{APP}-positions", 0), timeout_ms=12_000)
    worker = world.start()
    await asyncio.sleep(5)
    assert worker.engine.tasks[0].state is TaskState.RESTORING
    assert world.cluster.transactions.get("somebody-else").epoch == producer.epoch  # type: ignore[union-attr]
    # It runs as soon as the stranger's transaction is over.
    await world.until_running(worker, within_s=60)
    world.check()


async def test_a_restore_that_waits_behind_an_open_transaction_says_whose(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.settled(40)
    await asyncio.sleep(15)
    await hold_open(world, "somebody-else", TP(f"{APP}-balances-changelog", 0), timeout_ms=60_000)
    world.lose_store("w1")
    worker = world.start()
    await asyncio.sleep(15)
    ready, detail = EngineView(worker.engine).readiness()
    assert (
        not ready
        and "held by an open transaction: somebody-else" in detail["unreadable"][f"{APP}-balances-changelog[0]"]
    )
    assert caplog.text.count("it is held by an open transaction: somebody-else") == 1
    assert "transaction.timeout.ms" in caplog.text
    await world.until_running(worker, within_s=120)
    assert EngineView(worker.engine).readiness()[0]
    assert not worker.engine.troubles.counts


@pytest.mark.parametrize(
    ("holder", "others", "fenced"),
    [
        (f"{APP}-eu-w9", [], True),
        (f"{APP}-eu-w9", [f"{APP}-eu"], False),
        (f"{APP}-eu/w9", [f"{APP}-eu"], True),
        # Its own transaction, from before it was upgraded.
        (f"{APP}-eu-w1", [], True),
        # Of a member that is to be upgraded yet.
        (f"{APP}-eu-w2", [], False),
    ],
)
async def test_what_a_former_version_left_open_is_ended_unless_it_lives_or_is_another_apps(
    world: World, holder: str, others: list[str], fenced: bool
) -> None:
    """Its transactional id has dashes where ours has slashes, so that another app could have it."""
    world.pay_many(40)
    first, second = world.start("eu-w1"), world.start("eu-w2")
    await world.until_running(first, second)
    await world.drained()
    for app in others:
        world.cluster.create_topic(f"{app}-positions", 2)
    (held,) = first.engine.tasks
    first.kill()
    await first.gone()
    producer = await hold_open(world, holder, TP(f"{APP}-positions", held), timeout_ms=15_000)
    again = world.start("eu-w1")
    await asyncio.sleep(5)
    transaction = world.cluster.transactions.get(holder)
    assert transaction is not None
    assert (transaction.epoch != producer.epoch) is fenced
    await world.until_running(again, within_s=60)
    world.check()


async def hold_open(world: World, transactional_id: str, tp: TP, timeout_ms: int = 60_000) -> Producer:
    broker = await world.connected("holder")
    producer = await broker.init_producer_id(transactional_id, timeout_ms)
    await broker.add_partitions(producer, [tp])
    builder = broker.batch_builder(1 << 20)
    builder.append(None, b"other", Position({}).encode(), ())
    await broker.produce(producer, {tp: builder.build(producer, 0)})
    return producer
