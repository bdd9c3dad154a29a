"""Iteration: an agent's code begins its loop, and asks for the next event (protocol rule 5).

Asking says that the event before is done. Only the code that handles it knows that: the agent's own, or a task that the agent
waits for meanwhile. An event that its code has left otherwise has failed.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

from semel.errors import HandlingError
from semel.stages.agent.awaiting import Awaits, awaits
from semel.stages.agent.coroutine_driver import SuspendedForever
from semel.stages.agent.runner import AgentRunner
from semel.state.event_context import EventContext


async def enter(runner: AgentRunner, context: EventContext) -> None:
    """A body begins to iterate, perhaps anew. Raises where it has left its loop with an event in hand.

    That event has failed: an exception that was swallowed around the loop and a `break` look alike from here, and an
    event is done only when its code is. A body that swallows the end of its run as well is suspended for ever.
    """
    if context.entered:
        await asyncio.sleep(0)
    context.entered = True
    if runner.context is not context or runner.closed:
        if context.told:
            await SuspendedForever()
        context.told = True
    runner.check_run(context)
    if context.holding:
        if runner.turns.usage.stepped_at is None and _awaited(context) is not Awaits.ALONE:
            _refuse(runner, context)
        left = HandlingError(
            f"agent {runner.plan.name!r} left its loop over the stream with this event in hand, and began another loop; "
            "catch what an event may raise inside the loop, or let it out of the agent"
        )
        runner.failed_unheard(left, context)
        raise left
    runner.release()


def asked_elsewhere(runner: AgentRunner, context: EventContext) -> None:
    """Code that runs outside of the agent's steps asks for the next event. HandlingError where that is no sign that the one
    in hand is done: then it is not, and nothing is put down to it.
    """
    runner.check_run(context)
    if context.holding:
        how = _awaited(context)
        if how is Awaits.NOT or (how is Awaits.AMONG and asyncio.current_task() is runner.asker):
            _refuse(runner, context)


def _awaited(context: EventContext) -> Awaits:
    """How the agent's own code waits for the task that runs now."""
    body, task = context.body, asyncio.current_task()
    return Awaits.ALONE if body is None or task is None else awaits(body, task)


def _refuse(runner: AgentRunner, context: EventContext) -> NoReturn:
    misuse = HandlingError(
        f"agent {runner.plan.name!r} asks for its next event in a task beside its own code, and asking says that the one "
        f"before ({runner.where}) is done. Iterate over the stream in the agent's own code, one event after the other; start "
        "what is to run side by side within an event, and await it there"
    )
    runner.misused(misuse, context)
    raise misuse
