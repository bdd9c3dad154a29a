"""Everything in the cluster that happens at a time: sessions, rebalances, transaction timeouts, long polls.

Nothing runs in the background. What is due is done before the next request is looked at, which no
client can tell from its having been done in time; only while a request waits is one timer of the event
loop set, so that it wakes. A cluster nobody talks to leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from contextvars import Context
from typing import Any

from semel.port import Clock


class Timer:
    """Something to be done at a time, unless it is cancelled before."""

    __slots__ = ("action", "due")

    def __init__(self, due: float, action: Callable[[], None]) -> None:
        self.due = due
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Timers:
    """`context`: what is done at a time is nobody's work but the cluster's."""

    def __init__(self, clock: Clock, context: Context | None = None) -> None:
        self._clock = clock
        self._context = context or Context()
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._waiting = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_due = 0.0

    def now(self) -> float:
        return self._clock.monotonic()

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        return self.at(self.now() + seconds, action)

    def at(self, due: float, action: Callable[[], None]) -> Timer:
        timer = Timer(due, action)
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, timer))
        if self._waiting:
            self._set_alarm()
        return timer

    def run_due(self) -> None:
        heap = self._heap
        if not heap or heap[0][0] > self.now():
            return
        while heap and heap[0][0] <= self.now():
            timer = heapq.heappop(heap)[2]
            if timer.action is not None:
                action, timer.action = timer.action, None
                action()

    async def wait(self, future: asyncio.Future[Any], until: float | None = None) -> bool:
        """Wait for the future, at most until a time; False if that came first. The future's exception is raised."""
        if future.done():
            future.result()
            return True
        woken = asyncio.get_running_loop().create_future()

        def wake(_: object = None) -> None:
            if not woken.done():
                woken.set_result(None)

        future.add_done_callback(wake)
        self._waiting += 1
        timer = self.at(until, wake) if until is not None else None
        self._set_alarm()
        try:
            await woken
        finally:
            future.remove_done_callback(wake)
            if timer is not None:
                timer.cancel()
            self._waiting -= 1
            if not self._waiting and self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
        if future.done():
            future.result()
            return True
        return False

    def _set_alarm(self) -> None:
        heap = self._heap
        while heap and heap[0][2].action is None:
            heapq.heappop(heap)
        if not heap:
            return
        due = heap[0][0]
        if self._alarm is not None:
            if self._alarm_due <= due:
                return
            self._alarm.cancel()
        self._alarm_due = due
        after = max(0.0, due - self.now())
        self._alarm = asyncio.get_running_loop().call_later(after, self._ring, context=self._context)

    def _ring(self) -> None:
        self._alarm = None
        self.run_due()
        if self._waiting:
            self._set_alarm()
