"""Views run on the loop that commits: what they take of its time is bounded."""

import asyncio
import threading
import time

import pytest

from semel.web.budget import BURST_S, THREAD_BYTES, Budget


async def test_readers_take_no_more_than_their_share_however_many_they_are():
    budget = Budget(0.2)
    began = time.perf_counter()
    taken = 0.0

    def step():
        nonlocal taken
        until = time.perf_counter() + 0.004
        while time.perf_counter() < until:
            pass
        taken += 0.004

    async def reader():
        while time.perf_counter() - began < 1.0:
            await budget.run(step)

    await asyncio.gather(*(reader() for _ in range(20)))
    passed = time.perf_counter() - began
    # Whoever waits when the time is over still has a turn.
    assert 0.02 < taken <= 0.2 * passed + BURST_S + 0.01
    budget.close()


async def test_a_reader_that_comes_seldom_does_not_wait():
    now = [0.0]
    budget = Budget(0.1, lambda: now[0])
    for _ in range(10):
        now[0] += 1.0
        async with asyncio.timeout(1):
            await budget.turn(BURST_S)
    budget.close()


async def test_those_who_wait_are_served_in_order():
    budget = Budget(0.5)
    budget.spend(BURST_S + 0.02)
    served = []

    async def reader(n):
        await budget.turn(0.005)
        served.append(n)

    await asyncio.gather(*(reader(n) for n in range(8)))
    assert served == list(range(8))
    budget.close()


async def test_a_step_that_fails_is_paid_for_as_well():
    now = [0.0]
    budget = Budget(0.1, lambda: now[0])

    def fails():
        now[0] += 5.0
        raise KeyError("k")

    with pytest.raises(KeyError):
        await budget.run(fails)
    waits = asyncio.create_task(budget.turn())
    await asyncio.sleep(0.05)
    assert not waits.done()
    waits.cancel()
    budget.close()


async def test_a_long_answer_is_made_beside_the_loop_and_paid_for():
    budget = Budget(0.2)
    loop_thread = threading.get_ident()
    assert await budget.make(threading.get_ident, THREAD_BYTES - 1) == loop_thread
    assert await budget.make(threading.get_ident, THREAD_BYTES) != loop_thread

    def takes_long():
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass

    await budget.make(takes_long, THREAD_BYTES)
    waits = asyncio.create_task(budget.turn())
    await asyncio.sleep(0.02)
    assert not waits.done()
    waits.cancel()
    budget.close()
