"""Faults of the in-memory cluster: what the client sees, and what took effect all the same."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from semel.memory.broker import MemoryBroker
from semel.memory.cluster import MemoryCluster
from semel.memory.faults import Call, Fault, RandomFaults, delay, lose_answer, lose_request, refuse, unsent
from semel.port import TP, Fetched, FetchRequest, Membership, RpcError, RpcLost
from tests.unit.memory.rig import T0, batch, begun, connected, member, values, virtual


@virtual
async def test_a_lost_answer_leaves_the_effect(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    producer = await begun(broker, "w", [T0])
    await broker.produce(producer, {T0: batch(broker, producer, b"v")})
    cluster.faults.add("EndTxn", lose_answer())
    with pytest.raises(RpcLost) as lost:
        await broker.end_txn(producer, commit=True)
    assert lost.value.sent
    assert lost.value.api == "EndTxn"
    assert values(cluster) == [b"v"]


@virtual
async def test_a_lost_request_has_no_effect_which_its_client_cannot_know(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    producer = await begun(broker, "w", [T0])
    await broker.produce(producer, {T0: batch(broker, producer, b"v")})
    cluster.faults.add("EndTxn", lose_request())
    with pytest.raises(RpcLost) as lost:
        await broker.end_txn(producer, commit=True)
    assert lost.value.sent
    assert values(cluster) == []


@virtual
async def test_a_refused_connection_says_that_nothing_was_sent(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    cluster.faults.add("InitProducerId", unsent())
    with pytest.raises(RpcLost) as lost:
        await broker.init_producer_id("w", 1000)
    assert not lost.value.sent
    assert cluster.transactions.get("w") is None


@virtual
async def test_an_error_is_answered_once_by_default_and_the_rule_counts_it(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    rule = cluster.faults.add("InitProducerId", refuse(51))
    with pytest.raises(RpcError) as refused:
        await broker.init_producer_id("w", 1000)
    assert (refused.value.api, refused.value.code) == ("InitProducerId", 51)
    assert (await broker.init_producer_id("w", 1000)).epoch == 0
    assert rule.hits == 1


@virtual
async def test_an_error_may_hide_an_effect(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    producer = await begun(broker, "w", [T0])
    cluster.faults.add("Produce", refuse(20, applied=True))
    with pytest.raises(RpcError):
        await broker.produce(producer, {T0: batch(broker, producer, b"v")})
    assert await broker.produce(producer, {T0: batch(broker, producer, b"v")}) == {T0: 0}
    await broker.end_txn(producer, commit=True)
    assert values(cluster) == [b"v"]


@virtual
async def test_a_request_delayed_beyond_the_timeout_is_lost_and_takes_effect_later(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    producer = await begun(broker, "w", [T0])
    await broker.produce(producer, {T0: batch(broker, producer, b"v")})
    cluster.faults.add("EndTxn", delay(there_s=5.0))
    with pytest.raises(RpcLost):
        await broker.end_txn(producer, commit=True)
    assert cluster.clock.monotonic() == pytest.approx(2.0)
    assert values(cluster) == []
    await cluster.clock.sleep(4.0)
    assert values(cluster) == [b"v"]


@virtual
async def test_a_late_request_of_a_fenced_producer_changes_nothing(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    producer = await begun(broker, "w", [T0])
    cluster.faults.add("Produce", delay(there_s=5.0))
    with pytest.raises(RpcLost):
        await broker.produce(producer, {T0: batch(broker, producer, b"late")})
    with pytest.raises(RpcError):
        await broker.init_producer_id("w", 1000)
    successor = await begun(broker, "w", [T0])
    await cluster.clock.sleep(5.0)
    await broker.produce(successor, {T0: batch(broker, successor, b"v")})
    await broker.end_txn(successor, commit=True)
    assert values(cluster) == [b"v"]


@virtual
async def test_an_answer_that_never_comes_is_lost_at_the_timeout(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    producer = await begun(broker, "w", [T0])
    await broker.produce(producer, {T0: batch(broker, producer, b"v")})
    cluster.faults.add("EndTxn", delay(back_s=math.inf))
    with pytest.raises(RpcLost):
        await broker.end_txn(producer, commit=True)
    assert cluster.clock.monotonic() == pytest.approx(2.0)
    assert values(cluster) == [b"v"]


@virtual
async def test_a_fault_may_be_aimed(cluster: MemoryCluster) -> None:
    zombie, other = await connected(cluster, "zombie"), await connected(cluster, "other")

    def of_zombie(call: Call) -> bool:
        return call.client == "zombie" and call.args["timeout_ms"] == 2000

    cluster.faults.add(["InitProducerId", "EndTxn"], refuse(14), when=of_zombie, skip=1, times=None)
    await other.init_producer_id("a", 2000)
    await zombie.init_producer_id("b", 1000)
    await zombie.init_producer_id("c", 2000)
    for _ in range(2):
        with pytest.raises(RpcError):
            await zombie.init_producer_id("d", 2000)
    cluster.faults.clear()
    await zombie.init_producer_id("d", 2000)


async def poll(broker: MemoryBroker) -> dict[TP, Fetched]:
    return await broker.fetch(FetchRequest(0, {T0: 0}, max_wait_ms=60_000, max_bytes=100, partition_max_bytes=100))


@virtual
async def test_cutting_a_client_loses_what_it_waits_for_and_refuses_what_it_asks(cluster: MemoryCluster) -> None:
    broker, other = await connected(cluster, "cut"), await connected(cluster, "other")

    waiting = asyncio.create_task(poll(broker))
    await cluster.clock.sleep(1.0)
    cluster.faults.cut("cut")
    with pytest.raises(RpcLost) as lost:
        await waiting
    assert lost.value.sent
    assert lost.value.api == "Fetch"
    with pytest.raises(RpcLost) as lost:
        await broker.topics()
    assert not lost.value.sent
    assert await other.topics()
    cluster.faults.mend("cut")
    assert await broker.topics()
    assert cluster.clock.monotonic() == pytest.approx(1.0)


@virtual
async def test_a_paused_client_hears_nothing_while_the_cluster_goes_on_without_it(cluster: MemoryCluster) -> None:
    zombie, other = await connected(cluster, "zombie"), await connected(cluster, "other")
    membership = await member(zombie, "g")
    producer = await begun(zombie, "w", [T0])
    await zombie.add_offsets(producer, "g")
    cluster.faults.pause("zombie")
    committing = asyncio.create_task(zombie.commit_offsets(producer, membership, {T0: 3}))
    await cluster.clock.sleep(30.0)
    assert not committing.done()
    assert (await other.describe_group("g")).state == "Empty"
    cluster.faults.resume("zombie")
    with pytest.raises(RpcError) as refused:
        await committing
    assert refused.value.code == 25


@virtual
async def test_a_client_paused_before_its_answer_gets_it_when_it_wakes(cluster: MemoryCluster) -> None:
    broker = await connected(cluster, "zombie")
    cluster.faults.add("InitProducerId", delay(back_s=1.0))
    asking = asyncio.create_task(broker.init_producer_id("w", 1000))
    await cluster.clock.sleep(0.5)
    cluster.faults.pause("zombie")
    await cluster.clock.sleep(60.0)
    assert cluster.transactions.get("w") is not None
    assert not asking.done()
    cluster.faults.resume("zombie")
    assert (await asking).transactional_id == "w"


@virtual
async def test_markers_may_come_after_the_answer(cluster: MemoryCluster) -> None:
    cluster.faults.marker_delay_s = lambda: 0.5
    broker = await connected(cluster)
    membership = await member(broker, "g")
    producer = await begun(broker, "w", [T0])
    await broker.add_offsets(producer, "g")
    await broker.produce(producer, {T0: batch(broker, producer, b"v")})
    await broker.commit_offsets(producer, membership, {T0: 1})
    await broker.end_txn(producer, commit=True)
    assert values(cluster) == []
    for call in (broker.stable_offsets("g", [T0]), broker.add_partitions(producer, [T0])):
        with pytest.raises(RpcError) as refused:
            await call
        assert refused.value.code in {88, 51}
    await cluster.clock.sleep(0.5)
    assert values(cluster) == [b"v"]
    assert await broker.stable_offsets("g", [T0]) == {T0: 1}


@virtual
async def test_when_a_coordinator_moves_each_client_hears_it_once(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    membership = await member(broker, "g")
    producer = await begun(broker, "w", [T0])
    cluster.move_coordinator("group", "g")
    cluster.move_coordinator("transaction", "w")
    with pytest.raises(RpcError) as refused:
        await broker.heartbeat(membership)
    assert refused.value.code == 16
    await broker.heartbeat(membership)
    await broker.end_txn(producer, commit=True)


@virtual
async def test_when_a_leader_moves_a_client_hears_it_and_finds_the_new_one(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    assert await broker.leaders([T0]) == {T0: 0}
    cluster.move_leader(T0, 2)
    assert await broker.leaders([T0]) == {T0: 0}
    answer = await broker.fetch(FetchRequest(0, {T0: 0}, max_wait_ms=500, max_bytes=100, partition_max_bytes=100))
    assert answer[T0].error == 6
    assert cluster.clock.monotonic() == 0.0
    assert await broker.leaders([T0]) == {T0: 2}
    cluster.move_leader(T0, 1)
    with pytest.raises(RpcError) as refused:
        await broker.list_offsets([T0], -1)
    assert refused.value.code == 6
    assert await broker.list_offsets([T0], -1) == {T0: 0}


def _history(seed: int) -> list[str]:
    events: list[str] = []

    @virtual
    async def run(cluster: MemoryCluster) -> None:
        rng = random.Random(seed)
        ways = [refuse(51), lose_answer(), lose_request(), delay(there_s=3.0), Fault(delay_s=0.1)]
        cluster.faults.script(RandomFaults(rng, 0.4, ways, apis=["InitProducerId"]))
        broker = await connected(cluster)
        for i in range(40):
            try:
                events.append(str(await broker.init_producer_id(f"w{i % 3}", 1000)))
            except (RpcError, RpcLost) as error:
                events.append(f"{cluster.clock.monotonic():.3f} {error}")

    run()
    return events


def test_one_seed_repeats_a_run_exactly_and_another_does_not() -> None:
    assert _history(3) == _history(3)
    assert _history(3) != _history(4)


@virtual
async def test_a_client_that_was_not_started_reaches_nobody(cluster: MemoryCluster) -> None:
    broker = MemoryBroker(cluster, "new")
    with pytest.raises(RpcLost) as lost:
        await broker.topics()
    assert not lost.value.sent
    await broker.start()
    await broker.topics()
    await broker.close()
    with pytest.raises(RpcLost):
        await broker.topics()


@virtual
async def test_closing_a_client_loses_what_it_waits_for(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    waiting = asyncio.create_task(poll(broker))
    await cluster.clock.sleep(1.0)
    await broker.close()
    with pytest.raises(RpcLost):
        await waiting
    assert cluster.clock.monotonic() == 1.0


@virtual
async def test_a_join_is_given_up_some_time_after_the_rebalance_timeout(cluster: MemoryCluster) -> None:
    broker, other = await connected(cluster), await connected(cluster, "other")
    first = await member(broker, "g", "one")
    with pytest.raises(RpcLost) as lost:
        await other.join_group("g", "", "two", b"m", session_timeout_ms=10_000, rebalance_timeout_ms=1000)
    # The other member's rebalance timeout is longer: the group still waits for it, this client does not.
    assert lost.value.api == "JoinGroup"
    assert cluster.clock.monotonic() == pytest.approx(3.0)
    assert (await broker.describe_group("g")).state == "PreparingRebalance"
    assert first == Membership("g", 1, first.member_id, "one")
