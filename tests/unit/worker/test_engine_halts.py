"""A worker whose agent has halted: it stays and probes, or, where it is told to, ends so that its supervisor sees it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from semel import Retry
from semel.errors import PipelineHalted
from tests.unit.harness import APP, World, payments_pipeline


class Down(ConnectionError): ...


def pay(world: World, events: int) -> None:
    for n in range(events):
        world.pay(f"account-{n % 40}", 1)


def failing(world: World) -> list[bool]:
    """Its first item: whether what the agent depends on is down."""
    down = [True]

    async def before(payment: object) -> None:
        if down[0]:
            raise Down("the database is down")

    world.work.before = before
    return down


@pytest.mark.parametrize("style", ["stream", "coroutine", "batches"])
async def test_a_worker_that_has_halted_for_as_long_as_it_is_told_ends_and_costs_no_event(
    world: World, style: str
) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    down = failing(world)
    pay(world, 100)
    worker = world.start(halt_after=10, halted_timeout_ms=60_000)
    await world.until_running(worker)
    began = world.clock.monotonic()
    error = await world.fate(worker, within_s=120)
    assert isinstance(error, PipelineHalted)
    assert str(error).startswith(
        f"agent {world.pipeline.plan().agents[0].name} has halted for 60 s, and this worker ends, as halted_timeout_ms says: "
    )
    assert "Down: the database is down" in str(error)
    assert 59.9 < world.clock.monotonic() - began < 66
    assert not any(world.cluster.committed(f"{APP}.dlq"))
    down[0] = False
    await world.caught_up()
    world.check()


async def test_one_whose_agent_goes_on_in_time_does_not_end(world: World) -> None:
    down = failing(world)
    worker = world.start(halt_after=10, halted_timeout_ms=60_000)
    await world.until_running(worker)
    for _ in range(3):
        down[0] = True
        pay(world, 50)
        await world.until(lambda: bool(worker.engine.halted()))
        await world.clock.sleep(40)
        assert worker.engine.halted()
        down[0] = False
        await world.drained()
    assert not worker.over
    world.check()


async def test_unless_it_is_told_it_stays_and_probes(world: World) -> None:
    down = failing(world)
    worker = world.start(halt_after=10)
    await world.until_running(worker)
    pay(world, 50)
    await world.clock.sleep(300)
    assert not worker.over
    assert worker.engine.halted()[0].seconds > 290
    down[0] = False
    await world.drained()
    world.check()


@pytest.mark.parametrize("ends", ["halted", "crash"])
async def test_workers_that_follow_one_another_while_nothing_succeeds_give_no_event_up(world: World, ends: str) -> None:
    """Each begins as the one before has ended, also where the events have used up their attempts."""
    retry = Retry(attempts=2, first_delay=timedelta(milliseconds=50), max_delay=timedelta(seconds=2))
    world.pipeline = payments_pipeline(world.work, style="coroutine", retry=retry)
    down = failing(world)
    worker = world.start(halt_after=10, halted_timeout_ms=20_000)
    await world.until_running(worker)
    pay(world, 100)
    await world.until(lambda: bool(worker.engine.halted()))
    before = [len(log) for log in world.cluster.committed(f"{APP}.dlq")]
    for n in range(6):
        if ends == "halted":
            assert isinstance(await world.fate(worker, within_s=60), PipelineHalted)
        else:
            await world.clock.sleep(3)
            worker.kill()
        worker = world.start("w1" if ends == "halted" else f"w{n}-anew", halt_after=10, halted_timeout_ms=20_000)
        await world.until_running(worker)
        assert worker.engine.halted()
    assert [len(log) for log in world.cluster.committed(f"{APP}.dlq")] == before
    down[0] = False
    await world.drained()
    assert not worker.engine.halted()


async def test_where_nothing_is_to_halt_what_an_earlier_worker_kept_is_given_up_as_any_other(world: World) -> None:
    retry = Retry(attempts=2, first_delay=timedelta(milliseconds=50), max_delay=timedelta(seconds=2))
    world.pipeline = payments_pipeline(world.work, style="coroutine", retry=retry)
    failing(world)
    worker = world.start(halt_after=10)
    await world.until_running(worker)
    pay(world, 20)
    await world.until(lambda: bool(worker.engine.halted()))
    await world.clock.sleep(30)
    await worker.stop()
    worker = world.start(halt_after=0)
    await world.drained()
    assert sum(map(len, world.cluster.committed(f"{APP}.dlq"))) == 20
    assert not worker.engine.halted()
