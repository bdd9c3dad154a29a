"""Background: what an engine runs side by side. The first that fails ends all of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

from semel.broker.answers import is_explained
from semel.port import RpcError

log = logging.getLogger("semel.engine")


def blames_nobody(failure: BaseException) -> bool:
    """Whether what an engine ends with says why, so that no event in hand comes into it: an error of ours, or of a broker."""
    return is_explained(failure) or isinstance(failure, RpcError)


class Background:
    """`died`: called at once where it ends with what no error explains, while all events in hand still are."""

    def __init__(self, died: Callable[[], None]) -> None:
        self.failure: BaseException | None = None
        self._died = died
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        # Those that somebody of us has ended.
        self._ends: set[asyncio.Task[None]] = set()
        self._context: Context | None = None

    def begin(self) -> None:
        """What is spawned from now on is of this context; an agent may have an event in hand where it is."""
        self._context = copy_context()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name, context=self._context and self._context.copy())
        self._tasks.append(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        expected = task in self._ends
        self._ends.discard(task)
        if not task.cancelled():
            exc = task.exception()
            if exc is not None:
                self.fail(exc)
        elif not expected and not self._stop.is_set():
            self.fail(RuntimeError(f"the engine's task {task.get_name()!r} was cancelled, and not by the engine"))

    def end(self, task: asyncio.Task[None]) -> None:
        """Cancel one of them. Whoever else does ends the engine."""
        if task in self._tasks:
            self._ends.add(task)
        task.cancel()

    def fail(self, exc: BaseException) -> None:
        """Stop with this error, if there was none before."""
        if self.failure is None:
            self.failure = exc
            if not blames_nobody(exc):
                self._died()
            if not is_explained(exc):
                log.error("the engine stops on an unexpected error", exc_info=exc)
        self._stop.set()

    def stop(self) -> None:
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    async def until_stopped(self) -> None:
        """Raises what failed."""
        await self._stop.wait()
        if self.failure is not None:
            raise self.failure

    async def cancel(self) -> None:
        """End all that runs."""
        tasks = list(self._tasks)
        for task in tasks:
            self.end(task)
        await asyncio.gather(*tasks, return_exceptions=True)
