"""Handler thread: where a plain function of `Pipeline(threads=N)` runs, so that it may block while the event loop goes on.

Each run of an agent's code has a thread of its own. A call cannot be ended from outside: one that outlives its run goes on, and
its thread ends with it; its run being over, it finds no table, and nobody waits for what it returns.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread, get_ident
from types import FrameType
from typing import Any

from semel.runtime import forks
from semel.state.event_context import EventContext

_Call = tuple["Future[Any]", Callable[[], Any]]
# The interpreter's own way to look at another thread.
_frames = sys._current_frames  # pyright: ignore[reportPrivateUsage]


class HandlerThread(Executor):
    """One thread. It keeps no process from ending. `busy`: it is in a call, or one waits for it."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self.busy = False

    async def call(self, context: EventContext, function: Callable[[Any], Any], value: Any) -> Any:
        """What the function returns or raises; meanwhile the tables in hand are the thread's."""
        loop_thread, variables, generation = get_ident(), copy_context(), forks.generation

        def called() -> tuple[Any, BaseException | None]:
            context.thread = get_ident()
            result, error = None, None
            try:
                result = function(value)
            except BaseException as exc:
                # A future would not take all of them: StopIteration, SystemExit.
                error = exc
            if forks.generation != generation:
                # Nobody waits for it there.
                forks.leave(error)
            return result, error

        self.busy = True
        result, error = await asyncio.get_running_loop().run_in_executor(self, variables.run, called)
        context.thread = loop_thread
        if error is not None:
            raise error
        return result

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """It ends when the call that it is in has returned, which is not waited for."""
        self._calls.put(None)

    @property
    def frame(self) -> FrameType | None:
        """Where it stands, while it is in a call."""
        return _frames().get(self._thread.ident or 0) if self.busy else None

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if future.set_running_or_notify_cancel():
                answer = function()
                self.busy = False
                future.set_result(answer)
            else:
                self.busy = False
            # Not kept until the next one comes.
            del call, future, function
