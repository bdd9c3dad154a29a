"""How code of an App's own may end, and with what the worker ends then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from semel.cli import exits
from semel.runtime import worker
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
        failure = await worker._serve(app, asyncio.Event())
    assert failure is ends
    assert exits.code_after(failure) != 0
    assert f"the worker stops on an unexpected error: {type(ends).__name__}" in caplog.text
