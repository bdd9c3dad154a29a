"""What the simulation found, each as the smallest test that shows it."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

from semel.testing.clock import run_virtual
from tests.simulation.watch import watching
from tests.unit.runtime.harness import World


def test_a_disk_that_is_full_before_a_new_store_was_ever_written_pauses_the_work(tmp_path: Path) -> None:
    """Seed 7: the numbers of the tables were noted outside of what a failing disk was expected in."""

    async def main() -> None:
        world = World(tmp_path)
        world.pay_many(20)
        worker = world.start()
        worker.fail_writes(1)
        await world.drained()
        world.check()
        assert not worker.over
        await world.close()

    run_virtual(main())


def test_a_commit_that_is_cut_short_by_a_revocation_is_in_doubt_not_under_way_for_ever(tmp_path: Path) -> None:
    """Seed 5599: the next epoch was cut while the last one still stood in COMMITTING."""

    async def main() -> None:
        watch = watching()
        world = World(tmp_path, commit_interval_ms=60_000, handler_timeout_ms=100, revoke_timeout_ms=1_000)
        world.pay("a1")
        world.pay("a1", sleep_ms=3_000)
        first = world.start("w1")
        _, go = first.hold_at("commit.after_produce")
        await world.until(lambda: len(world.work.handled) == 2)
        # The revocation commits what is done, and has to give up on it.
        second = world.start("w2")
        await world.clock.sleep(12)
        go.set()
        world.pay_many(20)
        await world.until_running(first, second)
        await world.drained()
        world.check()
        await world.close()
        assert watch.seen["epoch", "COMMITTING", "UNKNOWN"] == 1
        assert watch.broken == []

    run_virtual(main())


def test_a_stream_that_outlives_its_assignment_ends_without_a_word_on_the_log(tmp_path: Path) -> None:
    """Seed 5642: asyncio complained of an exception that nobody had looked at."""
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        world = World(tmp_path, partitions=1, style="batches")
        worker = world.start("w1")
        await world.until_running(worker)
        # Records arrive in the very moment in which everything is dropped.
        worker.engine.drop_everything()
        for lane in worker.engine.lanes:
            lane.wake.set()
        await world.clock.sleep(0.1)
        worker.engine.start_over()
        world.pay_many(5)
        await world.drained()
        gc.collect()
        asyncio.get_running_loop().set_exception_handler(None)
        await world.close()

    async def listened() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await main()

    run_virtual(listened())
    assert complaints == []
