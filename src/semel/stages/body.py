"""Body: runs an agent's own code over a lane, again and again until the lane is closed (protocol rule 5)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Generator
from functools import partial
from typing import Any

from semel.errors import HandlingError, StaleIncarnation
from semel.hand import Hand, in_hand
from semel.plan import AgentKind
from semel.stages.agent import TURN_S, Lane
from semel.stages.stream import LaneStream

log = logging.getLogger("semel.agent")

# A body that its incarnation has left behind may take this long to notice; the next one does not wait longer.
LEAVE_S = 0.2
CLOSE_S = 0.5


async def run(lane: Lane) -> None:
    """Until the lane is closed: a body that failed, that returned or whose incarnation is over is followed by another."""
    idle_failures = 0
    body: asyncio.Task[None] | None = None
    try:
        while not lane.closed:
            lane.over.clear()
            hand = lane.hand
            body = asyncio.create_task(_Steps(lane, _one_run(lane, hand)), name=f"agent {lane.plan.name}")
            over = asyncio.create_task(lane.over.wait())
            await asyncio.wait({body, over}, return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            await _cancelled(body, LEAVE_S)
            if lane.hand is not hand or not body.done():
                continue
            await lane.give_back()
            error = None if body.cancelled() else body.exception()
            if isinstance(error, StaleIncarnation):
                continue
            if error is not None and not isinstance(error, Exception):
                raise error
            if lane.slice is not None and error is not None:
                idle_failures = 0
                lane.failed(error, hand)
            elif hand.holding:
                # It returned with an event in hand: that event is done.
                try:
                    lane.complete(hand)
                    lane.release()
                except Exception as exc:
                    lane.failed(exc, hand)
            elif not lane.closed:
                lane.release()
                idle_failures += 1
                pause = min(0.1 * 2**idle_failures, 10.0)
                log.error("agent %s ended without an event in hand; it starts again in %.1f s", lane.plan.name, pause,
                          exc_info=error)  # fmt: skip
                await lane.host.clock.sleep(pause)
    finally:
        if body is not None:
            await _cancelled(body, CLOSE_S)


async def _cancelled(body: asyncio.Task[None], wait_s: float) -> None:
    if not body.done():
        body.cancel()
        await asyncio.wait({body}, timeout=wait_s)
    if body.done() and not body.cancelled():
        body.exception()  # looked at, whatever it is: a body that is over has nobody else to tell


class _Steps(Coroutine[Any, Any, None]):
    """A body, whose lane is told when each step of it begins and ends: between the two the loop is held."""

    def __init__(self, lane: Lane, body: Coroutine[Any, Any, None]) -> None:
        self._lane = lane
        self._body = body

    def send(self, value: Any) -> Any:
        self._lane.step_begins()
        try:
            return self._body.send(value)
        finally:
            self._lane.step_ends()

    def throw(self, *exc: Any) -> Any:
        self._lane.step_begins()
        try:
            return self._body.throw(*exc)
        finally:
            self._lane.step_ends()

    def close(self) -> None:
        self._body.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._body.__await__()


async def _one_run(lane: Lane, hand: Hand) -> None:
    in_hand.set(hand)
    if lane.plan.kind is AgentKind.STREAM:
        await _run_stream(lane, hand)
    else:
        await _run_function(lane, hand)


async def _run_stream(lane: Lane, hand: Hand) -> None:
    """A generator's results are emitted where it yields them; what is refused is raised there."""
    running = lane.plan.run(LaneStream(lane) if lane.make_stream is None else lane.make_stream())
    if not hasattr(running, "__anext__"):
        await running
        return
    step = running.__anext__
    throw = getattr(running, "athrow", None)
    deliver = lane.on_result or partial(lane.emit, hand)
    try:
        while True:
            found = await step()
            while True:
                try:
                    waiting = deliver(found)
                    if waiting is not None:
                        await waiting
                    break
                except HandlingError as exc:
                    if throw is None:
                        raise
                    found = await throw(exc)
    except StopAsyncIteration:
        return
    finally:
        close = getattr(running, "aclose", None)
        if close is not None:
            await close()


async def _run_function(lane: Lane, hand: Hand) -> None:
    """What `LaneStream` does, with the agent's function in the loop: no generator stands between it and the lane."""
    host, run = lane.host, lane.plan.run
    awaits = lane.plan.kind is AgentKind.COROUTINE
    monotonic, begin, finish, emit = host.clock.monotonic, lane.begin, lane.finish, lane.emit
    while True:
        s = await lane.next_slice(hand)
        turn_ends = monotonic() + TURN_S
        for value in lane.admit(s, hand):
            begin(hand)
            try:
                result: Any = run(value)
                if awaits:
                    result = await result
                waiting = emit(hand, result)
                if waiting is not None:
                    await waiting
                finish(hand)
            except Exception as exc:
                lane.failed(exc, hand)
                break
            if monotonic() > turn_ends or host.gate_closed:
                turn_ends = await lane.pause(hand, turn_ends)
        else:
            lane.end_slice(hand)
        await lane.let_go()
