"""What is parked when a pipeline is deployed anew, in another shape."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from semel import Retry
from tests.unit.harness import APP, World, payments_pipeline


@pytest.mark.parametrize("declared", [{}, {"concurrency": 5}], ids=["one-at-a-time", "side-by-side"])
async def test_an_agent_whose_function_is_renamed_goes_on_with_what_is_parked(
    tmp_path: Path, declared: dict[str, Any]
) -> None:
    """A pipeline has one agent, whatever that is called."""
    world = World(tmp_path, partitions=1)
    down = [True]

    async def before(payment: object) -> None:
        if down[0]:
            raise ConnectionError("the database is down")

    world.work.before = before
    retry = Retry(first_delay=timedelta(milliseconds=10), then="park")
    world.pipeline = payments_pipeline(world.work, style="coroutine", retry=retry, **declared)
    for n in range(20):
        world.pay(f"account-{n % 4}", 1)
    worker = world.start()
    await world.until_running(worker)
    await world.until(lambda: world.committed_positions()[0].parked == 20)
    await worker.stop()

    world.pipeline = payments_pipeline(world.work, style="coroutine", retry=retry, **declared)
    world.pipeline.agent.__name__ = "under_another_name"
    down[0] = False
    worker = world.start()
    await world.until(lambda: world.committed_positions()[0].parked == 0)
    world.check()
    assert not any(world.cluster.committed(f"{APP}.dlq"))
    await world.close()
