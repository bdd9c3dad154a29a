"""An agent that has a sink and gives it nothing is told so: once in the log, and by the views while it lasts."""

from __future__ import annotations

from typing import Any

import pytest

from semel import Output, Pipeline, Topic
from semel.stages.agent.without_results import EVENTS
from semel.web.html import _trouble
from semel.worker.view import EngineView
from tests.unit.harness import APP, Payment, World


async def until_done(world: World, worker: Any, events: int) -> None:
    done = worker.engine.agents[0].completion.succeeded
    for n in range(done, done + events):
        world.write({"id": f"e{n}", "account": f"a{n % 7}", "amount": n}, f"a{n % 7}")
    await world.drained()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "none of them had a result" in r.getMessage()]


def started(world: World, agent: Any, sink: Topic | None = Topic("settlements", key=str, value=dict)) -> Any:  # noqa: B008
    world.pipeline = Pipeline(APP, source=Topic("payments", key=str, value=Payment), agent=agent, sink=sink)
    return world.start()


async def sorts_all_out(stream: Any) -> Any:
    async for payment in stream:
        if payment.amount < 0:
            yield {"id": payment.id}


async def returns_before_it_yields(stream: Any) -> Any:
    async for payment in stream:
        if payment.amount >= 0:
            return
        yield {"id": payment.id}


async def sorts_batches_out(stream: Any) -> Any:
    async for batch in stream.batches():
        for payment in batch:
            if payment.amount < 0:
                yield {"id": payment.id}


def gives_none(payment: Payment) -> Any:
    return {"id": payment.id} if payment.amount < 0 else None


@pytest.mark.parametrize(
    "agent", [sorts_all_out, returns_before_it_yields, sorts_batches_out, gives_none], ids=lambda run: run.__name__
)
async def test_an_agent_without_any_result_is_named_once(
    world: World, caplog: pytest.LogCaptureFixture, agent: Any
) -> None:
    worker = started(world, agent)
    view = EngineView(worker.engine)
    await world.until_running(worker)
    await until_done(world, worker, EVENTS - 1)
    assert said(caplog) == [] and view.pipelines()[0]["without_results"] == []
    await until_done(world, worker, 1)
    [line] = said(caplog)
    assert line.startswith(f"agent {agent.__name__} has handled {EVENTS} events") and "its sink 'settlements'" in line
    await until_done(world, worker, 5)
    assert len(said(caplog)) == 1
    [shown] = view.pipelines()[0]["without_results"]
    assert shown == {"agent": agent.__name__, "events": EVENTS + 5, "sink": "settlements"}
    assert "1,005 events and none had a result for settlements" in _trouble(view.pipelines()[0])
    # It may be meant.
    assert view.readiness()[0]
    returned = {agent.__name__: EVENTS + 5} if agent is returns_before_it_yields else {}
    assert view.pipelines()[0]["returned"] == returned
    world.write({"id": "last", "account": "a1", "amount": -1}, "a1")
    await world.drained()
    assert view.pipelines()[0]["without_results"] == []


async def test_one_result_among_the_first_is_enough(world: World, caplog: pytest.LogCaptureFixture) -> None:
    worker = started(world, sorts_all_out)
    await world.until_running(worker)
    world.write({"id": "first", "account": "a1", "amount": -1}, "a1")
    await until_done(world, worker, EVENTS)
    assert said(caplog) == []


async def test_neither_is_an_agent_named_that_has_no_sink(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def sends_elsewhere(stream: Any) -> Any:
        async for payment in stream:
            if payment.amount < 0:
                yield Output({"id": payment.id}, topic=Topic("elsewhere", key=str, value=dict))

    worker = started(world, sends_elsewhere, None)
    await world.until_running(worker)
    await until_done(world, worker, EVENTS)
    assert said(caplog) == []
    assert EngineView(worker.engine).pipelines()[0]["without_results"] == []
