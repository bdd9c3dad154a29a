"""Timeouts in the time in which the loop ran."""

from __future__ import annotations

import asyncio
import math

import pytest

from semel.runtime import looptime


class Still(looptime.LoopTime):
    """A clock that nothing but timers moves."""

    def now(self) -> float:
        return 100.0


async def test_a_timeout_too_short_for_the_clock_of_the_loop_is_over_at_once() -> None:
    """It was asked for again at the same moment, for ever."""
    timeout = looptime.timeout_at(math.nextafter(100.0, math.inf))
    timeout._time = Still()
    with pytest.raises(TimeoutError):
        async with timeout:
            assert timeout._timer is None
            await asyncio.sleep(1)
