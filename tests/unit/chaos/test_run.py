"""How a run ends that does not come to its verdict."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from semel.chaos import run
from semel.errors import SemelError


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    """What a run gives back that does this instead of its phases, while a fault lasts that cannot be healed."""

    class Asked:
        as_json = True

    async def fault() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise SemelError("it cannot be healed")

    def ending(phase: Callable[[], Awaitable[Any]]) -> Any:
        async def phases(*_: object) -> Any:
            async with asyncio.TaskGroup() as beside:
                beside.create_task(fault(), name="fault")
                await asyncio.sleep(0)
                return await phase()

        monkeypatch.setattr(run, "_phases", phases)
        return run.run(cast("run.Asked", Asked()))

    return ending


def test_what_fails_beside_the_phases_ends_the_run_in_its_own_words(ended: Any) -> None:
    async def phase() -> None:
        for task in asyncio.all_tasks():
            if task.get_name() == "fault":
                task.cancel()
        await asyncio.sleep(60)

    with pytest.raises(SemelError, match=r"^it cannot be healed$"):
        ended(phase)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_has_no_report_whatever_fails_in_its_end(ended: Any, number: int) -> None:
    async def phase() -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        await asyncio.sleep(60)

    assert ended(phase) is None
