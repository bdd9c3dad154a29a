"""Timeouts in the time in which the loop ran."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref

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


def test_a_loop_that_is_closed_while_somebody_looks_is_let_go() -> None:
    """Of an app that is run again and again, as in tests, each loop was kept, with all that its tasks held."""

    async def look() -> weakref.ref[asyncio.AbstractEventLoop]:
        times = looptime.running()
        times.watch()
        times.begin()
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(look())
    gc.collect()
    assert loop() is None
