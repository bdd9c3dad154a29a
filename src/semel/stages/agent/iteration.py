"""Iteration: whether asking for the next event says that the one before is done. Only the code that handles it knows (rule 5)."""

from __future__ import annotations

import asyncio
from typing import Any

from semel.errors import HandlingError
from semel.stages.agent.awaiting import Awaits, awaits
from semel.state.event_context import EventContext


def says_done(context: EventContext, asker: asyncio.Task[Any] | None) -> bool:
    """Whether the event in hand is done because the running task, which is not a step of the agent's own code, asks for the next.

    `asker`: the task that got the event in hand. Where the agent's code waits for several tasks, another one than that tells.
    """
    how = _awaited(context)
    return how is Awaits.ALONE or (how is Awaits.AMONG and asyncio.current_task() is not asker)


def is_awaited(context: EventContext) -> bool:
    """Whether the agent's own code waits for the running task, and for nothing else."""
    return _awaited(context) is Awaits.ALONE


def _awaited(context: EventContext) -> Awaits:
    body, task = context.body, asyncio.current_task()
    return Awaits.ALONE if body is None or task is None else awaits(body, task)


def asked_beside(agent: str, where: str) -> HandlingError:
    return HandlingError(
        f"agent {agent!r} asks for its next event in a task beside its own code, and asking says that the one "
        f"before ({where}) is done. Iterate over the stream in the agent's own code, one event after the other; start "
        "what is to run side by side within an event, and await it there"
    )


def left_its_loop(agent: str) -> HandlingError:
    return HandlingError(
        f"agent {agent!r} left its loop over the stream with this event in hand, and began another loop; "
        "catch what an event may raise inside the loop, or let it out of the agent"
    )
