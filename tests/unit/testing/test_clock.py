"""Virtual time: it jumps where nothing runs, and nowhere else."""

from __future__ import annotations

import asyncio
import time

import pytest

from semel.testing.clock import Deadlock, VirtualClock, run_virtual


def test_an_hour_of_sleep_takes_no_real_time() -> None:
    async def main() -> tuple[float, float]:
        clock = VirtualClock(1000.0)
        await clock.sleep(3600)
        return clock.monotonic(), clock.time()

    start = time.monotonic()
    assert run_virtual(main()) == (3600.0, 4600.0)
    assert time.monotonic() - start < 2


def test_sleepers_wake_in_the_order_of_their_times() -> None:
    async def main() -> list[str]:
        clock, woken = VirtualClock(), list[str]()

        async def sleeper(name: str, seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append(f"{name} at {clock.monotonic():g}")

        await asyncio.gather(sleeper("c", 3), sleeper("a", 1), sleeper("b", 2.5))
        return woken

    assert run_virtual(main()) == ["a at 1", "b at 2.5", "c at 3"]


def test_a_jump_of_the_wall_clock_leaves_monotonic_time_and_other_clocks_alone() -> None:
    async def main() -> None:
        mine, other = VirtualClock(1000.0), VirtualClock(1000.0)
        mine.jump(-300)
        assert (mine.monotonic(), mine.time(), other.time()) == (0.0, 700.0, 1000.0)

    run_virtual(main())


def test_work_in_a_thread_takes_no_virtual_time() -> None:
    async def main() -> None:
        clock = VirtualClock()
        sleeping = asyncio.create_task(clock.sleep(10))
        assert await asyncio.to_thread(lambda: time.sleep(0.05) or "done") == "done"
        assert clock.monotonic() == 0.0
        assert not sleeping.done()
        await sleeping
        assert clock.monotonic() == 10.0

    run_virtual(main())


def test_a_program_in_which_nothing_can_happen_any_more_is_a_deadlock() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run_virtual(main())
