"""Own tasks: on a worker's event loop the program's code cancels no task that the worker has started.

A handler that cleans up by `for task in asyncio.all_tasks(): task.cancel()` would end the engine, again at each start. It
gets an error, which is a failed attempt of its event; nothing else notices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import Context
from pathlib import Path
from sys import _getframe as frame_of_caller  # pyright: ignore[reportPrivateUsage]
from types import FrameType, TracebackType
from typing import Any

from semel.errors import HandlingError
from semel.stages.agent.coroutine_driver import CoroutineDriver
from semel.state.event_context import EventContext, current_context

_ASYNCIO = str(Path(asyncio.__file__).parent)
_OURS = str(Path(__file__).parents[1])
_NOT_THE_PROGRAMS = (_ASYNCIO, _OURS)


def by_program(frame: FrameType | None) -> bool:
    """Whether other code than ours comes by this frame, whatever of asyncio's lies between."""
    while frame is not None and frame.f_code.co_filename.startswith(_ASYNCIO):
        frame = frame.f_back
    return frame is not None and not frame.f_code.co_filename.startswith(_OURS)


class OwnTask(asyncio.Task[Any]):
    """One that the worker has started. Its own code, asyncio's on its behalf, and whoever awaits it, cancel it as ever."""

    def cancel(self, msg: Any | None = None) -> bool:
        if by_program(frame_of_caller(1)) and not self.may_be_cancelled():
            raise HandlingError(
                f"the program's code cancels task {self.get_name()!r} of its worker. Cancel the tasks that you have started, and "
                "not all of the event loop's"
            )
        return super().cancel(msg)

    def may_be_cancelled(self) -> bool:
        """It does so itself, or the program awaits it and is itself cancelled."""
        return asyncio.current_task(self.get_loop()) is self or any(
            isinstance(waiter := getattr(entry[0], "__self__", None), asyncio.Task) and not isinstance(waiter, OwnTask)
            for entry in getattr(self, "_callbacks", None) or ()
        )


class BodyTask(OwnTask):
    """One that runs an agent's code. Libraries cancel it for timeouts that the code has set; another agent's code does not."""

    def may_be_cancelled(self) -> bool:
        running = current_context.get()
        return running is None or running.body is self


def task_factory(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any], *,
    context: Context | None = None,
) -> asyncio.Task[Any]:  # fmt: skip
    """For the loop of a worker's process."""
    kind: type[asyncio.Task[Any]] = asyncio.Task
    if isinstance(coro, CoroutineDriver):
        kind = BodyTask
    else:
        code = getattr(coro, "cr_code", None)
        of_program = code is not None and not code.co_filename.startswith(_NOT_THE_PROGRAMS)
        if not of_program and not by_program(frame_of_caller(1)):
            kind = OwnTask
    return kind(coro, loop=loop, context=context)  # type: ignore[arg-type]


def run_of(traceback: TracebackType | None) -> EventContext | None:
    """The run of an agent that has started the task or callback which raised this out of the loop; None where another has."""
    found: EventContext | None = None
    while traceback is not None:
        if traceback.tb_frame.f_code is asyncio.Handle._run.__code__:
            found = traceback.tb_frame.f_locals["self"]._context.get(current_context)
        traceback = traceback.tb_next
    return found
