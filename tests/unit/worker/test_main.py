"""How a worker's process ends: what is still there is ended, or left, and said once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import pytest

from semel.errors import StaleIncarnation
from semel.stages.agent.coroutine_driver import CoroutineDriver, SuspendedForever
from semel.worker.main import _end_tasks


async def stubborn() -> AsyncGenerator[int]:
    await SuspendedForever()
    yield 1


async def handle() -> None:
    async for _ in stubborn():
        pass


async def run() -> None:
    def nothing() -> None: ...

    with pytest.raises(StaleIncarnation):
        await asyncio.create_task(CoroutineDriver(handle(), nothing, nothing))


def test_code_that_was_left_where_it_stands_is_not_called_an_error_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(run())
    _end_tasks(loop)
    loop.close()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_an_error_while_a_generator_of_the_program_s_own_is_closed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def closes_badly() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            raise ValueError("its file is gone")

    found = closes_badly()

    async def begin() -> None:
        await anext(found)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    _end_tasks(loop)
    loop.close()
    [said] = caplog.records
    assert said.exc_info is not None and isinstance(said.exc_info[1], ValueError)
