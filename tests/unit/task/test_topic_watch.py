"""Topics that change under a running app, seen by the clock: grown, deleted, made anew, out of reach (rule 17)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import orjson
import pytest

from semel import Output, Pipeline, Retry, Topic
from semel.errors import SemelError, TopicChanged
from semel.memory.faults import Call, Fault, lose_answer, refuse
from semel.partitioner import KeyPartitions, partition_of
from semel.port import TP
from semel.proof import Law, Proof, Verdict, prove
from semel.worker.view import EngineView
from tests.unit.harness import APP, Worker, World, committed_values

DEAD = f"{APP}.dlq"


def passing(
    *, start: Literal["earliest", "latest"] = "earliest", agent: Callable[[Any], Any] = lambda e: e, **sink: Any
) -> Pipeline:
    """Nothing that it keeps belongs to a key."""
    return Pipeline(
        APP, source=Topic("payments", value=dict), agent=agent, sink=Topic("settlements", value=dict, **sink), start=start,
        retry=Retry(attempts=2, first_delay=timedelta(milliseconds=10)),
    )  # fmt: skip


def put(world: World, partition: int, number: int, key: bytes | None = b"k") -> None:
    world.cluster.write(TP("payments", partition), [(key, orjson.dumps({"n": number}))])


def numbers(world: World, topic: str = "settlements") -> list[int]:
    if topic not in world.cluster.topics():
        return []
    return sorted(orjson.loads(r.value or b"")["n"] for records in world.cluster.committed(topic) for r in records)


def placed(world: World, topic: str = "settlements") -> dict[bytes | None, set[int]]:
    """Key -> the partitions that it is in."""
    found: dict[bytes | None, set[int]] = {}
    for partition, records in enumerate(world.cluster.committed(topic)):
        for record in records:
            found.setdefault(record.key, set()).add(partition)
    return found


async def ended(world: World, worker: Worker, within_s: float = 60.0) -> SemelError:
    async with asyncio.timeout(within_s):
        error = await worker.gone()
    assert isinstance(error, SemelError), repr(error)
    return error


async def proven(world: World) -> Proof:
    broker = await world.connected("prove")
    try:
        return await prove(broker, world.plan(), world.clock)
    finally:
        await broker.close()


def metadata_of_sources(call: Call) -> bool:
    return call.api == "Metadata" and "payments" in (call.args.get("names") or ())


# ---------------------------------------------------------------------- a source


async def test_a_source_that_has_never_been_there_is_waited_for_and_not_called_gone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.cluster.delete_topics(["payments"])
    worker = world.start()
    await world.clock.sleep(300)
    assert not worker.over
    ready, said = EngineView(worker.engine).readiness()
    assert not ready
    assert said["waiting_for"].startswith("waiting for the source topic payments")
    assert "gone" not in said
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING or " gone" in r.getMessage()] == []
    world.cluster.create_topic("payments", world.partitions)
    await world.until_running(worker)
    world.pay_many(20)
    await world.drained()
    world.check()
    # From now on it can be gone.
    world.cluster.delete_topics(["payments"])
    assert isinstance(await ended(world, worker), TopicChanged)


async def test_a_source_that_grew_stops_an_idle_worker_that_keeps_state(world: World) -> None:
    worker = world.start()
    await world.until_running(worker)
    await world.clock.sleep(5)
    world.cluster.add_partitions("payments", 5)
    error = await ended(world, worker, within_s=5)
    assert isinstance(error, TopicChanged)
    assert "has 5 partitions now, 2 when" in str(error) and "semel reset" in str(error)


async def test_a_source_that_is_deleted_is_said_by_an_idle_worker_which_then_ends(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    worker = world.start()
    await world.until_running(worker)
    world.cluster.delete_topics(["payments"])
    await world.clock.sleep(5)
    [said] = [
        r for r in caplog.records if r.levelno == logging.WARNING and "source topic 'payments' is gone" in r.message
    ]
    assert "Nothing is committed" in said.getMessage()
    ready, why = EngineView(worker.engine).readiness()
    assert not ready and why["gone"] == ["source topic 'payments'"]
    error = await ended(world, worker)
    assert isinstance(error, TopicChanged) and "deleted" in str(error) and "semel reset" in str(error)


async def test_nothing_is_committed_while_nobody_says_whether_the_source_grew(world: World) -> None:
    """Redeliveries go where the grown topic has their keys. Nobody who does not know of them may commit them."""
    worker = world.start()
    keys = [f"a{n}" for n in range(40)]
    for key in keys:
        world.pay(key, 1, id=f"id-{key}")
    await world.drained()
    await world.clock.sleep(3)

    def script(call: Call) -> Fault | None:
        return lose_answer(after_s=0.5) if metadata_of_sources(call) else None

    world.cluster.faults.script(script)
    world.cluster.add_partitions("payments", 3)
    moved = [key for key in keys if partition_of(key.encode(), 3) not in (partition_of(key.encode(), 2), 2)]
    assert moved
    await world.clock.sleep(1.5)
    for key in moved:
        event = {"id": f"id-{key}", "account": key, "amount": 1}
        world.cluster.write(TP("payments", partition_of(key.encode(), 3)), [(key.encode(), orjson.dumps(event))])
    await world.clock.sleep(60)
    assert worker.engine.stats["aborts"] > 0
    assert sum(map(len, world.cluster.committed("settlements"))) == len(keys)
    world.cluster.faults.clear()
    assert "has 3 partitions now" in str(await ended(world, worker))
    assert sum(map(len, world.cluster.committed("settlements"))) == len(keys)


async def test_metadata_that_does_not_come_for_a_while_gives_nothing_up(world: World) -> None:
    worker = world.start()
    world.pay_many(30)
    await world.drained()
    silent = True

    def script(call: Call) -> Fault | None:
        return refuse(5) if silent and metadata_of_sources(call) else None

    world.cluster.faults.script(script)
    await world.clock.sleep(2)
    world.pay_many(30)
    await world.clock.sleep(3)
    assert not world.is_drained()
    silent = False
    await world.drained()
    assert worker.engine.stats["aborts"] == worker.engine.stats["recoveries"] == 0
    world.check()


async def test_a_broker_that_is_behind_is_not_believed_that_partitions_went_away(world: World) -> None:
    world.pipeline = passing()
    worker = world.start()
    put(world, 0, 1)
    await world.until(lambda: numbers(world) == [1])
    topic = world.cluster.topics()["payments"]
    taken = topic.logs.pop()
    await world.clock.sleep(3)
    topic.logs.append(taken)
    put(world, 1, 2)
    await world.until(lambda: numbers(world) == [1, 2])
    assert not worker.over


@pytest.mark.parametrize("start", ["earliest", "latest"])
async def test_without_state_new_partitions_of_a_source_are_taken_up(
    world: World, caplog: pytest.LogCaptureFixture, start: Literal["earliest", "latest"]
) -> None:
    """Also what was written to them before anybody saw them, whatever `start` says of the time before the app."""
    world.pipeline = passing(start=start)
    put(world, 0, 100)
    workers = [world.start("w1"), world.start("w2")]
    await world.until_running(*workers)
    await world.clock.sleep(1)
    put(world, 0, 1)
    world.cluster.add_partitions("payments", 5)
    for partition in range(5):
        put(world, partition, 2 + partition)
    expected = [1, 2, 3, 4, 5, 6] + ([100] if start == "earliest" else [])
    await world.until(lambda: numbers(world) == expected, within_s=20)
    assert sorted(t for w in workers for t in w.engine.tasks) == [0, 1, 2, 3, 4]
    assert any("has 5 partitions now, 2 before: the new ones are taken up" in r.message for r in caplog.records)
    for worker in workers:
        await worker.stop()
    again = world.start("w3")
    await world.until_running(again)
    put(world, 4, 7)
    await world.until(lambda: numbers(world) == sorted([*expected, 7]))


async def test_a_source_that_grew_while_nobody_ran_is_taken_up_where_there_is_no_state(world: World) -> None:
    world.pipeline = passing(start="latest")
    first = world.start()
    await world.until_running(first)
    await world.clock.sleep(1)
    await first.stop()
    world.cluster.add_partitions("payments", 4)
    for partition in range(4):
        put(world, partition, partition)
    world.start()
    await world.until(lambda: numbers(world) == [0, 1, 2, 3])


async def test_a_partition_that_a_source_made_anew_has_more_of_is_not_taken_up(world: World) -> None:
    """Nothing is recorded of it; that the topic is another stands in the record of the task that was there first."""
    world.pipeline = passing()
    first = world.start()
    put(world, 0, 1)
    await world.until(lambda: numbers(world) == [1])
    await world.clock.sleep(1)
    await first.stop()
    world.cluster.delete_topics(["payments"])
    world.cluster.create_topic("payments", 4)
    for partition in range(4):
        put(world, partition, 2 + partition)
    workers = [world.start(f"w{n}") for n in range(2, 6)]
    for worker in workers:
        error = await ended(world, worker)
        assert isinstance(error, TopicChanged) and "'payments' was deleted and created again" in str(error)
    assert numbers(world) == [1]


async def test_a_store_from_before_a_reset_holds_up_no_partition_that_the_source_got_since(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The reset wrote no position of it, since there was none; what the store says of it is of a source that is no more."""
    world.pipeline = passing()
    first = world.start()
    put(world, 1, 1)
    await world.until(lambda: numbers(world) == [1])
    await world.clock.sleep(1)
    await first.stop()
    world.cluster.delete_topics(["payments"])
    world.cluster.create_topic("payments", 1)
    broker = await world.connected("reset")
    await world.reset(by=broker)
    await broker.close()
    world.cluster.add_partitions("payments", 2)
    put(world, 1, 2)
    # On the store of the first one.
    second = world.start()
    await world.until(lambda: second.over or numbers(world) == [1, 2], within_s=20)
    assert not second.over and numbers(world) == [1, 2]
    assert "task 1: its store is rebuilt" in caplog.text


async def test_a_group_has_an_offset_of_each_partition_also_where_nothing_was_read(world: World) -> None:
    world.pipeline = passing()
    put(world, 1, 1)
    worker = world.start()
    await world.until(lambda: numbers(world) == [1])
    await world.clock.sleep(1)
    tps = [TP("payments", 0), TP("payments", 1)]
    assert await worker.engine.broker.stable_offsets(APP, tps) == {tps[0]: 0, tps[1]: 1}
    commits = worker.engine.stats["commits"]
    await world.clock.sleep(5)
    assert worker.engine.stats["commits"] == commits


@pytest.mark.parametrize("stale", ["start", "source", "source and positions"])
async def test_a_broker_that_has_not_heard_of_the_growth_is_asked_again_at_a_start(world: World, stale: str) -> None:
    """It is no other topic for having fewer partitions than are recorded: Kafka takes none away."""
    world.pipeline = passing()
    first = world.start()
    await world.until_running(first)
    world.cluster.add_partitions("payments", 4)
    await world.until(lambda: sorted(first.engine.tasks) == [0, 1, 2, 3])
    await world.until_running(first)
    put(world, 3, 1)
    await world.until(lambda: numbers(world) == [1])
    await world.clock.sleep(1)
    await first.stop()
    # As if it had grown just now, for the brokers that are asked next.
    topics = world.cluster.topics()
    for name in ("payments", f"{APP}-positions") if stale == "source and positions" else ("payments",):
        topics[name].grown = world.clock.monotonic(), 2
    joined = 0

    def behind_s() -> float:
        return 1.0 if stale == "start" or joined else 0.0

    def listen(call: Call) -> None:
        nonlocal joined
        joined += call.api == "SyncGroup"

    world.cluster.faults.script(listen)
    world.cluster.faults.metadata_delay_s = behind_s
    second = world.start("w2")
    put(world, 3, 2)
    await world.until(lambda: numbers(world) == [1, 2], within_s=20)
    assert sorted(second.engine.tasks) == [0, 1, 2, 3]


async def test_a_worker_whose_partitions_its_broker_has_not_heard_of_waits_for_them(world: World) -> None:
    """It has none but such: what is recorded of them must not be overwritten by a task that has nothing to read."""
    world.pipeline = passing()
    first = world.start()
    await world.until_running(first)
    world.cluster.add_partitions("payments", 4)
    await world.until(lambda: sorted(first.engine.tasks) == [0, 1, 2, 3])
    await world.until_running(first)
    for partition in (2, 3):
        put(world, partition, partition)
    await world.until(lambda: numbers(world) == [2, 3])
    await world.clock.sleep(1)
    shared_at = float("inf")

    def listen(call: Call) -> None:
        nonlocal shared_at
        if call.api == "SyncGroup":
            shared_at = world.clock.monotonic()

    world.cluster.faults.script(listen)
    settled = world.clock.monotonic()
    world.cluster.topics()["payments"].grown = settled + 0.01, 2

    def behind_s() -> float:
        """Once the partitions are shared out, a broker that has not heard of two of them is asked for a while."""
        now = world.clock.monotonic()
        return now - settled if 0 <= now - shared_at < 4 else 0.0

    world.cluster.faults.metadata_delay_s = behind_s
    others = [world.start(f"w{n}") for n in range(2, 5)]
    await world.clock.sleep(8)
    for partition in range(4):
        put(world, partition, 10 + partition)
    await world.until(lambda: len(numbers(world)) >= 6, within_s=60)
    await world.until_running(first, *others)
    await world.clock.sleep(2)
    assert sorted(numbers(world)) == [2, 3, 10, 11, 12, 13]
    recorded = {
        p: task.committed.topics["payments"].next for w in (first, *others) for p, task in w.engine.tasks.items()
    }
    assert recorded == {0: 1, 1: 1, 2: 2, 3: 2}


async def test_a_broker_that_has_not_heard_of_what_a_reset_made_is_asked_again_at_a_start(world: World) -> None:
    """The reset had the positions grow with the source; a broker that is behind knows as many as there were before."""
    worker = world.start()
    world.pay_many(10)
    await world.drained()
    await worker.stop()
    world.cluster.add_partitions("payments", 3)
    world.partitions = 3
    await world.clock.sleep(15)
    broker = await world.connected("reset")
    begins = await world.reset("latest", by=broker)
    await broker.close()
    world.cluster.faults.metadata_delay_s = lambda: 1.0
    again = world.start("w2")
    await world.until_running(again, within_s=20)
    assert {p: task.committed.topics["payments"].next for p, task in again.engine.tasks.items()} == {
        tp.partition: at for tp, at in begins.items()
    }


async def test_what_was_found_out_about_a_topic_holds_whatever_the_next_broker_says(world: World) -> None:
    """An epoch that waits for its turn meanwhile asks a broker that is behind; it is not committed."""
    worker = world.start()
    await world.until_running(worker)
    watch = worker.engine._watch
    world.cluster.add_partitions("payments", 5)
    with pytest.raises(TopicChanged):
        await watch._look()
    world.cluster.faults.metadata_delay_s = lambda: 60.0
    with pytest.raises(TopicChanged):
        await watch.confirm()
    await ended(world, worker)


# ---------------------------------------------------------------------- a sink


async def test_keys_stay_where_they_are_when_the_sink_grows(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.pipeline = passing()
    keys = [f"k{n}".encode() for n in range(20)]

    def send(number: int) -> None:
        for key in keys:
            put(world, partition_of(key, 2), number, key)

    worker = world.start()
    send(1)
    await world.until(lambda: len(numbers(world)) == 20)
    world.cluster.add_partitions("settlements", 8)
    await world.clock.sleep(3)
    assert any("'settlements' has 8 partitions now, and 2 when" in r.message for r in caplog.records)
    send(2)
    await world.until(lambda: len(numbers(world)) == 40)
    await worker.stop()
    # Also for a worker that was not there, and whose tasks go on from what others recorded.
    caplog.clear()
    other = world.start("w2")
    send(3)
    await world.until(lambda: len(numbers(world)) == 60)
    assert all(len(partitions) == 1 for partitions in placed(world).values())
    assert any("'settlements' has 8 partitions now, and 2 when" in r.message for r in caplog.records)
    await other.stop()
    proof = await proven(world)
    assert proof.verdict is Verdict.CLEAN and any("outputs go to the first 2" in note for note in proof.notes)
    # Who wants them to move says so.
    world.pipeline = passing(partitions=8)
    third = world.start("w3")
    send(4)
    await world.until(lambda: len(numbers(world)) == 80)
    assert {p for partitions in placed(world).values() for p in partitions} > {0, 1}
    assert any("keys move" in r.message for r in caplog.records)
    await third.stop()
    # From then on that is where they are.
    before = placed(world)
    world.pipeline = passing()
    world.start("w4")
    send(5)
    await world.until(lambda: len(numbers(world)) == 100)
    assert placed(world) == before
    proof = await proven(world)
    assert proof.verdict is Verdict.UNPROVABLE and any("keys moved" in gap.sentence for gap in proof.gaps)


async def test_outputs_where_the_sink_grew_are_found_by_the_proof(world: World) -> None:
    """A worker of a version that goes by what is there writes beside one that goes by what is recorded."""
    world.pipeline = passing()
    worker = world.start()
    await world.until_running(worker)
    world.cluster.add_partitions("settlements", 8)
    keys = [f"k{n}".encode() for n in range(20)]
    for key in keys:
        put(world, 0, 1, key)
    await world.until(lambda: len(numbers(world)) == 20)
    worker.engine.topics.destinations["settlements"].spread(0, KeyPartitions(8))
    for key in keys:
        put(world, 0, 2, key)
    await world.until(lambda: len(numbers(world)) == 40)
    record = world.cluster.committed(f"{APP}-positions")[0][-1]
    found = orjson.loads(record.value or b"")
    found["sinks"]["settlements"][1:] = [2, 2]
    record.value = orjson.dumps(found)
    proof = await proven(world)
    [finding] = proof.findings
    assert finding.law is Law.ORDER and "it grew from 2 to 8 partitions" in finding.sentence


async def test_a_task_that_is_new_sends_keys_where_the_others_send_them(world: World) -> None:
    """The source grew, and so did the sink: what the new partition's task has to write goes by what is recorded."""
    world.pipeline = passing()
    keys = [f"k{n}".encode() for n in range(20)]
    first = world.start()
    for key in keys:
        put(world, partition_of(key, 2), 1, key)
    await world.until(lambda: len(numbers(world)) == 20)
    await first.stop()
    world.cluster.add_partitions("settlements", 8)
    world.cluster.add_partitions("payments", 4)
    for key in keys:
        put(world, 3, 2, key)
    world.start("w2")
    await world.until(lambda: len(numbers(world)) == 40)
    assert all(len(partitions) == 1 for partitions in placed(world).values())


@pytest.mark.parametrize("behind_s", [0.0, 3.0], ids=["brokers know", "a broker is behind"])
async def test_each_task_keeps_its_keys_where_they_are_also_beside_one_with_another_number(
    world: World, behind_s: float
) -> None:
    """Two workers began while the sink grew, and met it otherwise; then one of them has the tasks of both."""
    world.pipeline = passing()
    first = world.start()
    await world.until_running(first)
    await world.clock.sleep(1)
    await first.stop()
    record = next(r for r in reversed(world.cluster.committed(f"{APP}-positions")[1]) if r.key == b"position")
    found = orjson.loads(record.value or b"")
    found["sinks"]["settlements"][1:] = [8, 8]
    record.value = orjson.dumps(found)
    world.cluster.faults.metadata_delay_s = lambda: behind_s
    world.cluster.add_partitions("settlements", 8)
    keys = [f"k{n}".encode() for n in range(20)]
    expected = {k: {partition_of(k, 8 if partition_of(k, 2) else 2)} for k in keys}
    assert len({p for places in expected.values() for p in places}) > 3
    for life in range(1, 3):
        worker = world.start(f"other{life}")
        for key in keys:
            put(world, partition_of(key, 2), life, key)
        put(world, 1, life, None)
        await world.until(lambda life=life: len(numbers(world)) == 21 * life)
        assert placed(world) == {**expected, None: {1}}
        await worker.stop()
    proof = await proven(world)
    assert proof.verdict is Verdict.CLEAN, proof.gaps


@pytest.mark.parametrize("name", ["settlements", DEAD])
async def test_a_topic_that_outputs_go_to_and_that_is_deleted_is_named(
    world: World, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    def agent(event: dict[str, Any]) -> dict[str, Any]:
        if event["n"] < 0:
            raise ValueError("no")
        return event

    world.pipeline = passing(agent=agent)
    worker = world.start()
    await world.until_running(worker)
    what = "output topic 'settlements'" if name == "settlements" else f"dead-letter topic '{DEAD}'"
    world.cluster.delete_topics([name])
    await world.clock.sleep(5)
    [said] = [r for r in caplog.records if r.levelno == logging.WARNING and f"{what} is gone" in r.message]
    assert "with 2 partitions" in said.getMessage()
    assert EngineView(worker.engine).readiness()[1]["gone"] == [what]
    for number in (-1, 1):
        put(world, 0, number)
    await world.clock.sleep(15)
    # Made anew with fewer partitions than before.
    world.cluster.create_topic(name, 1)
    await world.until(lambda: numbers(world) == [1] and len(committed_values(world.cluster, DEAD, 0)) == 1)
    put(world, 1, 2)
    put(world, 1, -2)
    await world.until(lambda: numbers(world) == [1, 2])
    await world.until(lambda: sum(map(len, world.cluster.committed(DEAD))) == 2)
    await world.until(lambda: EngineView(worker.engine).readiness()[0])
    assert any("was deleted and created again" in r.message for r in caplog.records)


async def test_a_result_without_a_key_to_a_compacted_topic_fails_its_event_alone(world: World) -> None:
    world.cluster.create_topic("settlements", 2, {"cleanup.policy": "compact"})
    world.pipeline = passing()
    worker = world.start()
    put(world, 0, 1)
    put(world, 0, 2, key=None)
    put(world, 0, 3)
    await world.until(lambda: numbers(world) == [1, 3])
    [letter] = committed_values(world.cluster, DEAD, 0)
    said = {name: value or b"" for name, value in letter.headers}
    assert b"is compacted" in said["semel.error"] and said["semel.reason"] == b"failed"
    assert worker.engine.stats["aborts"] == 0


async def test_an_output_topic_that_cannot_be_had_fails_the_events_that_name_it_and_no_others(world: World) -> None:
    def agent(event: dict[str, Any]) -> Any:
        return Output(event, topic=Topic("private")) if event["n"] == 2 else event

    def script(call: Call) -> Fault | None:
        names = [spec.name for spec in call.args.get("specs", ())] if call.api == "CreateTopics" else []
        return refuse(29) if "private" in names else None

    world.cluster.faults.script(script)
    world.pipeline = passing(agent=agent)
    first = world.start()
    for number in (1, 2, 3):
        put(world, 0, number)
    await world.until(lambda: numbers(world) == [1, 3])
    await world.until(lambda: len(committed_values(world.cluster, DEAD, 0)) == 1)
    said = {name: value or b"" for name, value in committed_values(world.cluster, DEAD, 0)[0].headers}
    assert b"'private'" in said["semel.error"]
    # What one event named is nobody's condition for a place in the group.
    second = world.start("w2")
    await world.until_running(first, second)
    put(world, 0, 4)
    put(world, 1, 5)
    await world.until(lambda: numbers(world) == [1, 3, 4, 5])


async def test_a_topic_that_events_name_is_known_after_a_rebalance_and_may_be_lost(world: World) -> None:
    def agent(event: dict[str, Any]) -> Any:
        return Output(event, topic=Topic("extra")) if event["n"] % 2 else event

    world.pipeline = passing(agent=agent)
    first = world.start()
    put(world, 0, 1)
    await world.until(lambda: "extra" in world.cluster.topics() and numbers(world, "extra") == [1])
    second = world.start("w2")
    await world.until_running(first, second)
    assert "extra" in first.engine.topics.destinations
    world.cluster.add_partitions("extra", 7)
    await first.stop()
    await world.until(lambda: sorted(second.engine.tasks) == [0, 1])
    await world.until_running(second)
    for number in range(2, 12):
        put(world, 1, number, key=f"k{number}".encode())
    await world.until(lambda: len(numbers(world)) == 5 and len(numbers(world, "extra")) == 6)
    assert {p for found in placed(world, "extra").values() for p in found} <= {0, 1}


# ---------------------------------------------------------------------- what is there does not do


async def test_a_source_that_takes_more_than_the_dead_letter_topic_is_said_at_the_start(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first = world.start()
    await world.until_running(first)
    await first.stop()
    assert not [r for r in caplog.records if "max.message.bytes" in r.message]
    world.cluster.alter_topic("payments", {"max.message.bytes": "5000000"})
    await world.until_running(world.start("w2"))
    [said] = [r for r in caplog.records if r.levelno == logging.WARNING and "max.message.bytes" in r.message]
    assert DEAD in said.getMessage() and "5000000" in said.getMessage()


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
async def test_a_compacted_dead_letter_topic_is_refused_and_what_is_said_mends_it(
    world: World, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    world.cluster.create_topic(DEAD, 2, {"cleanup.policy": policy, "retention.ms": "604800000"})
    error = await ended(world, world.start())
    assert f"dead-letter topic {DEAD!r} is compacted" in str(error)
    told = re.search(r"Set (\S+) on it", str(error))
    assert told is not None
    world.cluster.alter_topic(DEAD, dict(setting.split("=") for setting in told[1].split(",")))
    caplog.clear()
    await world.until_running(world.start("w2"))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and DEAD in r.getMessage()]
