"""Awaiting: whether one task waits for another, and for nothing else: who may ask for an agent's next event.

Asking says that the event before is done. Only the code that handles it knows that: the agent's own, or a task that the agent
waits for meanwhile, as `wait_for` makes one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from enum import Enum
from functools import partial
from typing import Any

# Wrappers in wrappers (`wait_for(shield(...))`) are this deep at most, for us.
_DEPTH = 8


class Awaits(Enum):
    NOT = "it does not wait for the task"
    AMONG = "it waits for the task among others"
    ALONE = "it waits for the task"


def awaits(waiter: asyncio.Task[Any], task: asyncio.Future[Any]) -> Awaits:
    """How `waiter` waits for `task`: by `await` or `wait_for`, or among others by `wait`, `gather`, a TaskGroup."""
    waits_for = getattr(waiter, "_fut_waiter", None)
    if waits_for is None:
        return Awaits.NOT
    ways = {id(task): (task, Awaits.ALONE)}
    looked_at = set[int]()
    for _ in range(_DEPTH):
        for future, how in [pair for key, pair in ways.items() if key not in looked_at]:
            if future is waits_for:
                return how
            looked_at.add(id(future))
            for callback in _callbacks(future):
                alone = how is Awaits.ALONE and _of_one(callback)
                for behind in _futures(callback):
                    ways.setdefault(id(behind), (behind, Awaits.ALONE if alone else Awaits.AMONG))
    return Awaits.NOT


def _callbacks(future: asyncio.Future[Any]) -> Iterator[Any]:
    for entry in getattr(future, "_callbacks", None) or ():
        yield entry[0] if isinstance(entry, tuple) else entry


def _of_one(callback: Any) -> bool:
    """Whether who waits by this callback waits for one future only: `wait_for` of Python 3.11, `shield`."""
    function = callback.func if isinstance(callback, partial) else callback
    return getattr(function, "__name__", "") in ("_release_waiter", "_inner_done_callback")


def _futures(callback: Any) -> Iterator[asyncio.Future[Any]]:
    """The futures that a callback of asyncio's may resolve, as it holds them: arguments, cells, or what it is a method of."""
    held: list[Any] = []
    if isinstance(callback, partial):
        held += callback.args
        callback = callback.func
    for cell in getattr(callback, "__closure__", None) or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:
            # Not filled yet.
            continue
    owner = getattr(callback, "__self__", None)
    # A TaskGroup's future, or the task that is woken.
    held += [owner, getattr(owner, "_on_completed_fut", None)]
    yield from (value for value in held if isinstance(value, asyncio.Future))
