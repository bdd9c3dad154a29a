"""Agent loop: runs an agent's own code over a runner, again and again until the runner is closed (protocol rule 5)."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any

from semel.errors import HandlingError, described
from semel.plan import AgentKind
from semel.stages.agent.coroutine_driver import CoroutineDriver
from semel.stages.agent.failure_log import traced
from semel.stages.agent.handler_thread import HandlerThread
from semel.stages.agent.runner import AgentRunner
from semel.stages.agent.stream import EventStream
from semel.stages.agent.turns import TURN_S
from semel.state.event_context import EventContext, current_context
from semel.state.store import StoreError

log = logging.getLogger("semel.agent")

# A body that its incarnation has left behind may take this long to notice; the next one does not wait longer.
LEAVE_S = 0.2
CLOSE_S = 0.5
# After so many results the clock is looked at.
LOOKS_EVERY = 8
_LIBRARY = str(Path(os.__file__).parent)
_NOT_THE_AGENTS = (str(Path(asyncio.__file__).parent), str(Path(__file__).parents[2]))


async def run(runner: AgentRunner) -> None:
    """Until the runner is closed: a body that failed, that returned or whose incarnation is over is followed by another.

    Whatever a body ends with while its run is alive is the failure of what it had in hand, and nothing else: a cancellation
    that the engine did not ask for, SystemExit, an error of another run. What it returns with is done.
    """
    idle_failures = 0
    body: asyncio.Task[Any] | None = None
    driver: CoroutineDriver | None = None
    reported: CoroutineDriver | None = None
    # Bodies that did not end with their run. They may still be cleaning up.
    left_behind: dict[asyncio.Task[Any], CoroutineDriver] = {}
    try:
        while not runner.closed:
            runner.over.clear()
            runner.heard = runner.misuse = None
            context = runner.context
            driver = CoroutineDriver(_one_run(runner, context), partial(runner.step_begins, context), runner.step_ends)
            runner.code = driver.coroutine
            context.variables = copy_context()
            context.body = body = asyncio.create_task(
                driver, name=f"agent {runner.plan.name}", context=context.variables
            )
            over = asyncio.create_task(runner.over.wait())
            await asyncio.wait({body, over}, return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            ended = body.done()
            await _cancelled(body, LEAVE_S)
            if not body.done():
                left_behind[body] = driver
                body.add_done_callback(lambda done: _gone(left_behind, done))
            if not body.done() or driver.suspended:
                _say_left_behind(runner, driver)
                reported = driver
            if runner.context is not context or not ended:
                continue
            error = _error_of(body, runner)
            if runner.misuse is not None:
                runner.set_aside(context)
            if error is not None and isinstance(error, runner.services.interrupts):
                raise error
            if runner.heard is not None and runner.unit is None:
                idle_failures = 0
            elif error is not None and runner.at_record:
                idle_failures = 0
                runner.failed(error, context)
            elif context.holding:
                # It returned with an event in hand: that event is done.
                idle_failures = 0
                try:
                    runner.returns(context)
                except Exception as exc:
                    runner.failed(exc, context)
            elif not runner.closed:
                runner.release()
                idle_failures += 1
                runner.failed_starts += 1
                runner.start_error = "" if error is None else described(error)[:300]
                pause = min(0.1 * 2**idle_failures, 10.0)
                log.error("agent %s ended without an event in hand; it starts again in %.1f s", runner.plan.name, pause,
                          exc_info=error and traced(error))  # fmt: skip
                await runner.services.clock.sleep(pause)
            await runner.turns.give_back()
    finally:
        if body is not None:
            await _cancelled(body, CLOSE_S)
            if driver is not None and driver is not reported and (not body.done() or driver.suspended):
                _say_left_behind(runner, driver)
            if not body.done() and driver is not None:
                left_behind[body] = driver
        for zombie, driver in list(left_behind.items()):
            driver.to_suspend = True
            await _cancelled(zombie, CLOSE_S)


async def _cancelled(body: asyncio.Task[Any], wait_s: float) -> None:
    if not body.done():
        body.cancel()
        await asyncio.wait({body}, timeout=wait_s)
    if body.done():
        _look_at(body)


def _gone(left_behind: dict[asyncio.Task[Any], CoroutineDriver], body: asyncio.Task[Any]) -> None:
    left_behind.pop(body, None)
    _look_at(body)


def _look_at(body: asyncio.Task[Any]) -> None:
    """At how it ended, whatever it is: a body that is over has nobody else to tell."""
    if not body.cancelled():
        body.exception()


def _error_of(body: asyncio.Task[Any], runner: AgentRunner) -> BaseException | None:
    """What a body that is done failed with, if it did."""
    try:
        returned = body.result()
    except BaseException as exc:
        return exc
    if type(returned) is _Exit:
        return returned.error
    if returned is None:
        return None
    return HandlingError(
        f"agent {runner.plan.name!r} iterates over its stream and returned {returned!r:.80}, which goes nowhere; yield results "
        "inside the loop"
    )


def _say_left_behind(runner: AgentRunner, driver: CoroutineDriver) -> None:
    log.warning(
        "agent %s does not end when its run does: its code swallows CancelledError or waits in a way that cannot be cancelled, "
        "at %s. It is left behind, and nothing that it does counts", runner.plan.name, place(driver.coroutine),
    )  # fmt: skip


def stands_at(runner: AgentRunner) -> str:
    """Where an agent's code stands: in its thread, or as `place` says."""
    frame = None if runner.thread is None else runner.thread.frame
    where = own = ""
    while frame is not None:
        name = frame.f_code.co_filename
        # Outwards, up to where the engine called it.
        if name.startswith(_NOT_THE_AGENTS[1]):
            break
        at = f"{name}:{frame.f_lineno} ({frame.f_code.co_name})"
        where = where or at
        if not own and not name.startswith(_LIBRARY) and "site-packages" not in name:
            own = at
        frame = frame.f_back
    return own or where or place(runner.code)


def place(coroutine: Any) -> str:
    """Where an agent's code stands: its innermost frame that is no library's, else that is neither the engine's nor asyncio's."""
    at = coroutine
    where = own = ""
    while at is not None:
        frame = getattr(at, "cr_frame", None) or getattr(at, "ag_frame", None) or getattr(at, "gi_frame", None)
        if frame is not None and not frame.f_code.co_filename.startswith(_NOT_THE_AGENTS):
            where = f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
            if not frame.f_code.co_filename.startswith(_LIBRARY) and "site-packages" not in frame.f_code.co_filename:
                own = where
        at = getattr(at, "cr_await", None) or getattr(at, "ag_await", None) or getattr(at, "gi_yieldfrom", None)
        if type(at).__name__ == "async_generator_asend":
            # It does not name its generator.
            at = next((referent for referent in gc.get_referents(at) if inspect.isasyncgen(referent)), None)
    return own or where or "an unknown place"


class _Exit:
    """What asyncio would not keep in a task, but raise out of the loop: SystemExit and KeyboardInterrupt."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _one_run(runner: AgentRunner, context: EventContext) -> Any:
    current_context.set(context)
    context.thread = get_ident()
    try:
        if runner.plan.kind is AgentKind.STREAM:
            return await _run_stream(runner, context)
        if runner.plan.in_threads:
            return await _run_in_thread(runner, context)
        return await _run_function(runner, context, runner.plan.run, awaits=runner.plan.kind is AgentKind.COROUTINE)
    except BaseException as exc:
        runner.leave_if_forked(exc)
        if not isinstance(exc, (SystemExit, KeyboardInterrupt)) or isinstance(exc, runner.services.interrupts):
            raise
        return _Exit(exc)


async def _run_stream(runner: AgentRunner, context: EventContext) -> Any:
    """A generator's results are emitted where it yields them; what is refused is raised there."""
    running = runner.plan.run(
        EventStream(runner, context) if runner.make_stream is None else runner.make_stream(context)
    )
    if not hasattr(running, "__anext__"):
        if inspect.isawaitable(running):
            return await running
        if not hasattr(running, "__aiter__"):
            raise HandlingError(
                f"agent {runner.plan.name!r} was given the stream and gave {running!r:.80}, which is neither awaited nor "
                "iterated over; declare it with async def, and iterate: `async for event in stream:`"
            )
        running = aiter(running)
    step = running.__anext__
    throw = getattr(running, "athrow", None)
    deliver = runner.on_result or partial(runner.emit, context)
    monotonic = runner.services.clock.monotonic
    turn_ends, delivered = monotonic() + TURN_S, 0
    try:
        while True:
            try:
                result = await step()
            except StopAsyncIteration:
                return None
            while True:
                try:
                    waiting = deliver(result)
                    if waiting is not None:
                        await runner.opening(waiting)
                    delivered += 1
                    if delivered % LOOKS_EVERY == 0 and monotonic() > turn_ends:
                        # One event may have results without end.
                        runner.lets_go = True
                        await asyncio.sleep(0)
                        runner.lets_go = False
                        turn_ends = monotonic() + TURN_S
                    break
                except HandlingError as exc:
                    if throw is None:
                        raise
                    try:
                        result = await throw(exc)
                    except StopAsyncIteration:
                        return None
    finally:
        close = getattr(running, "aclose", None)
        if close is not None:
            # A generator that yields once more instead of ending has nothing more to say.
            try:
                await close()
            except RuntimeError as exc:
                log.debug("agent %s: %s", runner.plan.name, exc)


async def _run_in_thread(runner: AgentRunner, context: EventContext) -> None:
    thread = runner.thread = HandlerThread(f"agent {runner.plan.name}")
    loop = asyncio.get_running_loop()

    def store_failed(error: StoreError) -> None:
        # The loop hears it before the call's result.
        loop.call_soon_threadsafe(runner.services.store_failed, error)

    context.store_failed = store_failed
    try:
        await _run_function(runner, context, partial(thread.call, context, runner.plan.run), awaits=True)
    finally:
        if thread.busy:
            log.warning(
                "agent %s does not end when its run does: its thread is still at %s. It is left behind, and nothing that it does "
                "counts", runner.plan.name, stands_at(runner),
            )  # fmt: skip
        thread.shutdown()


async def _run_function(runner: AgentRunner, context: EventContext, run: Callable[[Any], Any], *, awaits: bool) -> None:
    """What `EventStream` does, with the agent's function in the loop: no generator stands between it and the runner."""
    epoch, monotonic = runner.services.epoch, runner.services.clock.monotonic
    begin, finish, emit = runner.begin, runner.finish, runner.emit
    while True:
        unit = await runner.next_unit(context)
        turn_ends = monotonic() + TURN_S
        for value in runner.admit(unit, context):
            begin(context)
            try:
                result: Any = run(value)
                if awaits:
                    result = await result
                waiting = emit(context, result)
                if waiting is not None:
                    await runner.opening(waiting)
                finish(context)
            except Exception as exc:
                runner.failed(exc, context)
                break
            if monotonic() > turn_ends or epoch.closed:
                turn_ends = await runner.pause(context, turn_ends)
        else:
            runner.end_unit(context)
        await runner.turns.let_go()
