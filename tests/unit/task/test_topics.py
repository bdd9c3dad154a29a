"""The topics of an app: how long they are kept, in how many copies, and what becomes of them in somebody else's hands."""

from __future__ import annotations

import asyncio
import random

import pytest

from semel.errors import TopicChanged
from semel.memory.faults import Call
from semel.plan import Plan
from semel.port import TP, TopicSpec
from semel.worker.view import EngineView
from tests.unit.harness import APP, World


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


@pytest.mark.parametrize(
    ("log", "configs", "way"),
    [
        ("balances-changelog", {"cleanup.policy": "delete", "retention.ms": "3600000"}, "cleanup.policy=compact"),
        (
            "journals-changelog",
            {"cleanup.policy": "compact,delete", "retention.bytes": "1000"},
            "cleanup.policy=compact",
        ),
        ("positions", {"cleanup.policy": "compact,delete", "retention.ms": "3600000"}, "cleanup.policy=compact"),
        ("dedup-changelog", {"retention.ms": "3600000"}, "retention.ms=-1"),
    ],
)
@pytest.mark.parametrize("when", ["before the start", "while it runs"])
async def test_state_that_kafka_may_delete_by_itself_stops_the_worker_with_the_way_out(
    world: World, log: str, configs: dict[str, str], way: str, when: str
) -> None:
    world.pay("a1", 10)
    worker = world.start()
    await world.drained()
    if when == "before the start":
        await worker.stop()
    world.cluster.alter_topic(f"{APP}-{log}", configs)
    if when == "before the start":
        worker = world.start()
    async with asyncio.timeout(120):
        error = await worker.gone()
    assert isinstance(error, TopicChanged)
    assert f"{APP}-{log}" in str(error) and "=".join(list(configs.items())[-1]) in str(error) and way in str(error)


async def test_a_log_that_kafka_deletes_nothing_of_is_taken_whatever_its_policy(world: World) -> None:
    world.pay("a1", 10)
    worker = world.start()
    await world.drained()
    await worker.stop()
    world.cluster.alter_topic(f"{APP}-positions", {"retention.ms": "3600000"})
    keeps = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    world.cluster.alter_topic(f"{APP}-balances-changelog", keeps)
    world.pay("a1", 10)
    world.start()
    await world.drained()


async def test_dead_letters_that_kafka_deletes_are_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    worker = world.start()
    await world.until_running(worker)
    await worker.stop()
    world.cluster.alter_topic(f"{APP}.dlq", {"retention.ms": "86400000"})
    world.pay("a1", 10)
    worker = world.start()
    await world.drained()
    await asyncio.sleep(200)
    assert caplog.text.count("retention.ms=86400000: Kafka deletes dead letters") == 1
    assert not worker.over


@pytest.mark.parametrize("seed", range(8))
async def test_topics_that_only_some_brokers_know_yet_are_asked_for_until_all_do(world: World, seed: int) -> None:
    """Two workers start at once on a cluster of which one broker has just come back: each answer may be its."""
    draws = random.Random(seed)
    world.cluster.faults.metadata_delay_s = lambda: draws.choice([0.0, 0.0, 0.3])
    world.pay("a1", 10)
    workers = [world.start("w1"), world.start("w2")]
    await world.until_running(*workers)
    await world.drained()
    # Dead letters hold what the source may hold: its limit was known when their topic was made.
    dead_letters = world.cluster.topics()[workers[0].engine.plan.dead_letter_topic]
    source = world.cluster.topics()["payments"]
    assert int(dead_letters.configs["max.message.bytes"]) > int(source.configs["max.message.bytes"])


async def test_a_log_of_another_size_is_refused_though_a_broker_did_not_know_it_at_first(world: World) -> None:
    await world.clock.sleep(10.0)
    log = f"{APP}-balances-changelog"
    world.cluster.create_topic(log, world.partitions + 1)
    behind_s = 5.0
    world.cluster.faults.metadata_delay_s = lambda: behind_s

    def listen(call: Call) -> None:
        nonlocal behind_s
        if call.api == "CreateTopics":
            behind_s = 0.0

    world.cluster.faults.script(listen)
    worker = world.start()
    async with asyncio.timeout(60):
        error = await worker.gone()
    assert isinstance(error, TopicChanged)
    assert str(error).startswith(
        f"topic '{log}' has {world.partitions + 1} partitions, the source has {world.partitions}"
    )


async def test_logs_that_semel_creates_have_small_segments_that_are_compacted_soon(world: World) -> None:
    worker = world.start()
    await world.until_running(worker)
    for name in worker.engine.plan.logs:
        configs = world.cluster.topics()[name].configs
        assert int(configs["segment.bytes"]) <= 64 << 20
        if name != worker.engine.plan.marks_topic:
            assert configs["cleanup.policy"] == "compact"
            assert float(configs["min.cleanable.dirty.ratio"]) < 0.5
    assert int(world.cluster.topics()[f"{APP}-positions"].configs["segment.bytes"]) <= 4 << 20


async def test_logs_with_segments_of_a_gibibyte_are_named_once_with_what_to_set(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.cluster.create_topic(f"{APP}-positions", world.partitions, {"cleanup.policy": "compact"})
    worker = world.start()
    world.pay("a1", 1)
    await world.drained()
    await worker.engine.topics.ready()
    said = [r.getMessage() for r in caplog.records if "segments of" in r.getMessage()]
    assert (
        len(said) == 1
        and "payments-positions has segments of 1024 MiB" in said[0]
        and "segment.bytes=4194304" in said[0]
    )
    assert world.cluster.topics()[f"{APP}-positions"].configs["segment.bytes"] == str(1 << 30)


async def test_positions_older_than_a_day_do_not_rebuild_the_store(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = world.start("w1"), world.start("w2")
    await world.until_running(first, second)
    world.pay_many(20)
    await world.drained()
    await first.stop()
    await world.clock.sleep(20)
    for _ in range(5):
        world.pay_many(20, trouble=False)
        await world.drained()
    caplog.clear()
    await world.clock.sleep(3 * 3_600)
    again = world.start("w1")
    await world.until_running(again)
    assert not [r for r in caplog.records if "is rebuilt" in r.getMessage()]
    await world.drained()
    world.check()
