"""A worker that dies at any step of the protocol loses nothing and doubles nothing."""

from __future__ import annotations

import pytest

from semel.runtime.failpoints import NAMES
from tests.unit.harness import World

# The one that is left out is passed only by a worker that stops in order with a transaction open.
POINTS = [name for name in NAMES if name != "abort.before_end"]
# Those that are passed at every epoch.
OFTEN = [name for name in POINTS if name.startswith(("barrier", "commit"))]
CASES = [(point, 1) for point in POINTS] + [(point, 3) for point in OFTEN]


async def test_a_worker_does_all_of_its_input_once(world: World) -> None:
    world.pay_many(300)
    worker = world.start()
    await world.drained()
    world.check()
    await worker.stop()


@pytest.mark.parametrize("store", ["kept", "lost"])
@pytest.mark.parametrize("point, nth", CASES)
async def test_a_worker_killed_at_a_failpoint_is_replaced_without_loss_or_repetition(
    world: World, point: str, nth: int, store: str
) -> None:
    world.slow_network()
    world.pay_many(100)
    if point.startswith("restore"):
        # There must be something to restore.
        first = world.start()
        await world.drained()
        first.kill()
        await first.gone()
        world.lose_store("w1")
        world.pay_many(20)
    worker = world.start()
    reached = worker.kill_at(point, nth)
    other = None
    for turn in range(200):
        if reached.is_set():
            break
        world.pay_many(2)
        await world.clock.sleep(0.05)
        if turn in (20, 60, 100) and point not in OFTEN:
            # Somebody else comes and goes, so that the group has something to do.
            if other is None:
                other = world.start("w2")
            else:
                await other.stop()
                other = None
    assert reached.is_set(), f"{point} was never passed"
    await worker.gone()
    if store == "lost":
        world.lose_store("w1")
    world.pay_many(30)
    world.start()
    await world.drained(within_s=120)
    world.check()
