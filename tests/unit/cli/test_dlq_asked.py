"""What is said where no letter fits what was asked for."""

from __future__ import annotations

from pathlib import Path

from semel import Retry
from semel.cli.dlq_asked import done_already
from semel.dead_letters.decisions import Selection
from semel.dead_letters.operator import Operator, Why
from semel.runtime.settings import EngineSettings
from tests.unit.proof.rig import History


async def test_a_group_that_is_not_there_is_told_from_one_that_is_done_with(tmp_path: Path) -> None:
    history = History(
        tmp_path, partitions=1, commit_interval_ms=10, pipeline={"retry": Retry(1, fatal=(RuntimeError,))}
    )
    world = history.world
    worker = world.start()
    await world.until_running(worker)
    by = Operator(await world.connected("dlq"), world.clock, world.plan(), EngineSettings())
    await by.open()
    assert await done_already(by, Selection(group="x")) == "payments.dlq holds no dead letter of payments"
    world.pay("a1", 1, fails=-1)
    await world.drained()
    [group] = [letter.fingerprint async for letter in by.selected(Selection())]
    said = await done_already(by, Selection(group="NONEXISTENT"))
    assert f"no letter of a group 'NONEXISTENT' of payments. There is {group}; `semel dlq ls`" in said
    await by.mark_all("drop", Selection(), Why("ada", "a test"))
    assert "done with or archived (1 dropped); say --again" in await done_already(by, Selection(group=group))
    assert "NONEXISTENT" in await done_already(by, Selection(group="NONEXISTENT"))
    assert "holds no letter that fits" in await done_already(by, Selection(group=group, key=b"nobody"))
    await history.world.close()
