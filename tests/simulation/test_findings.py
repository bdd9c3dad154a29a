"""What the simulation found, each as the smallest test that shows it."""

from __future__ import annotations

from pathlib import Path

from semel.testing.clock import run_virtual
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
