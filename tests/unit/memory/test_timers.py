"""The cluster's timers: done in time or before the next request, with no task left behind."""

from __future__ import annotations

import asyncio

import pytest

from semel.memory.timers import Timers
from semel.testing.clock import VirtualClock, run_virtual


def test_what_is_due_is_done_in_order_and_what_is_cancelled_is_not() -> None:
    async def main() -> list[str]:
        clock, done = VirtualClock(), list[str]()
        timers = Timers(clock)
        timers.after(2, lambda: done.append("second"))
        timers.after(1, lambda: done.append("first"))
        timers.after(1.5, lambda: done.append("never")).cancel()
        timers.after(9, lambda: done.append("too late"))
        await clock.sleep(5)
        assert done == []
        timers.run_due()
        return done

    assert run_virtual(main()) == ["first", "second"]


def test_a_waiter_is_woken_by_a_timer_that_was_set_after_it_began_to_wait() -> None:
    async def main() -> None:
        clock = VirtualClock()
        timers = Timers(clock)
        future = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(timers.wait(future, clock.monotonic() + 60))
        await clock.sleep(1)
        timers.after(2, lambda: future.set_result(None))
        assert await waiting
        assert clock.monotonic() == 3.0

    run_virtual(main())


def test_a_wait_ends_at_its_time_and_leaves_no_task() -> None:
    async def main() -> None:
        clock = VirtualClock()
        timers = Timers(clock)
        future = asyncio.get_running_loop().create_future()
        assert not await timers.wait(future, 0.5)
        assert clock.monotonic() == 0.5
        await clock.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


def test_the_exception_of_what_is_waited_for_is_raised() -> None:
    async def main() -> None:
        timers = Timers(VirtualClock())
        future = asyncio.get_running_loop().create_future()
        timers.after(1, lambda: future.set_exception(KeyError("gone")))
        with pytest.raises(KeyError):
            await timers.wait(future)

    run_virtual(main())
