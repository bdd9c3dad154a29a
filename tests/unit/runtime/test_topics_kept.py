"""The topics of an app: how long they are kept, in how many copies, and what becomes of them in somebody else's hands."""

from __future__ import annotations

import pytest

from semel.plan import Plan
from semel.port import TP, TopicSpec
from semel.runtime.view import EngineView
from semel.testing.broker import Call
from tests.unit.runtime.harness import APP, World


async def test_a_sink_that_semel_creates_is_kept_for_good(world: World) -> None:
    long_ago = int(world.clock.time() * 1000) - 1000 * 86_400_000
    world.pay("a1", 1, at_ms=long_ago)
    world.start()
    await world.drained()
    configs = world.cluster.topics()["settlements"].configs
    assert (configs["retention.ms"], configs["retention.bytes"]) == ("-1", "-1")
    # By any retention in days, a result of an old event would be gone as soon as it is written: it has the event's time.
    [result] = world.cluster.committed("settlements")[world.place("a1").partition]
    assert result.timestamp == long_ago


async def test_a_sink_that_is_there_keeps_the_retention_it_has(world: World) -> None:
    world.cluster.create_topic("settlements", world.partitions, {"retention.ms": "60000"})
    world.pay("a1", 1)
    world.start()
    await world.drained()
    assert world.cluster.topics()["settlements"].configs["retention.ms"] == "60000"


@pytest.mark.parametrize(("factor", "copies", "in_sync"), [(None, 3, "2"), (1, 1, "1")])
async def test_an_app_has_three_copies_on_three_brokers_and_as_many_as_it_is_told(
    world: World, factor: int | None, copies: int, in_sync: str
) -> None:
    created: list[TopicSpec] = []

    def listen(call: Call) -> None:
        if call.api == "CreateTopics":
            created.extend(call.args["specs"])

    world.cluster.faults.script(listen)
    worker = world.start(replication_factor=factor)
    await world.until_running(worker)
    plan: Plan = worker.engine.plan
    assert {spec.name for spec in created} == {*plan.logs, plan.dead_letter_topic, "settlements"}
    assert {(spec.replication_factor, spec.configs["min.insync.replicas"]) for spec in created} == {(copies, in_sync)}


async def test_what_somebody_writes_into_a_changelog_is_a_row_after_the_next_restore(world: World) -> None:
    first = world.start()
    world.pay("a1", 10)
    await world.drained()
    await first.stop()
    changelog, partition = f"{APP}-balances-changelog", world.place("a1").partition
    [row] = world.cluster.committed(changelog)[partition]
    world.cluster.write(TP(changelog, partition), [(row.key, b"1000")])
    world.lose_store("w1")
    second = world.start()
    await world.until_running(second)
    found = EngineView(second.engine).get("balances", "a1", partition)
    assert found is not None
    assert found.value == 1000
