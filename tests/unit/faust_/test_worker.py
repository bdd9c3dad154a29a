"""How code of an App's own may end, and with what the worker ends then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from semel.cli import exits
from semel.faust_.app import App
from semel.worker import main
from tests.unit.faust_.harness import Stage


@pytest.mark.parametrize("ends", [SystemExit(0), SystemExit(), KeyboardInterrupt(), ValueError("no")])
@pytest.mark.parametrize("started", ["task", "timer"])
async def test_what_a_task_or_timer_of_the_app_raises_ends_the_worker_and_never_with_0(
    stage: Stage, caplog: pytest.LogCaptureFixture, ends: BaseException, started: str
) -> None:
    stage.topic("orders")
    app = stage.app()

    @app.agent(app.topic("orders", value_type=int))
    async def count(stream: Any) -> None:
        async for _ in stream:
            pass

    async def leaves() -> None:
        await asyncio.sleep(1)
        raise ends

    app.task(leaves) if started == "task" else app.timer(0.5)(leaves)
    async with asyncio.timeout(60):
        failure = await main._serve(app.as_supervised(instance=None, adopt=False), asyncio.Event(), drain_s=30)
    assert failure is ends
    assert exits.code_after(failure) != 0
    assert f"the worker stops on an unexpected error: {type(ends).__name__}" in caplog.text


async def test_what_a_timer_raises_is_known_when_it_is_raised_and_not_a_while_later(stage: Stage) -> None:
    app, loop, raised = stage.app(), asyncio.get_running_loop(), list[float]()

    async def leaves() -> None:
        await asyncio.sleep(1.03)
        raised.append(loop.time())
        raise ValueError("no")

    app.task(leaves)
    running = app.as_supervised(instance=None, adopt=False)
    running.start()
    assert isinstance(await running.wait_failed(), ValueError)
    assert loop.time() - raised[0] < 0.01
    await running.close()


def counting(stage: Stage) -> App:
    app = stage.app()

    @app.agent(app.topic("orders", value_type=int))
    async def count(stream: Any) -> None:
        async for _ in stream:
            pass

    return app


async def test_who_waits_for_the_tables_of_an_app_goes_on_when_they_are_restored(stage: Stage) -> None:
    app, loop, waited = counting(stage), asyncio.get_running_loop(), list[float]()

    async def waits() -> None:
        assert not await app.tables.wait_until_recovery_completed()
        waited.append(loop.time())

    app.task(waits)
    await stage.start(app)
    await asyncio.sleep(1.03)
    assert not waited
    before = loop.time()
    stage.topic("orders")
    await stage.until(lambda: app.engine is not None and app.engine.restored)
    await stage.until(lambda: waited)
    assert before < waited[0] <= loop.time()


async def test_an_app_that_stops_ends_who_waits_for_its_tables(stage: Stage) -> None:
    app = counting(stage)
    await stage.start(app)
    waiting = asyncio.create_task(app.tables.wait_until_recovery_completed())
    await asyncio.sleep(1)
    assert not waiting.done()
    await app.stop()
    assert await waiting
