"""What the simulation found, each as the smallest test that shows it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from datetime import timedelta
from pathlib import Path
from typing import Any

from semel.errors import CommitError
from semel.port import TP
from semel.stages.sink.destination import ProducerRecord
from semel.testing.clock import run_virtual
from tests.simulation.choices import Choices
from tests.simulation.storm import Storm
from tests.simulation.watch import watching
from tests.simulation.world import SimulatedWorld
from tests.unit.harness import World


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
        for runner in worker.engine.runners:
            runner.queue.wake.set()
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


def test_who_sent_an_output_and_died_with_its_worker_is_owed_no_answer_and_others_are(tmp_path: Path) -> None:
    """Seed 501159: killed amid its last commit, what is left of the worker drains on, and tells nobody anything by then."""

    async def main() -> None:
        world = SimulatedWorld(
            tmp_path, seed=1, partitions=1, style="stream", window=timedelta(days=7), real=False, commit_interval_ms=10
        )
        try:
            storm = Storm(world, 1, Choices(frozenset()), crashes=0)
            storm.quiet = True
            worker = world.boot("w1")
            await world.until_running(worker)
            reached, _ = worker.hold_at("commit.after_store")
            world.pay("a1")
            await reached.wait()
            # Its last commit waits for the one under way.
            worker.engine.stop()
            await world.clock.sleep(0.01)
            world.note(worker)
            world.crash(worker, "commit.after_store")
            _, told = world.notes["n0"]
            assert not told.done()
            assert [v for v in storm.outcome().violations if "n0" in v.what] == []
            # Of a worker that lives, the same silence is a finding.
            worker.killed = False
            assert [v.what for v in storm.outcome().violations if "n0" in v.what] == [
                "nobody ever heard of the note n0"
            ]
            worker.killed = True
        finally:
            await world.close()

    run_virtual(main())


def test_what_is_sent_after_the_last_epoch_was_cut_fails_when_the_worker_has_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path, partitions=1)
        worker = world.start()
        await world.until_running(worker)
        reached, go = worker.hold_at("commit.after_store")
        world.pay("a1", sleep_ms=50)
        await world.until(lambda: len(world.work.handled) == 1)
        worker.engine.stop()
        await reached.wait()
        told = worker.engine.outbox(ProducerRecord(TP("settlements", 0), None, b"k", b"late", ()))
        go.set()
        assert await worker.gone() is None
        assert isinstance(told.exception(), CommitError)
        await world.close()

    run_virtual(main())


def test_virtual_time_reaches_a_moment_that_lies_less_than_the_clocks_resolution_ahead() -> None:
    """Seed 910836: a runner asked again and again how long a retry had to wait, and time stood still a hair before it."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        due, asked = loop.time() + 1e-10, 0
        while loop.time() < due and asked < 1_000:
            asked += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due - loop.time()):
                    await asyncio.Event().wait()
        return asked

    assert run_virtual(main()) < 5
