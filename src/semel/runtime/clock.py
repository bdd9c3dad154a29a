"""The real clock and real randomness."""

from __future__ import annotations

import asyncio
import random
import time


class SystemClock:
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SystemRandomness:
    random = staticmethod(random.random)
