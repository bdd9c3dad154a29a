"""What the program's code may cancel on a worker's event loop, and out of which run of an agent something came."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context

import pytest

from semel.errors import HandlingError
from semel.stages.agent.coroutine_driver import CoroutineDriver
from semel.state.event_context import EventContext, current_context
from semel.worker.background import Background
from semel.worker.own_tasks import BodyTask, OwnTask, run_of, task_factory


@pytest.fixture(autouse=True)
async def on_a_workers_loop() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(task_factory)
    yield
    loop.set_task_factory(before)


def nothing() -> None: ...


async def forever() -> None:
    await asyncio.Event().wait()


def body(context: EventContext) -> asyncio.Task[None]:
    """A run of an agent's code, as the agent loop starts it."""
    variables = copy_context()
    variables.run(current_context.set, context)
    context.body = task = asyncio.create_task(CoroutineDriver(forever(), nothing, nothing), context=variables)
    return task


def run() -> EventContext:
    return EventContext(lambda error: None, lambda: None)


async def test_a_task_of_the_engine_is_cancelled_by_the_engine_only() -> None:
    background = Background(nothing)
    # Of our coroutines, and not of the program's.
    task = background.spawn(background.until_stopped(), "commits")
    assert type(task) is OwnTask
    with pytest.raises(HandlingError, match="cancels task 'commits' of its worker"):
        task.cancel()
    with pytest.raises(HandlingError, match="of its worker"):
        # What is asyncio's in between does it for the program.
        asyncio.gather(task).cancel()
    await asyncio.sleep(0)
    assert not task.cancelling()
    await background.cancel()
    assert task.cancelled() and background.failure is None


async def test_what_the_program_starts_it_cancels_whoevers_code_that_is() -> None:
    background = Background(nothing)
    mine = asyncio.create_task(background.until_stopped())
    grouped = asyncio.gather(background.until_stopped())
    given = background.spawn(forever(), "a coroutine of the program's")
    assert OwnTask not in (type(mine), type(given))
    for task in (mine, grouped, given):
        task.cancel()
    done = await asyncio.gather(mine, grouped, given, return_exceptions=True)
    assert [type(end) for end in done] == [asyncio.CancelledError] * 3


async def test_what_the_program_awaits_is_cancelled_with_it() -> None:
    background = Background(nothing)
    task = background.spawn(background.until_stopped(), "asked")

    async def awaits() -> None:
        await task

    waiting = asyncio.create_task(awaits())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled() and task.cancelled()


async def test_an_agents_code_is_cancelled_by_its_own_libraries_and_not_by_another_agents() -> None:
    mine, other = run(), run()
    own, others = body(mine), body(other)
    assert type(own) is BodyTask

    async def in_a_task_of_the_agents() -> None:
        with pytest.raises(HandlingError, match="of its worker"):
            others.cancel()
        own.cancel()

    assert mine.body is not None
    inherited = copy_context()
    inherited.run(current_context.set, mine)
    await asyncio.create_task(in_a_task_of_the_agents(), context=inherited)
    await asyncio.wait({own})
    assert own.cancelled() and not others.cancelling()
    # Where no agent's code runs, it is the engine's, or a library's callback.
    others.cancel()
    await asyncio.wait({others})


@pytest.mark.parametrize("of_agent", [True, False])
def test_what_is_raised_out_of_the_loop_is_known_to_come_out_of_an_agents_run(of_agent: bool) -> None:
    loop = asyncio.new_event_loop()
    context = run()

    async def exits() -> None:
        sys.exit(3)

    async def begins() -> None:
        if of_agent:
            current_context.set(context)
        await asyncio.create_task(exits())

    def raised(call: Callable[[], object]) -> BaseException:
        with pytest.raises(SystemExit) as caught:
            call()
        return caught.value

    began = loop.create_task(begins())
    error = raised(lambda: loop.run_until_complete(began))
    assert run_of(error.__traceback__) is (context if of_agent else None)
    # The loop goes on, and who awaits the task has its error.
    raised(lambda: loop.run_until_complete(began))
    assert began.exception() is error
    loop.close()
