"""Virtual time for asyncio: a loop that jumps to its next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

DEFAULT_START = 1_760_000_000.0


class Deadlock(RuntimeError):
    """Every task waits for another one: no timer is set, no thread works, nothing can ever happen again."""


class _JumpingSelector(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if self.loop.jobs:
            # A thread works for a task: time stands still until it is done, as if the work took none.
            return super().select(None)
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            if len(self.get_map()) > 1:  # more than the loop's own wake-up pipe: sockets may still speak
                return super().select(None)
            raise Deadlock("every task waits, and neither a timer nor a thread is left to wake one")
        self.loop.advance(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time moves only when nothing is ready to run, and then straight to the next timer.

    Work given to `run_in_executor` (hence `asyncio.to_thread`) takes no virtual time. Where no task can ever run
    again, `Deadlock` is raised out of the running loop instead of hanging.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self.jobs = 0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move time on without running what falls due in between until the loop turns again."""
        self._now += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self.jobs += 1
        future.add_done_callback(self._job_done)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        self.jobs += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self.jobs -= 1

    def _job_done(self, _: object) -> None:
        self.jobs -= 1


class VirtualClock:
    """The port's `Clock` on the running loop; deterministic where that is a `VirtualLoop`.

    Each worker of a test may have one of its own: `jump` moves its wall clock only.
    """

    def __init__(self, start: float = DEFAULT_START, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._wall = start - self._loop.time()

    def monotonic(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        return self._wall + self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or (negative) back; monotonic time does not move."""
        self._wall += seconds


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
