"""Background: what an engine runs side by side. The first that fails ends all of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from semel.broker.answers import is_explained

log = logging.getLogger("semel.engine")


class Background:
    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.append(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        exc = None if task.cancelled() else task.exception()
        if exc is not None:
            self.fail(exc)

    def fail(self, exc: BaseException) -> None:
        """Stop with this error, if there was none before."""
        if self.failure is None:
            self.failure = exc
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
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
