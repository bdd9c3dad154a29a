"""How much of the worker's time readers get: views run on the loop that commits, so they take turns and pay for them.

Each step of an answer is measured. What it took is a debt that is worked off at `share` of the passing time; while it is
above `BURST_S` the next step waits, in order. So a thousand readers slow each other, and the pipeline by no more than the
share, whatever they ask for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

SHARE = 0.2  # a fifth: some 500 rows a second by their keys, and commits that are hardly later
HEALTH_SHARE = 0.05  # kept for connecting and for probes, however many readers wait: 250 connections a second
BURST_S = 0.02  # at once: a person's page is not kept waiting
REQUEST_S = 0.0004  # what reading a request and writing its answer takes beside what is measured
THREAD_BYTES = 32 << 10  # made into JSON or a page in a thread from this size on: a millisecond's work

P = ParamSpec("P")
T = TypeVar("T")


class Budget:
    """A share of the loop's time, between 0 and 1."""

    def __init__(self, share: float = SHARE, now: Callable[[], float] = time.perf_counter) -> None:
        self._share = share
        self._now = now
        self._debt = 0.0
        self._at = now()
        self._queue = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="semel-web")

    async def turn(self, seconds: float = 0.0) -> None:
        """Wait for it; it costs `seconds` in any case."""
        async with self._queue:
            over = self._owed() - BURST_S
            if over > 0:
                await asyncio.sleep(over / self._share)
            self.spend(seconds)

    def spend(self, seconds: float) -> None:
        self._owed()
        self._debt += seconds

    async def run(self, step: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """One step on the loop, when it is its turn."""
        await self.turn()
        began = self._now()
        try:
            return step(*args, **named)
        finally:
            self.spend(self._now() - began)

    async def make(self, step: Callable[[], T], size: int) -> T:
        """A step that touches nothing of the engine's and makes some `size` bytes: in the thread where that takes long."""
        if size < THREAD_BYTES:
            return await self.run(step)
        await self.turn()

        def timed() -> tuple[T, float]:
            began = time.thread_time()
            return step(), time.thread_time() - began

        made, took = await asyncio.get_running_loop().run_in_executor(self._thread, timed)
        self.spend(took)
        return made

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _owed(self) -> float:
        now = self._now()
        self._debt = max(0.0, self._debt - (now - self._at) * self._share)
        self._at = now
        return self._debt
