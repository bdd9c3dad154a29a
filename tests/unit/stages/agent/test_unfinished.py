"""Events that their agents do not finish: named while they last, on the page, and the worker is not ready."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from semel import Pipeline, Topic
from semel.web.html import _trouble
from semel.worker.view import EngineView
from tests.unit.harness import APP, Payment, World, payments_pipeline


def agent_of(world: World, run: Any) -> None:
    world.pipeline = Pipeline(
        APP, source=Topic("payments", key=str, value=Payment), agent=run, sink=Topic("settlements", key=str, value=dict)
    )


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "it waits at" in r.getMessage()]


@pytest.mark.parametrize("style", ["stream", "coroutine", "batches"])
async def test_an_event_that_never_ends_is_named_with_agent_record_and_line(
    world: World, caplog: pytest.LogCaptureFixture, style: str
) -> None:
    async def for_ever(payment: Any) -> None:
        if payment.id == "stuck":
            await asyncio.get_running_loop().create_future()

    world.work.before = for_ever
    world.pipeline = payments_pipeline(world.work, style=style)
    worker = world.start()
    await world.until_running(worker)
    tp, offset = world.write({"id": "stuck", "account": "a1", "amount": 1}, "a1")
    await world.clock.sleep(2)
    (said,) = lines(caplog)
    assert f"{tp.topic}[{tp.partition}]@{offset} (key b'a1')" in said
    assert worker.engine.runners[0].plan.name in said
    assert __file__ in said
    assert "(for_ever)" in said
    # Again now and then, not at every look.
    await world.clock.sleep(60)
    assert len(lines(caplog)) == 2
    await world.clock.sleep(600)
    assert len(lines(caplog)) == 12


async def test_an_event_that_takes_long_is_on_the_page_and_makes_the_worker_unready(world: World) -> None:
    worker = world.start(handler_timeout_ms=2_000)
    view = EngineView(worker.engine)
    await world.until_running(worker)
    world.pay("a1", 1, sleep_ms=20_000)
    await world.clock.sleep(3)
    ready, said = view.readiness()
    assert ready, said
    (found,) = view.pipelines()[0]["in_hand"]
    assert found["record"].startswith("payments[")
    assert 1 <= found["seconds"] <= 3
    assert "it waits at" in _trouble(view.pipelines()[0])
    await world.clock.sleep(4)
    ready, said = view.readiness()
    assert not ready
    assert said["in_hand"][0]["record"] == found["record"]
    assert view.liveness()[0]
    await world.drained()
    assert view.readiness()[0]
    assert view.pipelines()[0]["in_hand"] == []
    assert _trouble(view.pipelines()[0]) == ""


async def test_events_that_wait_at_one_place_are_said_once_a_minute_with_their_number(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    worker = world.start()
    await world.until_running(worker)
    for _ in range(40):
        world.pay("a1", 1, sleep_ms=2_000)
    await world.drained(within_s=120)
    said = lines(caplog)
    assert len(said) == 2
    assert "more events waited there" in said[1]


async def test_quick_events_are_not_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    worker = world.start()
    await world.until_running(worker)
    for _ in range(20):
        world.pay("a1", 1, sleep_ms=700)
    await world.drained(within_s=120)
    assert lines(caplog) == []


async def test_an_event_that_takes_long_holds_up_its_partition_and_no_other(world: World) -> None:
    """Commits go on; the later events of its partition are done when it is."""
    worker = world.start(handler_timeout_ms=500)
    await world.until_running(worker)
    accounts = {world.place(f"a{n}").partition: f"a{n}" for n in range(8)}
    assert len(accounts) == 2
    world.pay(accounts[0], 1, id="before")
    world.pay(accounts[0], 1, id="slow", sleep_ms=30_000)
    await world.until(lambda: "slow" in world.work.handled)
    world.pay(accounts[0], 1, id="behind")
    world.pay(accounts[1], 1, id="other")
    await world.clock.sleep(20)
    assert world.work.handled == ["before", "slow", "other"]
    assert sum(len(log) for log in world.cluster.committed("settlements")) == 2
    await world.drained()
    assert world.work.handled == ["before", "slow", "other", "behind"]
    world.check()


# ---------------------------------------------------------------------- agents that ask for nothing


def idle(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "has asked for no record" in r.getMessage()]


async def test_an_agent_that_waits_for_ever_before_its_loop_is_named_while_records_wait(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    connected = asyncio.Event()

    async def connect() -> None:
        await connected.wait()

    async def settle(payments: Any) -> Any:
        await connect()
        async for payment in payments:
            yield {"id": payment.id}

    agent_of(world, settle)
    worker = world.start(handler_timeout_ms=2_000)
    view = EngineView(worker.engine)
    await world.until_running(worker)
    # Nothing waits for it: it may take its time.
    await world.clock.sleep(30)
    assert view.readiness()[0]
    assert idle(caplog) == []
    tp, offset = world.write({"id": "p1", "account": "a1", "amount": 1}, "a1")
    await world.clock.sleep(4)
    (said,) = idle(caplog)
    assert "agent settle has asked for no record for 2" in said
    assert f"first {tp.topic}[{tp.partition}]@{offset}" in said
    assert __file__ in said and "(connect)" in said
    assert view.readiness()[0]
    (found,) = view.pipelines()[0]["not_asking"]
    assert "(connect)" in found["why"]
    assert "agent settle asks for no record" in _trouble(view.pipelines()[0])
    await world.clock.sleep(4)
    ready, told = view.readiness()
    assert not ready
    assert "(connect)" in told["not_asking"][0]["why"]
    assert view.liveness()[0]
    # Again now and then.
    await world.clock.sleep(60)
    assert len(idle(caplog)) == 2
    connected.set()
    await world.drained()
    assert view.readiness()[0]
    assert view.pipelines()[0]["not_asking"] == []


@pytest.mark.parametrize("ends", ["raises", "yields before its loop", "returns"])
async def test_an_agent_that_ends_again_and_again_before_its_loop_makes_the_worker_unready(
    world: World, caplog: pytest.LogCaptureFixture, ends: str
) -> None:
    mended = False

    async def settle(payments: Any) -> Any:
        if not mended:
            if ends == "raises":
                raise OSError("the database is away")
            if ends == "returns":
                return
            yield {"id": "too early"}
        async for payment in payments:
            yield {"id": payment.id}

    agent_of(world, settle)
    worker = world.start(handler_timeout_ms=2_000)
    view = EngineView(worker.engine)
    await world.until_running(worker)
    await world.clock.sleep(5)
    ready, told = view.readiness()
    assert not ready
    (found,) = told["not_asking"]
    assert found["ended"] >= 3
    assert {"raises": "OSError: the database is away", "returns": "by returning"}.get(ends, "OutsideEvent") in found[
        "why"
    ]
    assert idle(caplog) == []
    world.pay("a1")
    await world.clock.sleep(5)
    assert "times in a row before it asked" in idle(caplog)[0]
    assert "times in a row" in _trouble(view.pipelines()[0])
    mended = True
    await world.drained()
    assert view.readiness()[0]
    world_ids = [r.value for log in world.cluster.committed("settlements") for r in log]
    assert len(world_ids) == 1


async def test_an_agent_that_works_all_the_time_is_never_said_to_ask_for_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    worker = world.start(handler_timeout_ms=1_000)
    for _ in range(120):
        world.pay("a1", 1, sleep_ms=200)
    second = world.start("w2", handler_timeout_ms=1_000)
    await world.until_running(worker, second)
    await world.drained(within_s=120)
    assert idle(caplog) == []
    assert EngineView(worker.engine).readiness()[0]
