"""The real clock and real randomness.

`SEMEL_CLOCK_OFFSET_MS` in the environment sets the wall clock off by so much: for `semel chaos`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time


class SystemClock:
    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._offset_s = int(os.environ.get("SEMEL_CLOCK_OFFSET_MS") or 0) / 1000

    def time(self) -> float:
        return time.time() + self._offset_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SystemRandomness:
    random = staticmethod(random.random)
