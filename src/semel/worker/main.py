"""Process: it runs one app until it is told to end. What `semel worker` does."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import signal
from collections.abc import Callable
from typing import Any

from semel import project
from semel.broker.answers import is_explained
from semel.config import Settings
from semel.errors import described
from semel.pipeline import Pipeline
from semel.runtime import forks
from semel.stages.agent.agent_loop import place
from semel.state.event_context import EventContext
from semel.worker import own_tasks
from semel.worker.background import blames_nobody
from semel.worker.deadline import Deadline, Threads, exits_said, leave
from semel.worker.supervised import READ_OF_FAUST, PlainWorker, Supervised

log = logging.getLogger("semel.worker")

# How long what does not end by itself is waited for, at each of three places.
CLOSE_S = 2.0


def run(
    target: Any,
    settings: Settings,
    *,
    instance: str | None = None,
    adopt: bool = False,
    exit_code: Callable[[BaseException | None], int] = bool,
) -> BaseException | None:
    """Run a `Pipeline` or a `semel.App` until it is told to end. Returns what else ended it, said on the log.

    Told to end by SIGTERM or SIGINT, it does so within drain_timeout_ms and a few seconds, whatever the program's code does:
    a process that cannot return is ended with `exit_code` of its failure, and 1 where it stands still.
    """
    settings = project.settings_of(target, settings)
    supervised = _supervised(target, settings, instance=instance, adopt=adopt)
    # Batches allocate many objects that live for an epoch; the default collects every 700 of them.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    deadline = Deadline(settings.drain_timeout_ms / 1000 + CLOSE_S, code=1)
    loop, threads = asyncio.new_event_loop(), Threads()
    asyncio.set_event_loop(loop)
    loop.set_default_executor(threads)
    loop.set_task_factory(own_tasks.task_factory)
    _show_faults()
    try:
        with exits_said():
            failure = _until_served(loop, supervised, deadline, settings.drain_timeout_ms / 1000)
            _end_tasks(loop)
    finally:
        deadline.stop()
        asyncio.set_event_loop(None)
        loop.close()
    if busy := threads.busy(CLOSE_S):
        log.warning(
            "a thread that the program's code started still runs %s; the process ends without it", ", ".join(busy)
        )
        leave(exit_code(failure))
    if failure is None:
        log.info("stopped")
    return failure


def _supervised(target: Any, settings: Settings, *, instance: str | None, adopt: bool) -> Supervised:
    """An App brings its own, so that nobody else needs Faust."""
    if not isinstance(target, Pipeline):
        return target.as_supervised(instance=instance, adopt=adopt)
    if unread := sorted(settings.faust.keys() - READ_OF_FAUST):
        log.warning(
            "[faust] sets %s, which a semel.App reads and nobody else: it has no effect on pipeline %r",
            ", ".join(unread), target.name,
        )  # fmt: skip
    return PlainWorker(target.plan(), settings, instance=instance, adopt=adopt)


def _show_faults() -> None:
    """A fault in native code shows where Python stood, on standard error."""
    if not faulthandler.is_enabled():
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            faulthandler.enable()


def _until_served(
    loop: asyncio.AbstractEventLoop, supervised: Supervised, deadline: Deadline, drain_s: float
) -> BaseException | None:
    """Run it to its end. What asyncio raises out of the loop ends it, too: `sys.exit` in a task of the program's own.

    Where an agent's code has started that task, it does not: that is the event's to fail, or nobody's.
    """
    stop, generation = asyncio.Event(), forks.generation

    def told(*_: Any) -> None:
        # Not by way of the loop: it may be the one that stands still.
        deadline.start()
        supervised.told()
        loop.call_soon_threadsafe(stop.set)

    before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
    serving = loop.create_task(_serve(supervised, stop, drain_s), name="serve")
    raised: BaseException | None = None
    try:
        while True:
            try:
                return loop.run_until_complete(serving) or raised
            except (SystemExit, KeyboardInterrupt) as exc:
                if forks.generation != generation:
                    forks.leave(exc)
                if serving.done():
                    return exc
                if (run_of_agent := own_tasks.run_of(exc.__traceback__)) is not None:
                    _say_exit(exc, run_of_agent)
                    continue
                raised = exc
                supervised.died()
                log.error("a task or callback of the program raised %r; the worker stops. An agent's own %s is a failed "
                          "attempt of its event", exc, type(exc).__name__, exc_info=exc)  # fmt: skip
                deadline.start()
                stop.set()
            except RuntimeError:
                # Asyncio's own words say no more than that. Whoever is to end a worker tells its process.
                if serving.done():
                    raise
                log.error("the program's code has stopped the event loop, and the worker goes on: loop.stop() does not end it, "
                          "SIGTERM does. %s", "; ".join(supervised.in_hand()) or "No agent had anything in hand")  # fmt: skip
            except asyncio.CancelledError as exc:
                _say(exc)
                return exc
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_exit(error: BaseException, run: EventContext) -> None:
    unit, name = run.unit, "an agent" if run.body is None else run.body.get_name()
    where = f"at {unit.where(run.record)}" if unit is not None and run.alive else "with no event in hand"
    log.error("a task or callback that %s has started raised %r, %s. It is a failed attempt of an event where its code awaits "
              "that; the worker goes on", name, error, where, exc_info=error)  # fmt: skip


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still runs, and wait for it no longer than a moment: code may swallow its cancellation."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        _, left = loop.run_until_complete(asyncio.wait(left, timeout=CLOSE_S))
    for task in left:
        log.warning("task %s does not end when it is cancelled, at %s; it is left behind", task.get_name(),
                    place(task.get_coro()))  # fmt: skip
    if not left:
        loop.set_exception_handler(_say_unless_left)
        loop.run_until_complete(loop.shutdown_asyncgens())


def _say_unless_left(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Generators of an agent's code that was left where it stands cannot be closed; that it was left has been said."""
    if isinstance(context.get("exception"), RuntimeError) and "already running" in str(context["exception"]):
        log.debug("%s", context.get("message"))
        return
    loop.default_exception_handler(context)


async def _serve(supervised: Supervised, stop: asyncio.Event, drain_s: float) -> BaseException | None:
    """Until it fails, or `stop` is set; then finish what is in hand within `drain_s`. What it failed with."""
    failure: BaseException | None = None
    supervised.start()
    failing = asyncio.create_task(supervised.wait_failed(), name="failing")
    told = asyncio.create_task(stop.wait(), name="stop")
    try:
        try:
            await asyncio.wait({failing, told}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            supervised.died()
            raise
        if failing.done():
            failure = failing.result()
            if not blames_nobody(failure):
                supervised.died()
            _say(failure)
        else:
            log.info("stopping: finishing what is in hand")
    finally:
        told.cancel()
        failing.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await supervised.stop()
        with contextlib.suppress(BaseException):
            async with asyncio.timeout(CLOSE_S):
                await supervised.close()
    return failure


def _say(failure: BaseException) -> None:
    """What happened, in one line where it is one of ours."""
    if is_explained(failure):
        log.error("%s", failure)
    else:
        log.error("the worker stops on an unexpected error: %s", described(failure), exc_info=failure)
