"""Reset (rule 24): what it moves and says, what keeps workers away meanwhile, and what it leaves as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import orjson
import pytest

from semel.codes import Code
from semel.errors import ConfigError, RecoveryError
from semel.memory.batch import MemoryRecord
from semel.memory.broker import MemoryBroker
from semel.memory.faults import Call, Fault, delay, lose_request, refuse
from semel.partitioner import partition_of
from semel.port import TP, RpcLost, TopicInfo
from semel.state import positions
from tests.unit.harness import APP, World


async def test_a_reset_of_a_source_that_grew_says_what_becomes_of_the_events_from_before(world: World) -> None:
    """They stand where their keys do not belong any more. From the time on at which it grew, all is as ever."""
    await world.settled()
    world.cluster.add_partitions("payments", 5)
    grown_at = datetime.fromtimestamp(world.clock.time() + 0.5, UTC)
    await world.clock.sleep(1)
    accounts = [f"a{n}" for n in range(8)]
    for account in accounts:
        event = {"id": f"new-{account}", "account": account, "amount": 1}
        tp = TP("payments", partition_of(account.encode(), 5))
        world.cluster.write(tp, [(account.encode(), orjson.dumps(event))])
    world.partitions = 5
    said: list[str] = []
    done = len(all_committed(world, "settlements"))
    await world.reset("earliest", say=said.append)
    [text] = [text for text in said if "WrongPartition" in text]
    assert "payments had 2 partitions" in text and "--to TIME" in text
    for to in ("earliest", grown_at):
        if to != "earliest":
            await world.reset(to, say=said.append)
        letters = len(all_committed(world, f"{APP}.dlq"))
        worker = world.start()
        await world.drained()
        await worker.stop()
        await world.clock.sleep(15)
        misplaced = [
            record
            for record in all_committed(world, f"{APP}.dlq")[letters:]
            if b"belongs to partition" in (dict(record.headers)["semel.error"] or b"")
        ]
        assert bool(misplaced) is (to == "earliest")
        done, before = len(all_committed(world, "settlements")), done
    ids = sorted(orjson.loads(r.value or b"")["id"] for r in all_committed(world, "settlements"))
    assert done - before == len(accounts) and ids.count("new-a0") == 2


async def test_a_reset_says_where_outputs_go_before_anybody_begins(world: World) -> None:
    """Else a topic that grows meanwhile is met otherwise by each task."""
    await world.settled()
    await world.reset()
    for log in world.cluster.committed(f"{APP}-positions"):
        last = next(r for r in reversed(log) if r.key == positions.KEY)
        sinks = positions.decode(last.value or b"", "").sinks
        assert sinks["settlements"][1:] == (2, 2)


def all_committed(world: World, topic: str) -> list[MemoryRecord]:
    return [record for log in world.cluster.committed(topic) for record in log]


async def test_a_reset_that_was_broken_off_keeps_workers_from_starting(world: World) -> None:
    await world.settled(40)
    world.cluster.write(TP(f"{APP}-positions", 0), [(positions.RESETTING_KEY, b"{}")])
    for _ in range(2):
        error = await world.fate(world.start())
        assert isinstance(error, RecoveryError) and "semel reset" in str(error)


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
    return await world.connected("reset")


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

    broker = await world.connected("reset")
    world.cluster.faults.script(script)
    with pytest.raises(ConfigError, match=f"Grant {right} on the topics"):
        await world.reset(by=broker)
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
    first, second = await world.connected("first"), await world.connected("second")
    late = world.cluster.faults.add("CreateTopics", delay(there_s=3), when=lambda call: call.client == "first")
    # So that the late one arrives after the topic is deleted, and before it is made anew.
    between = world.cluster.faults.add("CreateTopics", delay(there_s=1.5), when=lambda _: deleted(world))
    with pytest.raises(RpcLost):
        await world.reset(by=first)
    await world.reset(by=second)
    assert (late.hits, between.hits) == (1, 1)
    assert world.cluster.topics()[log].configs["cleanup.policy"] == "compact"
    world.start("w2")
    world.pay_many(10)
    await world.drained()
    await first.close()
    await second.close()


async def test_a_deletion_of_a_reset_that_arrives_late_deletes_nothing_that_was_made_since(world: World) -> None:
    await stopped(world)
    first, second = await world.connected("first"), await world.connected("second")
    late = world.cluster.faults.add("DeleteTopics", delay(there_s=5))
    with pytest.raises(RpcLost):
        await world.reset(by=first)
    await world.reset(by=second)
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
    broker = await world.connected("reset")
    world.cluster.faults.script(lambda call: lose_request() if call.api == "CreateTopics" and deleted(world) else None)
    resetting = asyncio.create_task(world.reset(by=broker))
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
    broker = await world.connected("reset")
    world.cluster.faults.script(lambda call: refuse(29) if call.api == "DeleteTopics" else None)
    with pytest.raises(ConfigError, match="Grant Delete on the topics"):
        await world.reset(by=broker)
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
        await world.reset(by=broker)
    world.cluster.faults.clear()
    await refused_to_start(world)
    await world.reset(by=broker)
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
        await world.reset(by=broker)
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
        await world.reset(by=broker)
    assert "nothing is changed" not in str(refused.value) and "refuse to start" in str(refused.value)
    world.cluster.faults.clear()
    await refused_to_start(world)
    await broker.close()


async def test_a_repeated_reset_that_may_not_delete_lifts_no_mark_of_the_one_before(world: World) -> None:
    """The one before it has deleted a log: that nothing has changed is not so."""
    broker = await at_rest(world)
    world.cluster.faults.script(refuses(Code.REQUEST_TIMED_OUT, applied=True))
    with pytest.raises(RecoveryError):
        await world.reset(by=broker)
    world.cluster.faults.clear()
    world.cluster.faults.script(refuses(Code.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(ConfigError, match="Grant Delete on the topics") as refused:
        await world.reset(by=broker)
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
        await world.reset(by=broker)
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
        await world.reset(by=broker)
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
            await world.reset(by=broker)
        await refused_to_start(world)
    else:
        await world.reset(by=broker)
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
        await world.reset(by=broker)
    await refused_to_start(world)
    await broker.close()
