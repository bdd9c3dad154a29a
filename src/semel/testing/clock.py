"""Virtual time for asyncio: a loop that jumps to its next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import heapq
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

DEFAULT_START = 1_760_000_000.0

process: ContextVar[str] = ContextVar("process")
"""Whose work this is: set it before a worker's first task is made, and every task and timer of that worker inherits it."""


class Deadlock(RuntimeError):
    """Every task waits for another one: no timer is set, no thread works, nothing can ever happen again."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time moves only when nothing is ready to run, and then straight to the next timer.

    Work given to `run_in_executor` (hence `asyncio.to_thread`) takes no virtual time. Where no task can ever run
    again, `Deadlock` is raised out of the running loop instead of hanging.

    A *process* (see `process`) can be frozen, as SIGSTOP does: nothing of it runs until it is thawed, and then
    everything that has become due meanwhile runs at once. `disturb` makes turns take time and run out of order.
    """

    # asyncio's own, untyped there: what may run now, what may run later, and how much of that is cancelled.
    _ready: deque[Any]
    _scheduled: list[Any]
    _timer_cancelled_count: int
    _stopping: bool
    _clock_resolution: float
    _selector: selectors.BaseSelector
    _process_events: Callable[[list[Any]], None]

    def __init__(self, *, socket_patience_s: float = 0.0) -> None:
        """`socket_patience_s`: real time in which a socket may speak before virtual time moves on."""
        self._now = 0.0
        self.jobs = 0
        self._socket_patience_s = socket_patience_s
        self._frozen: dict[str, list[Any]] = {}
        self._rng: random.Random | None = None
        self._turn_s = 0.0
        self._shuffled = 0.0
        super().__init__()

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move time on without running what falls due in between until the loop turns again."""
        self._now += seconds

    def disturb(self, rng: random.Random, *, turn_s: float = 0.0, shuffled: float = 0.0) -> None:
        """From now on each turn takes up to `turn_s`, and a share `shuffled` of them runs in any order."""
        self._rng, self._turn_s, self._shuffled = rng, turn_s, shuffled

    # -- processes

    def freeze(self, name: str) -> None:
        self._frozen.setdefault(name, [])

    def thaw(self, name: str) -> None:
        self._ready.extend(self._frozen.pop(name, ()))

    def frozen(self, name: str) -> bool:
        return name in self._frozen

    # -- the loop

    def _run_once(self) -> None:
        """One turn, as asyncio's own does it, but for time, and without asking the selector when nobody can speak."""
        ready, scheduled = self._ready, self._scheduled
        if self._timer_cancelled_count > 100 and 2 * self._timer_cancelled_count > len(scheduled):
            for timer in scheduled:
                timer._scheduled = not timer._cancelled
            scheduled[:] = [timer for timer in scheduled if not timer._cancelled]
            heapq.heapify(scheduled)
            self._timer_cancelled_count = 0
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        if not ready and not self._stopping:
            if self.jobs or len(self._selector.get_map()) > 1:
                self._listen()
            elif scheduled:
                self._now = max(self._now, scheduled[0]._when)
            else:
                raise Deadlock("every task waits, and neither a timer nor a thread is left to wake one")
        due = self._now + self._clock_resolution
        while scheduled and scheduled[0]._when < due:
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            # What is a hair early (the resolution) moves time on too: who waits for that moment may ask again, for ever.
            self._now = max(self._now, timer._when)
            ready.append(timer)
        if self._rng is not None:
            self._disturbed(self._rng)
        pop, frozen = ready.popleft, self._frozen
        for _ in range(len(ready)):
            handle = pop()
            if handle._cancelled:
                continue
            if frozen:
                held = frozen.get(handle._context.get(process, ""))
                if held is not None:
                    held.append(handle)
                    continue
            handle._run()

    def _listen(self) -> None:
        """Nobody can run: wait for threads and sockets. While a thread works for a task, time stands still."""
        wait = None if self.jobs or not self._scheduled else self._socket_patience_s
        heard = self._selector.select(wait)
        if wait is not None and not heard and not self._ready:
            self._now = max(self._now, self._scheduled[0]._when)
        self._process_events(heard)

    def _disturbed(self, rng: random.Random) -> None:
        if self._turn_s:
            self._now += rng.random() * self._turn_s
        if self._shuffled and len(self._ready) > 1 and rng.random() < self._shuffled:
            rng.shuffle(self._ready)

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
