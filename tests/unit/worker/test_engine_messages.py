"""What is said of surroundings that are not as they should be, so that a person knows what to do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import orjson
import pytest

from semel import Dedup, Pipeline, Table, Topic
from semel.codes import Code
from semel.dedup import header
from semel.errors import ConfigError, RecoveryError, TopicChanged
from semel.partitioner import partition_of
from semel.port import TP, Producer, RpcLost, TopicInfo
from semel.runtime.settings import EngineSettings
from semel.state import positions
from semel.testing.broker import Call, Fault, MemoryBroker, delay, lose_request, refuse, unsent
from semel.worker.reset import reset
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
    broker = MemoryBroker(world.cluster, "feeder")
    await broker.start()
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


async def stopped(world: World) -> None:
    """The app has worked, and its worker is stopped and out of the group."""
    world.pay_many(30)
    worker = world.start()
    await world.drained()
    await worker.stop()
    await world.clock.sleep(15)


async def at_rest(world: World) -> MemoryBroker:
    """As `stopped`; the broker is for who resets it."""
    await stopped(world)
    broker = MemoryBroker(world.cluster, "reset")
    await broker.start()
    return broker


@pytest.mark.parametrize("right", ["Delete", "Create"])
async def test_a_reset_that_lacks_a_right_on_its_last_topic_changes_nothing(world: World, right: str) -> None:
    await stopped(world)
    before = {name: topic.id for name, topic in world.cluster.topics().items()}
    last = f"{APP}-dedup-changelog"

    def script(call: Call) -> Fault | None:
        named = [*call.args.get("names", ())] if call.api == "DeleteTopics" else []
        named += [tp.topic for tp in call.args.get("before", ())] if call.api == "DeleteRecords" else []
        created = [spec.name for spec in call.args.get("specs", ())] if call.api == "CreateTopics" else []
        return refuse(29) if last in (named if right == "Delete" else created) else None

    broker = MemoryBroker(world.cluster, "reset")
    await broker.start()
    world.cluster.faults.script(script)
    with pytest.raises(ConfigError, match=f"Grant {right} on the topics"):
        await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
    assert {name: topic.id for name, topic in world.cluster.topics().items()} == before
    world.start("w2")
    world.pay_many(10)
    await world.drained()
    world.check()
    await broker.close()


async def test_what_a_reset_asked_for_to_learn_its_rights_makes_no_topic_when_it_arrives_late(world: World) -> None:
    """Simulation seed 14003313: the changelog of a table was made with Kafka's defaults, by which state is deleted."""
    await stopped(world)
    log = f"{APP}-balances-changelog"
    first, second = MemoryBroker(world.cluster, "first"), MemoryBroker(world.cluster, "second")
    await first.start()
    await second.start()
    late = world.cluster.faults.add("CreateTopics", delay(there_s=3), when=lambda call: call.client == "first")
    # So that the late one arrives after the topic is deleted, and before it is made anew.
    between = world.cluster.faults.add("CreateTopics", delay(there_s=1.5), when=lambda _: deleted(world))
    with pytest.raises(RpcLost):
        await reset(world.plan(), EngineSettings(), first, world.clock, "earliest", say=lambda _: None)
    await reset(world.plan(), EngineSettings(), second, world.clock, "earliest", say=lambda _: None)
    assert (late.hits, between.hits) == (1, 1)
    assert world.cluster.topics()[log].configs["cleanup.policy"] == "compact"
    world.start("w2")
    world.pay_many(10)
    await world.drained()
    await first.close()
    await second.close()


async def test_a_deletion_of_a_reset_that_arrives_late_deletes_nothing_that_was_made_since(world: World) -> None:
    await stopped(world)
    first, second = MemoryBroker(world.cluster, "first"), MemoryBroker(world.cluster, "second")
    await first.start()
    await second.start()
    late = world.cluster.faults.add("DeleteTopics", delay(there_s=5))
    with pytest.raises(RpcLost):
        await reset(world.plan(), EngineSettings(), first, world.clock, "earliest", say=lambda _: None)
    await reset(world.plan(), EngineSettings(), second, world.clock, "earliest", say=lambda _: None)
    made = {name: topic.id for name, topic in world.cluster.topics().items()}
    world.start("w2")
    await world.clock.sleep(10)
    world.pay_many(10)
    await world.drained()
    assert late.hits == 1 and {name: topic.id for name, topic in world.cluster.topics().items()} == made
    await first.close()
    await second.close()


async def test_a_reset_that_is_broken_off_after_the_source_grew_keeps_workers_away(world: World) -> None:
    """The positions grow, and are not deleted: what keeps workers away stands in them."""
    await stopped(world)
    world.cluster.add_partitions("payments", 3)
    broker = MemoryBroker(world.cluster, "reset")
    await broker.start()
    world.cluster.faults.script(lambda call: lose_request() if call.api == "CreateTopics" and deleted(world) else None)
    resetting = asyncio.create_task(
        reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
    )
    await world.until(lambda: deleted(world))
    await world.clock.sleep(1)
    resetting.cancel()
    world.cluster.faults.clear()
    world.lose_store("w1")
    late = world.start()
    async with asyncio.timeout(30):
        error = await late.gone()
    assert isinstance(error, RecoveryError) and "semel reset" in str(error)
    await broker.close()


def deleted(world: World) -> bool:
    return f"{APP}-balances-changelog" not in world.cluster.topics()


async def test_a_reset_that_may_not_delete_leaves_the_app_as_it_was(world: World) -> None:
    await stopped(world)
    broker = MemoryBroker(world.cluster, "reset")
    await broker.start()
    world.cluster.faults.script(lambda call: refuse(29) if call.api == "DeleteTopics" else None)
    with pytest.raises(ConfigError, match="Grant Delete on the topics"):
        await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
    world.cluster.faults.clear()
    world.start("w2")
    world.pay_many(10)
    await world.drained()
    world.check()
    marks = [
        r.value for log in world.cluster.committed(f"{APP}-positions") for r in log if r.key == positions.RESETTING_KEY
    ]
    assert marks[-1] is None
    await broker.close()


def refuses(code: int, *, at: str = "", applied: bool = False) -> Callable[[Call], Fault | None]:
    """Deletions of that topic (of any) are answered so."""
    return lambda call: (
        refuse(code, applied=applied) if call.api == "DeleteTopics" and (not at or at in call.args["names"]) else None
    )


def ids_of(world: World) -> dict[str, str]:
    return {name: topic.id for name, topic in world.cluster.topics().items()}


async def refused_to_start(world: World) -> None:
    late = world.start("w3")
    async with asyncio.timeout(30):
        error = await late.gone()
    assert isinstance(error, RecoveryError) and "semel reset" in str(error)


@pytest.mark.parametrize("applied", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("code", [Code.REQUEST_TIMED_OUT, Code.NOT_CONTROLLER, Code.UNKNOWN_SERVER_ERROR])
async def test_a_deletion_that_may_have_been_done_keeps_workers_away(world: World, code: int, applied: bool) -> None:
    broker = await at_rest(world)
    world.cluster.faults.script(refuses(code, applied=applied))
    with pytest.raises(RecoveryError, match=r"(?s)balances-changelog.*run `semel reset` again"):
        await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
    world.cluster.faults.clear()
    await refused_to_start(world)
    await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
    world.start("w2")
    world.pay_many(10)
    await world.drained()
    await broker.close()


@pytest.mark.parametrize(
    ("code", "way_out"), [(Code.TOPIC_DELETION_DISABLED, "delete.topic.enable"), (Code.POLICY_VIOLATION, "policy")]
)
async def test_a_deletion_that_brokers_forbid_changes_nothing(world: World, code: int, way_out: str) -> None:
    broker = await at_rest(world)
    before = ids_of(world)
    world.cluster.faults.script(refuses(code))
    with pytest.raises(ConfigError, match=way_out) as refused:
        await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
    assert "nothing is changed" in str(refused.value)
    world.cluster.faults.clear()
    assert ids_of(world) == before
    world.start("w2")
    world.pay_many(10)
    await world.drained()
    world.check()
    await broker.close()


async def test_a_reset_that_may_not_delete_its_second_topic_says_that_workers_wait_for_it(world: World) -> None:
    broker = await at_rest(world)
    world.cluster.faults.script(refuses(Code.TOPIC_AUTHORIZATION_FAILED, at=f"{APP}-dedup-changelog"))
    with pytest.raises(ConfigError, match="Grant Delete on the topics") as refused:
        await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
    assert "nothing is changed" not in str(refused.value) and "refuse to start" in str(refused.value)
    world.cluster.faults.clear()
    await refused_to_start(world)
    await broker.close()


async def test_a_repeated_reset_that_may_not_delete_lifts_no_mark_of_the_one_before(world: World) -> None:
    """The one before it has deleted a log: that nothing has changed is not so."""
    broker = await at_rest(world)
    world.cluster.faults.script(refuses(Code.REQUEST_TIMED_OUT, applied=True))
    with pytest.raises(RecoveryError):
        await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
    world.cluster.faults.clear()
    world.cluster.faults.script(refuses(Code.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(ConfigError, match="Grant Delete on the topics") as refused:
        await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
    assert "nothing is changed" not in str(refused.value) and "refuse to start" in str(refused.value)
    world.cluster.faults.clear()
    await refused_to_start(world)
    await broker.close()


@pytest.mark.parametrize("right", ["Delete", "Create"])
@pytest.mark.parametrize("why", ["fewer partitions", "growth is denied"])
async def test_a_right_on_the_positions_is_tried_before_anything_is_changed(world: World, why: str, right: str) -> None:
    broker = await at_rest(world)
    if why == "fewer partitions":
        world.cluster.delete_topics(["payments"])
        world.cluster.create_topic("payments", 1)
    else:
        world.cluster.add_partitions("payments", 3)
    before, name = ids_of(world), f"{APP}-positions"
    written = [len(log) for log in world.cluster.committed(name)]

    def script(call: Call) -> Fault | None:
        named = [*call.args.get("names", ())] if call.api == "DeleteTopics" else []
        named += [tp.topic for tp in call.args.get("before", ())] if call.api == "DeleteRecords" else []
        created = [spec.name for spec in call.args.get("specs", ())] if call.api == "CreateTopics" else []
        denied = name in (named if right == "Delete" else created) or call.api == "CreatePartitions"
        return refuse(Code.TOPIC_AUTHORIZATION_FAILED) if denied else None

    world.cluster.faults.script(script)
    with pytest.raises(ConfigError, match=f"(?s){name}.*Grant {right} on the topics"):
        await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
    assert ids_of(world) == before and [len(log) for log in world.cluster.committed(name)] == written
    await broker.close()


@pytest.mark.parametrize("missing", ["balances-changelog", "positions", "dlq"])
async def test_the_right_to_create_a_topic_that_is_missing_is_tried_before_anything_is_changed(
    world: World, missing: str
) -> None:
    broker = await at_rest(world)
    name = f"{APP}.dlq" if missing == "dlq" else f"{APP}-{missing}"
    world.cluster.delete_topics([name])
    before = ids_of(world)

    def script(call: Call) -> Fault | None:
        created = [spec.name for spec in call.args.get("specs", ())] if call.api == "CreateTopics" else []
        return refuse(Code.TOPIC_AUTHORIZATION_FAILED) if name in created else None

    world.cluster.faults.script(script)
    with pytest.raises(ConfigError, match=f"(?s){name}.*Grant Create on the topics"):
        await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
    assert ids_of(world) == before
    await broker.close()


class Behind(MemoryBroker):
    """Asked once whether they are gone it says so; after that, for `behind_s`, it is one that still shows the topics deleted."""

    def __init__(self, world: World, behind_s: float) -> None:
        super().__init__(world.cluster, "reset")
        self._world, self._behind_s = world, behind_s
        self._old: dict[str, TopicInfo] = {}
        self._configs: dict[str, dict[str, str]] = {}
        self._until: float | None = None

    async def remember(self, names: list[str]) -> None:
        self._old, self._configs = await super().topics(names), await super().topic_configs(names)

    async def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]:
        found = await super().topics(names)
        asked = {n: info for n, info in self._old.items() if n in (names or ())}
        if self._until is None:
            if asked and not asked.keys() & found.keys():
                self._until = self._world.clock.monotonic() + self._behind_s
            return found
        return found | asked if self._world.clock.monotonic() < self._until else found

    async def topic_configs(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        there = [n for n in names if n in self._world.cluster.topics()]
        return {n: self._configs[n] for n in names if n not in there} | await super().topic_configs(there)


@pytest.mark.parametrize("behind_s", [20, 1_000])
async def test_the_id_of_a_deleted_topic_is_never_written_into_the_positions(world: World, behind_s: float) -> None:
    """A broker that is behind shows it for a while."""
    await (await at_rest(world)).close()
    broker = Behind(world, behind_s)
    await broker.start()
    await broker.remember(world.plan().state_logs)
    if behind_s > 60:
        with pytest.raises(RecoveryError, match=r"(?s)balances-changelog.*`semel reset` again"):
            await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
        await refused_to_start(world)
    else:
        await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
        world.start("w2")
        world.pay_many(10)
        await world.drained()
    await broker.close()


async def test_a_deletion_that_is_answered_and_not_done_is_found_out(world: World) -> None:
    """A broker may answer that it does not know the topic: whether it is gone is looked at."""
    await (await at_rest(world)).close()

    class Forgetful(MemoryBroker):
        async def delete_topics(self, topics: Sequence[TopicInfo]) -> None:
            del topics

    broker = Forgetful(world.cluster, "reset")
    await broker.start()
    with pytest.raises(RecoveryError, match=r"(?s)balances-changelog.*do not show it.*`semel reset` again"):
        await reset(world.plan(), EngineSettings(), broker, world.clock, "earliest", say=lambda _: None)
    await refused_to_start(world)
    await broker.close()
