"""Whether a task waits for another one, and for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from semel.stages.agent.awaiting import Awaits, awaits

Task = asyncio.Task[Any]


async def _directly(task: Task) -> None:
    await task


async def _with_a_bound(task: Task) -> None:
    await asyncio.wait_for(task, 60)


async def _shielded(task: Task) -> None:
    await asyncio.shield(task)


async def _shielded_with_a_bound(task: Task) -> None:
    await asyncio.wait_for(asyncio.shield(task), 60)


async def _for_the_first(task: Task) -> None:
    await asyncio.wait({task, asyncio.create_task(asyncio.sleep(1))}, return_when=asyncio.FIRST_COMPLETED)


async def _gathered(task: Task) -> None:
    await asyncio.gather(task, asyncio.sleep(0.1))


async def _grouped(task: Task) -> None:
    async def follow() -> None:
        await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        group.create_task(follow())


async def _for_something_else(task: Task) -> None:
    await asyncio.sleep(0.1)


async def _for_what_the_task_does_not_give(task: Task) -> None:
    await asyncio.Queue[int]().get()


async def _seen_from(wait: Callable[[Task], Awaitable[None]]) -> Awaits:
    """How one that waits so looks from within the task."""

    async def look() -> Awaits:
        await asyncio.sleep(0.01)
        return awaits(waiter, task)

    async def waits() -> None:
        await wait(task)

    task = asyncio.create_task(look())
    waiter = asyncio.create_task(waits())
    seen = await task
    waiter.cancel()
    await asyncio.wait({waiter})
    return seen


@pytest.mark.parametrize("wait", [_directly, _with_a_bound, _shielded, _shielded_with_a_bound])
async def test_who_waits_for_one_task_waits_for_it_alone(wait: Callable[[Task], Awaitable[None]]) -> None:
    assert await _seen_from(wait) is Awaits.ALONE


@pytest.mark.parametrize("wait", [_for_the_first, _gathered])
async def test_who_waits_for_several_waits_for_each_among_others(wait: Callable[[Task], Awaitable[None]]) -> None:
    assert await _seen_from(wait) is Awaits.AMONG


async def test_a_group_waits_for_its_tasks_among_others() -> None:
    async def look() -> Awaits:
        await asyncio.sleep(0.01)
        return awaits(waiter, group_task[0])

    async def waits() -> None:
        async with asyncio.TaskGroup() as group:
            group_task.append(group.create_task(look()))

    group_task: list[Task] = []
    waiter = asyncio.create_task(waits())
    await waiter
    assert group_task[0].result() is Awaits.AMONG


@pytest.mark.parametrize("wait", [_for_something_else, _for_what_the_task_does_not_give, _grouped])
async def test_who_waits_for_something_else_does_not_wait_for_the_task(
    wait: Callable[[Task], Awaitable[None]],
) -> None:
    assert await _seen_from(wait) is Awaits.NOT


async def test_who_runs_waits_for_nothing() -> None:
    running = asyncio.current_task()
    assert running is not None
    other = asyncio.create_task(asyncio.sleep(0))
    assert awaits(running, other) is Awaits.NOT
    await other
