"""What is said of surroundings that are not as they should be, so that a person knows what to do."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta

import orjson
import pytest

from semel import Dedup, Pipeline, Table, Topic
from semel.dedup import header
from semel.errors import ConfigError, TopicChanged
from semel.memory.broker import MemoryBroker
from semel.memory.faults import Call, Fault, refuse, unsent
from semel.partitioner import partition_of
from semel.port import TP, Producer
from semel.worker.view import EngineView
from tests.unit.harness import APP, Payment, World, committed_values

DAY = timedelta(days=1)


def warnings(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and word in r.getMessage()]


@pytest.mark.parametrize("partitions", [1, 2])
async def test_records_without_a_key_under_a_dedup_rule_are_said_once_where_they_can_part(
    world: World, caplog: pytest.LogCaptureFixture, partitions: int
) -> None:
    world.cluster.create_topic("outbox", partitions)
    world.pipeline = Pipeline(
        APP, source=Topic("outbox"), agent=lambda e: e, sink=Topic("settlements"), dedup=Dedup(header("id"), window=DAY)
    )
    for number in range(20):
        tp = TP("outbox", number % partitions)
        world.cluster.write(tp, [(b"k" if number < 10 else None, b"{}")], headers=[("id", b"%d" % number)])
    worker = world.start()
    await world.until(lambda: sum(map(len, committed_values_of(world))) == 20)
    said = warnings(caplog, "without a key")
    if partitions == 1:
        assert said == []
    else:
        [line] = said
        assert "records of outbox" in line and "dedup rule" in line
    await worker.stop()


def committed_values_of(world: World) -> list[list[object]]:
    return (
        [list(records) for records in world.cluster.committed("settlements")]
        if "settlements" in world.cluster.topics()
        else []
    )


async def test_a_row_of_another_partition_names_the_partitioner(world: World) -> None:
    totals = Table("totals", key=str, value=int, default=int)

    def count(event: dict[str, str]) -> None:
        totals[event["account"]] += 1

    world.pipeline = Pipeline(APP, source=Topic("payments"), agent=count, tables=[totals])
    home = partition_of(b"a1", 2)
    world.cluster.write(TP("payments", 1 - home), [(b"a1", orjson.dumps({"account": "a1"}))])
    world.start()
    await world.until(lambda: len(committed_values(world.cluster, f"{APP}.dlq", 1 - home)) == 1)
    [letter] = committed_values(world.cluster, f"{APP}.dlq", 1 - home)
    error = dict(letter.headers)["semel.error"] or b""
    assert b"murmur2" in error and b"partitioner=murmur2_random" in error


async def test_a_group_name_that_another_program_uses_is_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    taken = True

    def script(call: Call) -> Fault | None:
        return refuse(23) if taken and call.api == "JoinGroup" else None

    world.cluster.faults.script(script)
    worker = world.start()
    await world.clock.sleep(10)
    [said] = warnings(caplog, "in use by another program")
    assert repr(APP) in said and "name the pipeline otherwise" in said
    assert "in use by another program" in EngineView(worker.engine).readiness()[1]["group"]
    taken = False
    await world.until_running(worker)
    assert EngineView(worker.engine).readiness()[0]


async def holder_of(world: World, tps: list[TP]) -> tuple[MemoryBroker, Producer]:
    """A transaction that is open in these partitions, with a record in each."""
    broker = await world.connected("feeder")
    producer = await broker.init_producer_id("feeder-7", 600_000)
    await broker.leaders(tps)
    await broker.add_partitions(producer, tps)
    batches: dict[TP, bytes] = {}
    for tp in tps:
        builder = broker.batch_builder(10_000)
        builder.append(None, b"a1", b"{}", ())
        batches[tp] = builder.build(producer, 0)
    await broker.produce(producer, batches)
    return broker, producer


async def test_a_transaction_that_holds_a_source_partition_is_named_after_a_while(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    worker = world.start()
    await world.until_running(worker)
    tp = world.place("a1")
    broker, producer = await holder_of(world, [tp])
    await world.clock.sleep(8)
    assert not warnings(caplog, "open transaction")
    for _ in range(3):
        world.pay("a1", 1)
    await world.clock.sleep(30)
    [said] = warnings(caplog, "open transaction")
    assert "feeder-7" in said and f"payments[{tp.partition}]" in said and "4 records wait" in said
    await broker.end_txn(producer, commit=False)
    await world.drained()
    await broker.close()


@pytest.mark.parametrize("fault", [refuse(29), unsent()])
async def test_a_partition_that_is_held_is_said_also_where_nobody_says_by_whom(
    world: World, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    """Those of another topic are named."""
    world.cluster.create_topic("refunds", 2)
    [agent] = world.plan().agents
    both = replace(agent, sources=(*agent.sources, Topic("refunds", key=str, value=Payment)))
    world.plan = lambda: replace(world.pipeline.plan(), agents=[both])
    worker = world.start()
    await world.until_running(worker)
    refused, named = world.place("a1"), TP("refunds", 0)
    broker, producer = await holder_of(world, [refused, named])

    def script(call: Call) -> Fault | None:
        return fault if call.api == "DescribeProducers" and refused in call.args["tps"] else None

    world.cluster.faults.script(script)
    await world.clock.sleep(30)
    said = {r.args[0]: r.getMessage() for r in caplog.records if "open transaction" in r.getMessage() and r.args}
    assert set(said) == {"payments", "refunds"} and len(warnings(caplog, "open transaction")) == 2
    assert "nobody says whose" in said["payments"] and "feeder-7" not in said["payments"]
    assert "feeder-7" in said["refunds"]
    await world.clock.sleep(60)
    assert len(warnings(caplog, "open transaction")) == 4
    await broker.end_txn(producer, commit=False)
    await broker.close()


async def test_a_source_made_anew_and_shorter_is_not_called_trimmed(world: World) -> None:
    world.pay_many(40)
    worker = world.start()
    await world.drained()
    world.cluster.delete_topics(["payments"])
    world.cluster.create_topic("payments", world.partitions)
    async with asyncio.timeout(30):
        error = await worker.gone()
    assert isinstance(error, TopicChanged)
    assert "was deleted and created again" in str(error) and "retention" not in str(error)


@pytest.mark.parametrize(
    ("api", "right"), [("Metadata", "Describe"), ("DescribeConfigs", "DescribeConfigs"), ("CreateTopics", "Create")]
)
async def test_a_right_on_a_topic_that_is_missing_is_named_as_that(world: World, api: str, right: str) -> None:
    world.cluster.faults.script(lambda call: refuse(29) if call.api == api else None)
    worker = world.start()
    async with asyncio.timeout(30):
        error = await worker.gone()
    assert isinstance(error, ConfigError)
    assert f"grant {right} on the topic" in str(error) and "group" not in str(error)
