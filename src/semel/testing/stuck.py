"""What keeps records from being done: said when a test has waited for them long enough."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import semel
from semel.display.counting import counted
from semel.port import TP, Clock
from semel.stages.agent.work_queue import parked_in
from semel.state.task import Cursor
from semel.testing.worker import MemoryWorker

_ENGINE = str(Path(semel.__file__).parent)
_ASYNCIO = str(Path(asyncio.__file__).parent)


def progress(workers: Iterable[MemoryWorker]) -> object:
    """Differs whenever something came of the work, or is to come at another time: a worker that got on in the group, an attempt,
    a commit, events that wait for a rate limit."""
    return [
        (
            worker.client,
            worker.engine.membership,
            [
                (
                    p,
                    t.state,
                    {**t.committed.topics},
                    [
                        (c.position, c.retry_state.offset, c.retry_state.count, parked_in(c), next_due(c))
                        for c in t.cursors.values()
                    ],
                )
                for p, t in worker.engine.tasks.items()
            ],
            [round(at, 3) for at in _limited(worker)],
        )
        for worker in workers
    ]


def retries_due(workers: Iterable[MemoryWorker]) -> list[float]:
    """The monotonic times of the attempts to come, and of the events that a rate limit lets wait."""
    workers = list(workers)
    cursors = [c for worker in workers for task in worker.engine.tasks.values() for c in task.cursors.values()]
    limited = [at for worker in workers for at in _limited(worker)]
    return [*limited, *(due for c in cursors for due in (c.due, next_due(c)) if due is not None)]


def _limited(worker: MemoryWorker) -> list[float]:
    """The monotonic times at which events may be handled that wait for a rate limit."""
    limiters = [agent.limiter for agent in worker.engine.agents]
    return [at for limiter in limiters if limiter is not None and (at := limiter.next_at) is not None]


def next_due(cursor: Cursor) -> float | None:
    """When a parked event is tried next."""
    return cursor.parked.next_due() if cursor.parked is not None else None


def described(workers: Iterable[MemoryWorker], undone: Mapping[TP, tuple[int, int]], clock: Clock) -> list[str]:
    lines = [
        f"{tp.topic}[{tp.partition}]: the record at offset {at} is not done"
        + (f", nor are the {end - at - 1} after it" if end - at > 1 else "")
        for tp, (at, end) in undone.items()
    ]
    for worker in workers:
        engine = worker.engine
        for runner in engine.runners:
            event = runner.event_in_hand()
            if event is not None:
                lines.append(
                    f"agent {runner.plan.name!r} is still handling {event.topic}[{event.partition}]@{event.offset}, "
                    f"{event.value!r:.200}"
                )
            if runner.misuse is not None:
                lines.append(str(runner.misuse))
        waiting = [why for why in (engine.waiting_for, engine.paused_by) if why]
        if engine.membership is None:
            waiting.append("it is no member of the group")
        lines += [f"worker {worker.name}: {why}" for why in waiting]
        lines += [
            f"{cursor.tp.topic}[{cursor.tp.partition}]@{cursor.retry_state.offset} failed "
            f"{counted(cursor.retry_state.count, 'time')}; it is tried again in {cursor.due - clock.monotonic():.1f} s"
            for task in engine.tasks.values()
            for cursor in task.cursors.values()
            if cursor.due > clock.monotonic()
        ]
        lines += [
            f"worker {worker.name}: events wait for the rate limit, the next for {max(0.0, at - clock.monotonic()):.1f} s"
            for at in _limited(worker)
        ]
        lines += [
            f"{cursor.tp.topic}[{cursor.tp.partition}]: {counted(parked_in(cursor), 'event')} parked"
            + (f"; the next is tried again in {max(0.0, due - clock.monotonic()):.1f} s" if due is not None else "")
            for task in engine.tasks.values()
            for cursor in task.cursors.values()
            if parked_in(cursor)
            for due in (next_due(cursor),)
        ]
    return lines


def handlers() -> list[asyncio.Task[Any]]:
    """The tasks that agents run in."""
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("agent ")]


def places(cancelled: Iterable[asyncio.Task[Any]]) -> list[str]:
    """Where the user's code stood when these tasks were cancelled; nothing for agents that waited for their next event."""
    lines: list[str] = []
    for task in cancelled:
        if not task.done() or not task.cancelled():
            continue
        try:
            task.exception()
        except asyncio.CancelledError as cancelled_error:
            frames = [
                frame
                for frame in traceback.extract_tb(cancelled_error.__traceback__)
                if not frame.filename.startswith(_ASYNCIO)
            ]
            if frames and not frames[-1].filename.startswith(_ENGINE):
                at = frames[-1]
                lines.append(f"it stands in {at.name} ({at.filename}, line {at.lineno}): {at.line}")
    return lines
