"""Loop time: the time in which the event loop ran.

Code that blocks holds the loop, and whatever is answered meanwhile lies in a socket until the loop runs again. By then a
timeout of the wall clock is over, and would end the wait before anybody has looked. Requests and commits are bounded by loop
time instead: what was answered is heard, however long the loop was held. (What has become of a member or a transaction
meanwhile is for the broker to say; no timeout of ours is a proof of anything.)
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from weakref import ReferenceType, WeakKeyDictionary, ref

# The loop is looked at this often while somebody waits. A look that is late by more than LATE_S says how long it was held;
# a busy loop is late by a few milliseconds.
TICK_S = 0.05
LATE_S = 0.02
# What is less of a timeout is none: added to the time of the loop it may be rounded away, and be waited for for ever.
LEAST_S = 1e-6
# Where nobody's timeout depends on it, so often will do.
COARSE_S = 0.5


class LoopTime:
    """Of one event loop; measured while somebody waits in a `timeout`, or between `begin` and `end`."""

    __slots__ = ("__weakref__", "_due", "_held_s", "_timer", "_waiting", "_watching")

    def __init__(self) -> None:
        self._held_s = 0.0
        self._due: float | None = None
        # It knows its loop, which this must not keep.
        self._timer: ReferenceType[asyncio.TimerHandle] | None = None
        self._waiting = self._watching = 0

    def now(self) -> float:
        return asyncio.get_running_loop().time() - self.held_s

    @property
    def held_s(self) -> float:
        """For how long the loop has been held while somebody looked."""
        return self._held_s + self._late(asyncio.get_running_loop().time())

    def begin(self) -> None:
        self._waiting += 1
        if self._waiting == 1:
            self._next()

    def end(self) -> None:
        self._waiting -= 1

    def watch(self) -> None:
        """As `begin`, for who only wants to know `held_s`, to half a second."""
        self._watching += 1
        if self._due is None:
            self._next()

    def unwatch(self) -> None:
        self._watching -= 1

    def _next(self) -> None:
        """Look again; what the loop is late now is counted."""
        loop = asyncio.get_running_loop()
        self._held_s += self._late(loop.time())
        timer = self._timer() if self._timer is not None else None
        if timer is not None:
            timer.cancel()
        self._due = loop.time() + (TICK_S if self._waiting else COARSE_S)
        self._timer = ref(loop.call_at(self._due, self._tick))

    def _tick(self) -> None:
        if self._waiting or self._watching:
            self._next()
        else:
            self._held_s += self._late(asyncio.get_running_loop().time())
            self._due = self._timer = None

    def _late(self, now: float) -> float:
        if self._due is None:
            return 0.0
        late = now - self._due
        return late if late > LATE_S else 0.0


_times: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopTime] = WeakKeyDictionary()


def running() -> LoopTime:
    """Of the running loop."""
    loop = asyncio.get_running_loop()
    times = _times.get(loop)
    if times is None:
        times = _times[loop] = LoopTime()
    return times


def now() -> float:
    """Seconds in which the running loop ran; comes with `timeout_at`."""
    return running().now()


class Timeout:
    """As `asyncio.timeout_at`, in loop time."""

    __slots__ = ("_inner", "_time", "_timer", "_when")

    def __init__(self, when: float) -> None:
        self._when = when
        self._time = running()
        self._inner = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Timeout:
        await self._inner.__aenter__()
        self._time.begin()
        self._look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if self._timer is not None:
            self._timer.cancel()
        self._time.end()
        return await self._inner.__aexit__(kind, exc, trace)

    def extend(self, seconds: float) -> None:
        """Wait longer by so much."""
        self._when += seconds

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        left = self._when - self._time.now()
        if left < LEAST_S:
            self._inner.reschedule(loop.time())
        else:
            self._timer = loop.call_later(left, self._look)


def timeout_at(when: float) -> Timeout:
    return Timeout(when)


def timeout(seconds: float) -> Timeout:
    return Timeout(now() + seconds)
